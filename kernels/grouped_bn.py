"""BatchNorm by groups of images, with residual and ReLU: a pass for sums and a pass that applies them, each way.

An array is read as rows of C channels, a row a pixel, so the rows of a group are one block. The grid has an axis for
channels, one for groups, and one for the parts that a group's rows are cut into. Each part leaves its sums; the
programs of the second pass add up those of their group, in the order of the parts. An element is read twice, and
neither groups nor domains are copied.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from reid_fast.kernels import tiles

TILE = 4096  # elements that a program holds
MOST_PARTS = 128
BP = tl.constexpr(16)  # parts whose sums are read at once


@triton.jit
def part_rows(
    group,  # its number
    part,  # its number
    images,
    pixels,  # of an image
    size,  # images of a group
    step,  # rows of a part
):
    """(first row, the row behind the last one) of a part; the last group and the last part may be shorter."""
    stop = tl.minimum((group + 1) * size, images) * pixels
    first = tl.minimum(group * size * pixels + part * step, stop)
    return first, tl.minimum(first + step, stop)


@triton.jit
def place(
    first,  # the first row
    stop,  # the row behind the last one
    c,  # [BC] channels
    C,
    BR: tl.constexpr,
):
    """(offsets of a tile of rows, which of them are inside), [BR, BC]."""
    rows = first + tl.arange(0, BR)
    return rows.to(tl.int64)[:, None] * C + c[None, :], (rows < stop)[:, None] & (c < C)[None, :]


@triton.jit
def cleared(
    value,  # [BR, BC]
    z,  # [BR, BC] what a ReLU is given, or what it gave
):
    """`value`, and 0 where the ReLU's result is 0; not a number is none of its zeros, as in PyTorch."""
    return tl.where(z <= 0, 0.0, value)


@triton.jit(do_not_specialize=["images", "pixels", "size", "step"])
def statistics_kernel(
    x_ptr,  # [images · pixels, C]
    means_ptr,  # [groups, parts, C] float32 out
    squares_ptr,  # [groups, parts, C] float32 out: Σ (x - mean)² of each part
    C,
    images,
    pixels,
    size,
    step,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """Welford's recursion in every row of the tile: right for values far from 0 that differ by little."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    group, part = tl.program_id(1), tl.program_id(2)
    first, stop = part_rows(group, part, images, pixels, size, step)
    mean, square = tl.zeros([BR, BC], tl.float32), tl.zeros([BR, BC], tl.float32)
    seen = 0.0
    for row in range(first, stop, BR):
        seen += 1.0
        at, inside = place(row, stop, c, C, BR)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        away = tl.where(inside, x - mean, 0.0)
        mean += away * (1.0 / seen)
        square += away * (x - mean)
    counts = tl.maximum((stop - first - tl.arange(0, BR) + BR - 1) // BR, 0).to(tl.float32)[:, None]
    middle = tl.sum(counts * mean, axis=0) / tl.maximum(stop - first, 1)
    away = mean - middle[None, :]
    square = tl.sum(square + counts * away * away, axis=0)
    at = (group * tl.num_programs(2) + part).to(tl.int64) * C + c
    tl.store(means_ptr + at, middle, mask=c < C)
    tl.store(squares_ptr + at, square, mask=c < C)


@triton.jit
def sums_of_parts(
    group,
    first,  # the first part
    parts,  # of a group
    c,  # [BC]
    C,
):
    """(numbers of the next parts [BP], offsets of their sums, which of them are inside), the latter two [BP, BC]."""
    part = first + tl.arange(0, BP)
    at = (group * parts + part).to(tl.int64)[:, None] * C + c[None, :]
    return part, at, (part < parts)[:, None] & (c < C)[None, :]


@triton.jit
def add_parts(
    sums_ptr,  # [groups, parts, C]
    group,
    parts,
    c,  # [BC]
    C,
    BC: tl.constexpr,
):
    """The sum over a group's parts, [BC]."""
    total = tl.zeros([BC], tl.float32)
    for first in range(0, parts, BP):
        _, at, inside = sums_of_parts(group, first, parts, c, C)
        total += tl.sum(tl.load(sums_ptr + at, mask=inside, other=0.0), axis=0)
    return total


@triton.jit
def combine(
    means_ptr,  # [groups, parts, C]
    squares_ptr,  # [groups, parts, C]
    group,
    parts,
    c,  # [BC]
    C,
    count,  # rows of the group
    step,
    BC: tl.constexpr,
):
    """(mean, biased variance) of a group, [BC] each."""
    mean = tl.zeros([BC], tl.float32)
    for first in range(0, parts, BP):
        part, at, inside = sums_of_parts(group, first, parts, c, C)
        rows = tl.maximum(tl.minimum(count - part * step, step), 0).to(tl.float32)[:, None]
        mean += tl.sum(rows * tl.load(means_ptr + at, mask=inside, other=0.0), axis=0)
    mean = mean / count
    square = add_parts(squares_ptr, group, parts, c, C, BC)
    for first in range(0, parts, BP):
        part, at, inside = sums_of_parts(group, first, parts, c, C)
        rows = tl.maximum(tl.minimum(count - part * step, step), 0).to(tl.float32)[:, None]
        away = tl.load(means_ptr + at, mask=inside, other=0.0) - mean[None, :]
        square += tl.sum(rows * away * away, axis=0)
    return mean, square / count


@triton.jit(do_not_specialize=["images", "pixels", "size", "step"])
def apply_kernel(
    x_ptr,  # [images · pixels, C]
    residual_ptr,  # the same, with RESIDUAL
    means_ptr,  # from the first launch
    squares_ptr,
    weight_ptr,  # [C]
    bias_ptr,  # [C]
    running_mean_ptr,  # [C], changed
    running_var_ptr,  # [C], changed
    mean_ptr,  # [groups, C] float32 out
    var_ptr,  # [groups, C] float32 out: biased
    y_ptr,  # [images · pixels, C] out
    C,
    images,
    pixels,
    size,
    step,
    momentum,
    eps,
    RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """The first part of a group keeps its statistics; that of the first group moves the running ones too."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    group, part, parts = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    start, end = part_rows(group, 0, images, pixels, size, size * pixels)
    mean, var = combine(means_ptr, squares_ptr, group, parts, c, C, end - start, step, BC)
    if part == 0:
        tl.store(mean_ptr + group * C + c, mean, mask=c < C)
        tl.store(var_ptr + group * C + c, var, mask=c < C)
        if group == 0:
            unbiased = var * ((end - start).to(tl.float32) / (end - start - 1))
            old = tl.load(running_mean_ptr + c, mask=c < C).to(tl.float32)
            new = momentum * mean + (1 - momentum) * old
            tl.store(running_mean_ptr + c, new.to(running_mean_ptr.dtype.element_ty), mask=c < C)
            old = tl.load(running_var_ptr + c, mask=c < C).to(tl.float32)
            new = momentum * unbiased + (1 - momentum) * old
            tl.store(running_var_ptr + c, new.to(running_var_ptr.dtype.element_ty), mask=c < C)
    scale = tl.load(weight_ptr + c, mask=c < C, other=0.0).to(tl.float32) / tl.sqrt(var + eps)
    bias = tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    first, stop = part_rows(group, part, images, pixels, size, step)
    for row in range(first, stop, BR):
        at, inside = place(row, stop, c, C, BR)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        y = tl.fma(x - mean[None, :], tl.broadcast_to(scale[None, :], [BR, BC]), bias[None, :])
        if RESIDUAL:
            y += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            y = cleared(y, y)
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def centred(
    x_ptr,  # [images · pixels, C]
    by_ptr,  # the gradient of y, or of what the ReLU was given
    at,  # [BR, BC] offsets
    inside,  # [BR, BC]
    mean,  # [BC]
    scale,  # [BC]
    bias,  # [BC]
    MASK: tl.constexpr,  # y has a ReLU and no residual: its zeros follow from x
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """(x - mean, the gradient of the normalised and scaled x), [BR, BC]."""
    away = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
    by = tl.load(by_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if MASK:
        z = tl.fma(away, tl.broadcast_to(scale[None, :], [BR, BC]), bias[None, :])
        by = cleared(by, z)
    return away, by


@triton.jit(do_not_specialize=["images", "pixels", "size", "step"])
def sums_kernel(
    by_y_ptr,  # [images · pixels, C]
    x_ptr,  # the same
    y_ptr,  # the same, with RESIDUAL
    weight_ptr,  # [C]
    bias_ptr,  # [C]
    mean_ptr,  # [groups, C] from the forward passes
    var_ptr,  # [groups, C]
    by_residual_ptr,  # [images · pixels, C] out, with RESIDUAL: the gradient of y where its ReLU let through
    sums_ptr,  # [groups, parts, C] float32 out: Σ gradient
    products_ptr,  # [groups, parts, C] float32 out: Σ gradient · (x - mean)
    C,
    images,
    pixels,
    size,
    step,
    eps,
    RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """Of y, a ReLU behind a residual leaves only the sign: what it lets through is written here, and y read once."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    group, part = tl.program_id(1), tl.program_id(2)
    mean = tl.load(mean_ptr + group * C + c, mask=c < C, other=0.0)
    var = tl.load(var_ptr + group * C + c, mask=c < C, other=0.0)
    scale = tl.load(weight_ptr + c, mask=c < C, other=0.0).to(tl.float32) / tl.sqrt(var + eps)
    bias = tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    first, stop = part_rows(group, part, images, pixels, size, step)
    total, product = tl.zeros([BR, BC], tl.float32), tl.zeros([BR, BC], tl.float32)
    for row in range(first, stop, BR):
        at, inside = place(row, stop, c, C, BR)
        away, by = centred(x_ptr, by_y_ptr, at, inside, mean, scale, bias, RELU and not RESIDUAL, BR, BC)
        if RESIDUAL:
            y = tl.load(y_ptr + at, mask=inside, other=0.0)
            by = cleared(by, y)
            tl.store(by_residual_ptr + at, by.to(by_residual_ptr.dtype.element_ty), mask=inside)
        total += by
        product += by * away
    at = (group * tl.num_programs(2) + part).to(tl.int64) * C + c
    tl.store(sums_ptr + at, tl.sum(total, axis=0), mask=c < C)
    tl.store(products_ptr + at, tl.sum(product, axis=0), mask=c < C)


@triton.jit(do_not_specialize=["images", "pixels", "size", "step"])
def gradient_kernel(
    by_ptr,  # [images · pixels, C] the gradient of y; with RESIDUAL that of the residual
    x_ptr,  # the same
    weight_ptr,  # [C]
    bias_ptr,  # [C]
    mean_ptr,  # [groups, C]
    var_ptr,  # [groups, C]
    sums_ptr,  # from the launch before
    products_ptr,
    by_x_ptr,  # [images · pixels, C] out
    by_weight_ptr,  # [C] float32 out
    by_bias_ptr,  # [C] float32 out
    C,
    images,
    pixels,
    size,
    step,
    eps,
    MASK: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """The very first part adds up the groups for weight and bias."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    group, part, parts = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    start, end = part_rows(group, 0, images, pixels, size, size * pixels)
    mean = tl.load(mean_ptr + group * C + c, mask=c < C, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.load(var_ptr + group * C + c, mask=c < C, other=1.0) + eps)
    scale = tl.load(weight_ptr + c, mask=c < C, other=0.0).to(tl.float32) * rstd
    bias = tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    level = add_parts(sums_ptr, group, parts, c, C, BC) / (end - start)
    slope = add_parts(products_ptr, group, parts, c, C, BC) / (end - start) * rstd * rstd
    first, stop = part_rows(group, part, images, pixels, size, step)
    for row in range(first, stop, BR):
        at, inside = place(row, stop, c, C, BR)
        away, by = centred(x_ptr, by_ptr, at, inside, mean, scale, bias, MASK, BR, BC)
        by_x = scale[None, :] * (by - level[None, :] - away * slope[None, :])
        tl.store(by_x_ptr + at, by_x.to(by_x_ptr.dtype.element_ty), mask=inside)
    if (group == 0) & (part == 0):
        by_weight, by_bias = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
        for other in range(tl.num_programs(1)):
            rstd = 1.0 / tl.sqrt(tl.load(var_ptr + other * C + c, mask=c < C, other=1.0) + eps)
            by_weight += add_parts(products_ptr, other, parts, c, C, BC) * rstd
            by_bias += add_parts(sums_ptr, other, parts, c, C, BC)
        tl.store(by_weight_ptr + c, by_weight, mask=c < C)
        tl.store(by_bias_ptr + c, by_bias, mask=c < C)


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """[B, C, ...] as contiguous [B, pixels, C]: no copy of channels_last."""
    return x.movedim(1, -1).contiguous().unsqueeze(1).flatten(1, -2)


def shaped(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse: [B, pixels, C] as [B, C, ...]."""
    return rows.view(like.movedim(1, -1).shape).movedim(-1, 1)


def block(C: int) -> dict[str, int]:
    """The tile of a program: whole vectors of channels, and as many rows as it holds."""
    BC = min(64, max(16, triton.next_power_of_2(C)))
    return {"BR": TILE // BC, "BC": BC, "num_warps": 8}


def _plan(rows: torch.Tensor, domains: int, group: int) -> tuple[dict, tuple[int, int, int]]:
    """(sizes that every launch takes, its grid): about four programs a multiprocessor, each with whole tiles."""
    if rows.dtype not in tiles.DOT_TYPES:
        raise TypeError(f"the input must be float32, float16 or bfloat16 on CUDA, not {rows.dtype}")
    images, pixels, C = len(rows) // domains, *rows.shape[1:]
    size = group if 0 < group < images else images
    tile = block(C)
    columns, groups = triton.cdiv(C, tile["BC"]), triton.cdiv(images, size)
    held = triton.cdiv(size * pixels, tile["BR"])
    parts = max(1, min(held, MOST_PARTS, 4 * tiles.processors(rows.device) // (columns * groups)))
    step = triton.cdiv(held, parts) * tile["BR"]
    sizes = {"C": C, "images": images, "pixels": pixels, "size": size, "step": step}
    return sizes | tile, (columns, groups, triton.cdiv(size * pixels, step))


def _halves(count: int, *arrays: torch.Tensor | None) -> list[tuple[torch.Tensor | None, ...]]:
    """The equal parts of all arrays that belong to each of `count` domains."""
    return list(zip(*([None] * count if array is None else array.chunk(count) for array in arrays), strict=True))


def grouped_bn(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: Sequence[torch.Tensor],
    bias: Sequence[torch.Tensor],
    running_mean: Sequence[torch.Tensor],
    running_var: Sequence[torch.Tensor],
    group: int,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, means [groups, C], biased variances [groups, C]); running statistics change. Two launches a domain."""
    rows = rows_of(x)
    sizes, grid = _plan(rows, len(weight), group)
    _, groups, parts = grid
    y = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    mean, var = (tiles.empty(rows, len(weight) * groups, sizes["C"]) for _ in range(2))
    arrays = _halves(len(weight), rows, None if residual is None else rows_of(residual), y, mean, var)
    for i, (x_ptr, residual_ptr, y_ptr, mean_ptr, var_ptr) in enumerate(arrays):
        partial = {name: tiles.empty(rows, groups, parts, sizes["C"]) for name in ("means_ptr", "squares_ptr")}
        statistics_kernel[grid](x_ptr=x_ptr, **partial, **sizes)
        apply_kernel[grid](
            x_ptr=x_ptr,
            residual_ptr=residual_ptr,
            weight_ptr=weight[i].contiguous(),
            bias_ptr=bias[i].contiguous(),
            running_mean_ptr=running_mean[i],
            running_var_ptr=running_var[i],
            mean_ptr=mean_ptr,
            var_ptr=var_ptr,
            y_ptr=y_ptr,
            momentum=momentum,
            eps=eps,
            RELU=relu,
            RESIDUAL=residual is not None,
            **partial,
            **sizes,
        )
    return shaped(y, x), mean, var


def grouped_bn_backward(
    by_y: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    weight: Sequence[torch.Tensor],
    bias: Sequence[torch.Tensor],
    mean: torch.Tensor,
    var: torch.Tensor,
    group: int,
    eps: float,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, the residual, weights and biases [domains, C]. Two launches a domain."""
    rows = rows_of(x)
    sizes, grid = _plan(rows, len(weight), group)
    _, groups, parts = grid
    by_x = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    by_residual = None if y is None else torch.empty_like(by_x)
    by_weight, by_bias = (tiles.empty(rows, len(weight), sizes["C"]) for _ in range(2))
    arrays = _halves(
        len(weight),
        *(rows_of(by_y), rows, None if y is None else rows_of(y), mean, var),
        *(by_residual, by_x, by_weight, by_bias),
    )
    for i, (by_y_ptr, x_ptr, y_ptr, mean_ptr, var_ptr, by_residual_ptr, by_x_ptr, *by_norm) in enumerate(arrays):
        shared = sizes | {name: tiles.empty(rows, groups, parts, sizes["C"]) for name in ("sums_ptr", "products_ptr")}
        shared |= {"x_ptr": x_ptr, "mean_ptr": mean_ptr, "var_ptr": var_ptr, "eps": eps}
        shared |= {"weight_ptr": weight[i].contiguous(), "bias_ptr": bias[i].contiguous()}
        sums_kernel[grid](
            by_y_ptr=by_y_ptr, y_ptr=y_ptr, by_residual_ptr=by_residual_ptr, RELU=relu, RESIDUAL=y is not None, **shared
        )
        gradient_kernel[grid](
            by_ptr=by_y_ptr if y is None else by_residual_ptr,
            by_x_ptr=by_x_ptr,
            by_weight_ptr=by_norm[0],
            by_bias_ptr=by_norm[1],
            MASK=relu and y is None,
            **shared,
        )
    return (
        shaped(by_x, x),
        by_x.new_empty(0) if by_residual is None else shaped(by_residual, x),
        by_weight,
        by_bias,
    )
