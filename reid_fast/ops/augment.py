"""Training pictures from a store of decoded ones (random erasing: Zhong et al., arXiv 1708.04896)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from reid_fast.ops import fused

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)


def augment(
    images: Tensor,
    index: Tensor,
    flip: Tensor,
    crop: Tensor,
    erase: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    fill: Sequence[float],
    blur: Tensor | None = None,
    grey: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Gather pictures and apply, in this order: grey, flip, pad and crop, blur, normalise, erase.

    All tensors live on one device; the parameters are drawn elsewhere and nothing here is random.

    Args:
        images: [N, H, W, 3] uint8, contiguous.
        index: [B] int64, which pictures.
        flip: [B] bool, mirror left and right.
        crop: [B, 2] int32, top and left of the H×W crop relative to the picture; what lies outside is black.
        erase: [B, 4] int32: top, left, height, width of the erased rectangle; height 0 = none.
        mean, std: three numbers each, for values in [0, 1].
        fill: three numbers, the erased rectangle after normalisation.
        blur: [B] float32, Gaussian σ in pixels (radius ⌈3σ⌉, borders reflected, rounded to 8 bits); 0 = none.
        grey: replace each pixel by its luminance, rounded to 8 bits.
        dtype: of the result.

    Returns:
        [B, 3, H, W] in memory format channels_last.

    Raises:
        ValueError: images of another shape, type or stride, or too small for the blur to be reflected.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.is_contiguous():
        raise ValueError(
            f"images must be contiguous [N, H, W, 3] uint8, not {images.dtype} {list(images.shape)}"
        )
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    return _op(images, index, flip, crop, erase, blur, grey, scale, shift, list(fill), dtype)


@custom_op("reid_fast::augment", mutates_args=(), device_types="cpu")
def _op(
    images: Tensor,
    index: Tensor,
    flip: Tensor,
    crop: Tensor,
    erase: Tensor,
    blur: Tensor | None,
    grey: bool,
    scale: Sequence[float],
    shift: Sequence[float],
    fill: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    pixels = _gather(images, index, flip, crop)
    if grey:
        pixels = _round(pixels.float() @ torch.tensor(LUMINANCE))[..., None].expand_as(pixels).contiguous()
    if blur is not None:
        for i in blur.nonzero()[:, 0].tolist():
            pixels[i] = _blur(pixels[i], float(blur[i]))
    B, H, W, _ = pixels.shape
    # Three numbers repeated along a row: arithmetic runs over whole rows instead of three values at a time.
    out = (
        pixels.view(B, H, 3 * W)
        .float()
        .mul_(torch.tensor(scale).repeat(W))
        .add_(torch.tensor(shift).repeat(W))
    )
    out = out.view(B, H, W, 3)
    for i, (top, left, height, width) in enumerate(erase.tolist()):
        if height:
            out[i, top : top + height, left : left + width] = torch.tensor(fill)
    return out.to(dtype).permute(0, 3, 1, 2)


def _gather(images: Tensor, index: Tensor, flip: Tensor, crop: Tensor) -> Tensor:
    """[B, H, W, 3] uint8: the chosen pictures, flipped, then cropped with black around."""
    H, W = images.shape[1:3]
    pixels = images.new_zeros(len(index), *images.shape[1:])
    for out, i, mirrored, (top, left) in zip(
        pixels, index.tolist(), flip.tolist(), crop.tolist(), strict=True
    ):
        picture = images[i].flip(1) if mirrored else images[i]
        y, x = max(0, -top), max(0, -left)
        part = picture[y + top : max(0, H + min(0, top)), x + left : max(0, W + min(0, left))]
        out[y : y + part.shape[0], x : x + part.shape[1]] = part
    return pixels


def _blur(picture: Tensor, sigma: float) -> Tensor:
    """One [H, W, 3] uint8 picture through a separable Gaussian."""
    radius = int(torch.tensor(3 * sigma).ceil())
    kernel = torch.exp(-(torch.arange(-radius, radius + 1.0) ** 2) / (2 * sigma * sigma))
    kernel /= kernel.sum()
    planes = F.pad(picture.permute(2, 0, 1)[:, None].float(), [radius] * 4, mode="reflect")
    planes = F.conv2d(F.conv2d(planes, kernel[None, None, :, None]), kernel[None, None, None, :])
    return _round(planes)[:, 0].permute(1, 2, 0)


def _round(values: Tensor) -> Tensor:
    return values.add(0.5).floor().to(torch.uint8)


@_op.register_kernel("cuda")
def _launch(
    images: Tensor,
    index: Tensor,
    flip: Tensor,
    crop: Tensor,
    erase: Tensor,
    blur: Tensor | None,
    grey: bool,
    scale: Sequence[float],
    shift: Sequence[float],
    fill: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    parameters = [t.contiguous() for t in (index, flip, crop, erase)]
    return fused.kernels("augment").augment(images, *parameters, blur, grey, scale, shift, fill, dtype)


@_op.register_fake
def _(images: Tensor, index: Tensor, *rest: object) -> Tensor:
    out = images.new_empty((len(index), *images.shape[1:]), dtype=rest[-1])
    return out.permute(0, 3, 1, 2)
