"""Training images from a store of decoded ones (random erasing: Zhong et al., arXiv 1708.04896)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reid_fast.ops._numerics import check_shapes
from reid_fast.ops._registration import register

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)
_TYPES = torch.int64, torch.bool, torch.int32, torch.int32, torch.float32  # of index, flip, crop, erase, blur
_CACHED = 160_000  # values that are blurred at once: as float32 they stay in a core's cache from tap to tap


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
    """Gather images and apply, in this order: grey, flip, pad and crop, blur, normalise, erase.

    All tensors live on one device; the parameters are drawn elsewhere and nothing here is random.

    Args:
        images: [N, H, W, 3] uint8, contiguous.
        index: [B] int64 in [0, N), which images.
        flip: [B] bool, mirror left and right.
        crop: [B, 2] int32, top and left of the H×W crop relative to the image; what lies outside is black.
        erase: [B, 4] int32: top, left, height, width of the erased rectangle, which may reach over the borders; height
            0 = none.
        mean, std: three numbers each, for values in [0, 1].
        fill: three numbers, the erased rectangle after normalisation.
        blur: [B] float32, Gaussian σ in pixels (radius ⌈3σ⌉, borders reflected, rounded to 8 bits); 0 = none.
        grey: replace each pixel by its luminance, rounded to 8 bits.
        dtype: of the result.

    Returns:
        [B, 3, H, W] in memory format channels_last.

    Raises:
        TypeError: another type.
        ValueError: images of another shape, type or stride, parameters of another shape, a std of 0. On the CPU also an
            index out of range, and an image too small for its blur to be reflected; on CUDA, where nothing waits to
            check them, such an image is NaN.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.is_contiguous():
        raise ValueError(f"images must be contiguous [N, H, W, 3] uint8, not {images.dtype} {list(images.shape)}")
    check_shapes("index B, flip B, crop B 2, erase B 4, blur B", index, flip, crop, erase, blur)
    given = {"index": index, "flip": flip, "crop": crop, "erase": erase, "blur": blur}
    for (name, tensor), dtype_wanted in zip(given.items(), _TYPES, strict=True):
        if tensor is not None and tensor.dtype != dtype_wanted:
            raise TypeError(f"{name} must be {dtype_wanted}, not {tensor.dtype}")
    if not len(mean) == len(std) == len(fill) == 3 or 0 in std:
        raise ValueError(f"mean, std and fill must be three numbers each, std none of them 0: {mean}, {std}, {fill}")
    centre = [255 * m for m in mean]
    scale = [1 / (255 * s) for s in std]
    return _op(images, index, flip, crop, erase, blur, grey, centre, scale, list(fill), dtype)


def _cpu(
    images: Tensor,
    index: Tensor,
    flip: Tensor,
    crop: Tensor,
    erase: Tensor,
    blur: Tensor | None,
    grey: bool,
    centre: Sequence[float],
    scale: Sequence[float],
    fill: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    pixels = _filter(_gather(images, index, flip, crop), grey, blur)
    B, H, W, _ = pixels.shape
    # Three numbers repeated along a row: arithmetic runs over whole rows instead of three values at a time.
    out = pixels.view(B, H, 3 * W).float()
    # In this order, which no compiler fuses into one rounding, the bits are DALI's.
    out.sub_(torch.tensor(centre).repeat(W)).mul_(torch.tensor(scale).repeat(W))
    out = out.view(B, H, W, 3)
    for i, (top, left, height, width) in enumerate(erase.tolist()):
        if height:
            out[i, max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = torch.tensor(fill)
    return out.to(dtype).permute(0, 3, 1, 2)


def _gather(images: Tensor, index: Tensor, flip: Tensor, crop: Tensor) -> Tensor:
    """[B, H, W, 3] uint8: the chosen images, flipped, then cropped with black around."""
    N, H, W = images.shape[:3]
    if not torch.all((index >= 0) & (index < N)):
        raise ValueError(f"images have the indices 0..{N - 1}, not {index.min()}..{index.max()}")
    pixels = images.new_zeros(len(index), *images.shape[1:])
    for out, i, mirrored, (top, left) in zip(pixels, index.tolist(), flip.tolist(), crop.tolist(), strict=True):
        image = images[i].flip(1) if mirrored else images[i]
        y, x = max(0, -top), max(0, -left)
        part = image[y + top : max(0, H + min(0, top)), x + left : max(0, W + min(0, left))]
        out[y : y + part.shape[0], x : x + part.shape[1]] = part
    return pixels


def _filter(pixels: Tensor, grey: bool, blur: Tensor | None) -> Tensor:
    """[B, H, W, 3] uint8 images, grey or blurred where asked."""
    if grey:
        pixels = _round(pixels.float() @ torch.tensor(LUMINANCE))[..., None].expand_as(pixels).contiguous()
    if blur is not None and (blur > 0).any():
        for part in (blur > 0).nonzero()[:, 0].split(max(1, _CACHED // pixels[:1].numel())):
            pixels[part] = _blur(pixels[part], blur[part])
    return pixels


def _blur(pixels: Tensor, sigma: Tensor) -> Tensor:
    """[n, H, W, 3] uint8 images, each through the separable Gaussian of its own σ."""
    n, H, W, _ = pixels.shape
    radius = (3 * sigma).ceil()
    if radius.max() >= min(H, W):
        raise ValueError(f"a blur of radius {radius.max():.0f} cannot be reflected at the borders of {H}×{W} pixels")
    most = int(radius.max())
    tap = torch.arange(most + 1.0)
    weights = torch.exp(-(tap**2) / (2 * sigma[:, None] ** 2)) * (tap <= radius[:, None])
    weights /= 2 * weights.sum(1, keepdim=True) - weights[:, :1]  # all but the first stand on both sides
    weights = weights.T[..., None, None]  # [taps, n, 1, 1]
    rows = pixels.index_select(1, _reflected(H, most)).view(n, -1, 3 * W).float()
    planes = _weighted(rows, weights, 1, 1).view(n, H, W, 3)
    rows = planes.index_select(2, _reflected(W, most)).view(n, H, -1)
    return _round(_weighted(rows, weights, 2, 3)).view(n, H, W, 3)


def _reflected(size: int, border: int) -> Tensor:
    """Positions -border..size-1+border mirrored at the first and the last one."""
    return size - 1 - (torch.arange(-border, size + border).abs() - (size - 1)).abs()


def _weighted(rows: Tensor, weights: Tensor, axis: int, step: int) -> Tensor:
    """The sum over both sides of each tap: whole rows at a time, shifted by `step` values a tap."""
    border = (len(weights) - 1) * step
    size = rows.shape[axis] - 2 * border
    total = weights[0] * rows.narrow(axis, border, size)
    for tap, weight in enumerate(weights[1:], 1):
        before, after = border - tap * step, border + tap * step
        total.addcmul_(weight, rows.narrow(axis, before, size) + rows.narrow(axis, after, size))
    return total


def _round(values: Tensor) -> Tensor:
    return values.add(0.5).floor().to(torch.uint8)


def _fake(images: Tensor, index: Tensor, *rest: Any) -> Tensor:
    out = images.new_empty((len(index), *images.shape[1:]), dtype=rest[-1])
    return out.permute(0, 3, 1, 2)


_op = register(
    __name__,
    "augment(Tensor images, Tensor index, Tensor flip, Tensor crop, Tensor erase, Tensor? blur, bool grey, "
    "float[] centre, float[] scale, float[] fill, ScalarType dtype) -> Tensor",
    _cpu,
    _fake,
)
