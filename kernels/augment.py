"""Training pictures from a decoded store in one pass: gather, grey, flip, crop, blur, normalise, erase, convert.

Programs walk the output in memory order, (row, column, channel) of one picture, so that stores and almost all
loads are whole lines; each value finds its own source pixel. Pixels outside the source are black, as padding
before a crop.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def pixel(picture, y, x, channel, top, left, flip, H, W, inside, GREY: tl.constexpr):
    """The cropped picture's value at (y, x), 0..255 as float32."""
    y += top
    x += left
    inside = inside & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    at = picture + (y * W + tl.where(flip, W - 1 - x, x)) * 3
    if GREY:
        red = tl.load(at, mask=inside, other=0).to(tl.float32)
        green = tl.load(at + 1, mask=inside, other=0).to(tl.float32)
        blue = tl.load(at + 2, mask=inside, other=0).to(tl.float32)
        value = tl.floor(0.299 * red + 0.587 * green + 0.114 * blue + 0.5)
    else:
        value = tl.load(at + channel, mask=inside, other=0).to(tl.float32)
    return value


@triton.jit
def reflect(v, size):
    """Indices outside 0..size-1 mirrored at the border pixels, which are not repeated."""
    v = tl.abs(v)
    return tl.where(v >= size, 2 * (size - 1) - v, v)


@triton.jit
def blurred(picture, y, x, channel, top, left, flip, sigma, H, W, inside, GREY: tl.constexpr):
    """Gaussian of radius ⌈3σ⌉ around (y, x): few pictures are blurred, so both axes are summed at once."""
    radius = tl.ceil(3 * sigma).to(tl.int32)
    total = tl.zeros_like(y).to(tl.float32)
    mass = 0.0
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            weight = tl.exp(-(dy * dy + dx * dx) / (2 * sigma * sigma))
            near = pixel(picture, reflect(y + dy, H), reflect(x + dx, W), channel, top, left, flip, H, W, inside, GREY)
            total += weight * near
            mass += weight
    return tl.floor(total / mass + 0.5)


@triton.jit
def by_channel(channel, red, green, blue):
    return tl.where(channel == 0, red, tl.where(channel == 1, green, blue))


@triton.jit
def augment_kernel(
    images, index, flips, crops, erases, blurs, out, H, W,
    centre0, centre1, centre2, scale0, scale1, scale2, fill0, fill1, fill2,
    GREY: tl.constexpr, HAS_BLUR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < 3 * H * W
    channel, x, y = place % 3, place // 3 % W, place // 3 // W
    picture = images + tl.load(index + image).to(tl.int64) * H * W * 3
    flip = tl.load(flips + image) != 0
    top, left = tl.load(crops + 2 * image), tl.load(crops + 2 * image + 1)
    sigma = tl.load(blurs + image) if HAS_BLUR else 0.0
    if sigma > 0:
        value = blurred(picture, y, x, channel, top, left, flip, sigma, H, W, inside, GREY)
    else:
        value = pixel(picture, y, x, channel, top, left, flip, H, W, inside, GREY)
    value -= by_channel(channel, centre0, centre1, centre2)
    value *= by_channel(channel, scale0, scale1, scale2)
    e_top, e_left = tl.load(erases + 4 * image), tl.load(erases + 4 * image + 1)
    e_height, e_width = tl.load(erases + 4 * image + 2), tl.load(erases + 4 * image + 3)
    erased = (y >= e_top) & (y < e_top + e_height) & (x >= e_left) & (x < e_left + e_width)
    value = tl.where(erased, by_channel(channel, fill0, fill1, fill2), value)
    tl.store(out + image.to(tl.int64) * H * W * 3 + place, value.to(out.dtype.element_ty), mask=inside)


def augment(
    images: torch.Tensor, index: torch.Tensor, flip: torch.Tensor, crop: torch.Tensor, erase: torch.Tensor,
    blur: torch.Tensor | None, grey: bool, centre: list[float], scale: list[float], fill: list[float],
    dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """[B, 3, H, W] channels_last. One launch."""
    (_, H, W, _), B, BLOCK = images.shape, len(index), 1024
    out = torch.empty((B, H, W, 3), dtype=dtype, device=images.device)
    augment_kernel[(triton.cdiv(3 * H * W, BLOCK), B)](
        images, index, flip, crop, erase, blur, out, H, W, *centre, *scale, *fill,
        GREY=grey, HAS_BLUR=blur is not None, BLOCK=BLOCK,
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)
