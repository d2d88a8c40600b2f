"""Training images from a decoded store in one pass: gather, grey, flip, crop, blur, normalise, erase, convert.

Programs walk the output in memory order, (row, column, channel) of one image, so that stores and almost all
loads are whole lines; each value finds its own source pixel. Pixels outside the source are black, as padding
before a crop.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def pixel(
    image_ptr,  # [H, W, 3] uint8
    y,  # [BLOCK] of the cropped image
    x,  # [BLOCK]
    channel,  # [BLOCK]
    top,  # of the crop
    left,
    flip,  # whether the image is mirrored
    H,
    W,
    inside,  # [BLOCK] which values are wanted
    GREY: tl.constexpr,
):
    """The cropped image's value at (y, x), [BLOCK], 0..255 as float32."""
    y += top
    x += left
    inside = inside & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    at = image_ptr + (y * W + tl.where(flip, W - 1 - x, x)) * 3
    if GREY:
        red = tl.load(at, mask=inside, other=0).to(tl.float32)
        green = tl.load(at + 1, mask=inside, other=0).to(tl.float32)
        blue = tl.load(at + 2, mask=inside, other=0).to(tl.float32)
        value = tl.floor(0.299 * red + 0.587 * green + 0.114 * blue + 0.5)
    else:
        value = tl.load(at + channel, mask=inside, other=0).to(tl.float32)
    return value


@triton.jit
def reflect(
    v,  # [BLOCK] indices, less than `size` outside
    size,
):
    """Indices outside 0..size-1 mirrored at the border pixels, which are not repeated."""
    v = tl.abs(v)
    return tl.where(v >= size, 2 * (size - 1) - v, v)


@triton.jit
def blurred(
    image_ptr,  # from here the arguments of `pixel`
    y,
    x,
    channel,
    top,
    left,
    flip,
    sigma,  # of the Gaussian, in pixels
    H,
    W,
    inside,
    GREY: tl.constexpr,
):
    """Gaussian of radius ⌈3σ⌉ around (y, x): few images are blurred, so both axes are summed at once."""
    radius = tl.ceil(3 * sigma).to(tl.int32)
    total = tl.zeros_like(y).to(tl.float32)
    mass = 0.0
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            weight = tl.exp(-(dy * dy + dx * dx) / (2 * sigma * sigma))
            ny, nx = reflect(y + dy, H), reflect(x + dx, W)
            total += weight * pixel(image_ptr, ny, nx, channel, top, left, flip, H, W, inside, GREY)
            mass += weight
    return tl.floor(total / mass + 0.5)


@triton.jit
def by_channel(
    channel,  # [BLOCK] 0, 1 or 2
    red,
    green,
    blue,
):
    """The number of each value's channel, [BLOCK]."""
    return tl.where(channel == 0, red, tl.where(channel == 1, green, blue))


@triton.jit
def augment_kernel(
    images_ptr,  # [N, H, W, 3] uint8
    index_ptr,  # [B] int64
    flip_ptr,  # [B] bool
    crop_ptr,  # [B, 2] int32: top, left
    erase_ptr,  # [B, 4] int32: top, left, height, width
    blur_ptr,  # [B] float32 σ, with HAS_BLUR
    out_ptr,  # [B, H, W, 3]
    H,
    W,
    centre0,  # what is subtracted from a value, by channel
    centre1,
    centre2,
    scale0,  # what the difference is multiplied by
    scale1,
    scale2,
    fill0,  # the erased rectangle
    fill1,
    fill2,
    GREY: tl.constexpr,
    HAS_BLUR: tl.constexpr,
    BLOCK: tl.constexpr,  # values a program
):
    """Programs (block of values, image)."""
    image = tl.program_id(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < 3 * H * W
    channel, x, y = place % 3, place // 3 % W, place // 3 // W
    image_ptr = images_ptr + tl.load(index_ptr + image).to(tl.int64) * H * W * 3
    flip = tl.load(flip_ptr + image) != 0
    top, left = tl.load(crop_ptr + 2 * image), tl.load(crop_ptr + 2 * image + 1)
    sigma = tl.load(blur_ptr + image) if HAS_BLUR else 0.0
    if sigma > 0:
        value = blurred(image_ptr, y, x, channel, top, left, flip, sigma, H, W, inside, GREY)
    else:
        value = pixel(image_ptr, y, x, channel, top, left, flip, H, W, inside, GREY)
    value -= by_channel(channel, centre0, centre1, centre2)
    value *= by_channel(channel, scale0, scale1, scale2)
    e_top, e_left = tl.load(erase_ptr + 4 * image), tl.load(erase_ptr + 4 * image + 1)
    e_height, e_width = tl.load(erase_ptr + 4 * image + 2), tl.load(erase_ptr + 4 * image + 3)
    erased = (y >= e_top) & (y < e_top + e_height) & (x >= e_left) & (x < e_left + e_width)
    value = tl.where(erased, by_channel(channel, fill0, fill1, fill2), value)
    tl.store(out_ptr + image.to(tl.int64) * H * W * 3 + place, value.to(out_ptr.dtype.element_ty), mask=inside)


def augment(
    images: torch.Tensor,
    index: torch.Tensor,
    flip: torch.Tensor,
    crop: torch.Tensor,
    erase: torch.Tensor,
    blur: torch.Tensor | None,
    grey: bool,
    centre: list[float],
    scale: list[float],
    fill: list[float],
    dtype: torch.dtype,
) -> torch.Tensor:
    """[B, 3, H, W] channels_last. One launch."""
    (_, H, W, _), B, BLOCK = images.shape, len(index), 1024
    out = torch.empty((B, H, W, 3), dtype=dtype, device=images.device)
    by_name = {"centre": centre, "scale": scale, "fill": fill}
    augment_kernel[(triton.cdiv(3 * H * W, BLOCK), B)](
        images_ptr=images,
        index_ptr=index.contiguous(),
        flip_ptr=flip.contiguous(),
        crop_ptr=crop.contiguous(),
        erase_ptr=erase.contiguous(),
        blur_ptr=blur,
        out_ptr=out,
        H=H,
        W=W,
        **{f"{name}{channel}": values[channel] for name, values in by_name.items() for channel in range(3)},
        GREY=grey,
        HAS_BLUR=blur is not None,
        BLOCK=BLOCK,
    )
    return out.permute(0, 3, 1, 2)
