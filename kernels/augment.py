"""Training images from a decoded store in one pass: gather, grey, flip, crop, blur, normalise, erase, convert.

Programs walk the output in memory order, (row, column, channel) of one image, so that stores and almost all
loads are whole lines; each value finds its own source pixel. Pixels outside the source are black, as padding
before a crop. A blur runs down the columns in a launch of its own, into a float32 workspace, and along the rows in
the main one: 2(2r + 1) taps a value instead of (2r + 1)². H and W are constants of a run: divisions by them are
multiplications.
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
    H: tl.constexpr,
    W: tl.constexpr,
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
def blur_radius(
    sigma,  # of the Gaussian, in pixels
    H: tl.constexpr,
    W: tl.constexpr,
):
    """⌈3σ⌉, at most what the borders of an image can reflect."""
    return tl.minimum(tl.ceil(3 * sigma), min(H, W) - 1.0).to(tl.int32)


@triton.jit
def tap_weight(
    distance,  # from the centre
    sigma,
):
    """What a tap of the Gaussian counts, before the division by their sum."""
    return tl.exp(-(distance * distance) / (2 * sigma * sigma))


@triton.jit
def blurred_rows(
    columns_ptr,  # [H, W, 3] float32, an image blurred down its columns
    y,  # [BLOCK]
    x,  # [BLOCK]
    channel,  # [BLOCK]
    sigma,
    H: tl.constexpr,
    W: tl.constexpr,
    inside,  # [BLOCK] which values are wanted
):
    """The image blurred along its rows too, at (y, x), [BLOCK], rounded to 8 bits."""
    radius = blur_radius(sigma, H, W)
    total = tl.zeros_like(y).to(tl.float32)
    mass = 0.0
    for dx in range(-radius, radius + 1):
        weight = tap_weight(dx, sigma)
        at = columns_ptr + (y * W + reflect(x + dx, W)) * 3 + channel
        total += weight * tl.load(at, mask=inside, other=0.0)
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
def blur_kernel(
    images_ptr,  # [N, H, W, 3] uint8
    index_ptr,  # [B] int64
    flip_ptr,  # [B] bool
    crop_ptr,  # [B, 2] int32: top, left
    blur_ptr,  # [B] float32 σ
    columns_ptr,  # [B, H, W, 3] float32 out: where σ > 0, the cropped image blurred down its columns
    N,
    H: tl.constexpr,
    W: tl.constexpr,
    GREY: tl.constexpr,
    BLOCK: tl.constexpr,  # values a program
):
    """Programs (image, block of values) in one axis."""
    blocks: tl.constexpr = (3 * H * W + BLOCK - 1) // BLOCK
    image = tl.program_id(0) // blocks
    sigma = tl.load(blur_ptr + image).to(tl.float32)
    if sigma > 0:
        place = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
        channel, x, y = place % 3, place // 3 % W, place // 3 // W
        source = tl.load(index_ptr + image).to(tl.int64)
        inside = (place < 3 * H * W) & (source >= 0) & (source < N)
        flip = tl.load(flip_ptr + image) != 0
        top, left = tl.load(crop_ptr + 2 * image), tl.load(crop_ptr + 2 * image + 1)
        radius = blur_radius(sigma, H, W)
        total = tl.zeros([BLOCK], tl.float32)
        mass = 0.0
        for dy in range(-radius, radius + 1):
            weight = tap_weight(dy, sigma)
            image_ptr = images_ptr + source * (3 * H * W)
            total += weight * pixel(image_ptr, reflect(y + dy, H), x, channel, top, left, flip, H, W, inside, GREY)
            mass += weight
        tl.store(columns_ptr + image.to(tl.int64) * (3 * H * W) + place, total / mass, mask=inside)


@triton.jit
def augment_kernel(
    images_ptr,  # [N, H, W, 3] uint8
    index_ptr,  # [B] int64
    flip_ptr,  # [B] bool
    crop_ptr,  # [B, 2] int32: top, left
    erase_ptr,  # [B, 4] int32: top, left, height, width
    blur_ptr,  # [B] float32 σ, with HAS_BLUR
    columns_ptr,  # [B, H, W, 3] float32 from `blur_kernel`, with HAS_BLUR
    out_ptr,  # [B, H, W, 3]
    N,
    H: tl.constexpr,
    W: tl.constexpr,
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
    """Programs (image, block of values) in one axis. An image that does not exist, or cannot be blurred so, is NaN."""
    blocks: tl.constexpr = (3 * H * W + BLOCK - 1) // BLOCK
    image = tl.program_id(0) // blocks
    start = image.to(tl.int64) * (3 * H * W)
    place = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    channel, x, y = place % 3, place // 3 % W, place // 3 // W
    source = tl.load(index_ptr + image).to(tl.int64)
    known = (source >= 0) & (source < N)
    inside = (place < 3 * H * W) & known
    flip = tl.load(flip_ptr + image) != 0
    top, left = tl.load(crop_ptr + 2 * image), tl.load(crop_ptr + 2 * image + 1)
    image_ptr = images_ptr + source * (3 * H * W)
    value = pixel(image_ptr, y, x, channel, top, left, flip, H, W, inside, GREY)
    if HAS_BLUR:
        sigma = tl.load(blur_ptr + image).to(tl.float32)
        if sigma > 0:
            value = blurred_rows(columns_ptr + start, y, x, channel, sigma, H, W, inside)
            known = known & (3 * sigma <= min(H, W) - 1)
    value -= by_channel(channel, centre0, centre1, centre2)
    value *= by_channel(channel, scale0, scale1, scale2)
    e_top, e_left = tl.load(erase_ptr + 4 * image), tl.load(erase_ptr + 4 * image + 1)
    e_height, e_width = tl.load(erase_ptr + 4 * image + 2), tl.load(erase_ptr + 4 * image + 3)
    e_bottom, e_right = e_top.to(tl.int64) + e_height, e_left.to(tl.int64) + e_width
    erased = (y >= e_top) & (y < e_bottom) & (x >= e_left) & (x < e_right)
    value = tl.where(erased, by_channel(channel, fill0, fill1, fill2), value)
    value = tl.where(known, value, float("nan"))
    tl.store(out_ptr + start + place, value.to(out_ptr.dtype.element_ty), mask=place < 3 * H * W)


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
    """[B, 3, H, W] channels_last. One launch, and one before it that blurs."""
    (N, H, W, _), B, BLOCK = images.shape, len(index), 1024
    out = torch.empty((B, H, W, 3), dtype=dtype, device=images.device)
    by_name = {"centre": centre, "scale": scale, "fill": fill}
    grid = (B * triton.cdiv(3 * H * W, BLOCK),)
    shared = {
        "images_ptr": images,
        "index_ptr": index,
        "flip_ptr": flip,
        "crop_ptr": crop,
        "blur_ptr": None,
        "columns_ptr": None,
        "N": N,
        "H": H,
        "W": W,
        "GREY": grey,
        "BLOCK": BLOCK,
    }
    if blur is not None:
        shared["blur_ptr"] = blur
        shared["columns_ptr"] = torch.empty((B, H, W, 3), dtype=torch.float32, device=images.device)
        blur_kernel[grid](**shared)
    augment_kernel[grid](
        erase_ptr=erase,
        out_ptr=out,
        **{f"{name}{channel}": values[channel] for name, values in by_name.items() for channel in range(3)},
        HAS_BLUR=blur is not None,
        **shared,
    )
    return out.permute(0, 3, 1, 2)
