"""Softmax cross entropy against a memory with a distribution as target: dense q, or smoothed one-hot rows.

Near its optimum p ≈ q, so p - q must be formed in float32 before anything is rounded: launch 1 finds the
softmax's maximum and sum, launch 2 streams the memory again for Σ_c (p_c·Σq - q_c) memory_c, launch 3 merges
the slices of it.
"""

import torch
import triton
import triton.language as tl

from reid_fast.kernels import tiles


@triton.jit
def target_tile(
    targets,
    labels,
    rows,
    columns,
    inside,
    spans,
    smoothing,
    B,
    C,
    HAS_SPANS: tl.constexpr,
    DENSE: tl.constexpr,
):
    """q of a tile, [BM, BN] float32, zero outside the row's span."""
    if DENSE:
        at = targets + rows[:, None].to(tl.int64) * C + columns[None, :]
        q = tl.load(at, mask=inside & (rows[:, None] < B), other=0.0).to(tl.float32)
    else:
        label = tl.load(labels + rows, mask=rows < B, other=-1)
        width = label * 0 + C
        if HAS_SPANS:
            start = tl.load(spans + 2 * rows, mask=rows < B, other=0)
            width = tl.load(spans + 2 * rows + 1, mask=rows < B, other=1) - start
        even = smoothing / width.to(tl.float32)
        q = tl.where(columns[None, :] == label[:, None], 1.0 - smoothing + even[:, None], even[:, None])
    return tl.where(inside, q, 0.0)


@triton.jit(do_not_specialize=["C", "per_slice"])
def statistics_kernel(
    x, memory, labels, targets, spans, statistics, B, C, D, per_slice, temperature, smoothing,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
    NORMALIZE: tl.constexpr, HAS_SPANS: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """statistics [4, slices, B]: the row's maximum, Σ e^{s - maximum}, Σ q and Σ q·s over one slice."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    part = tl.program_id(1)
    first = part * per_slice
    scale = tiles.row_scale(x, rows, B, D, BM, BK, NORMALIZE) / temperature
    peak = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    mass = tl.zeros([BM], tl.float32)
    cross = tl.zeros([BM], tl.float32)
    for start in range(first, tl.minimum(first + per_slice, C), BN):
        columns = start + tl.arange(0, BN)
        score = tiles.score_tile(x, memory, rows, columns, B, C, D, BM, BN, BK, DOT) * scale[:, None]
        inside = tiles.span_mask(columns, spans, rows, B, HAS_SPANS, BM, BN, C)
        q = target_tile(targets, labels, rows, columns, inside, spans, smoothing, B, C, HAS_SPANS, DENSE)
        mass += tl.sum(q, axis=1)
        cross += tl.sum(q * score, axis=1)
        score = tl.where(inside, score, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(score, axis=1))
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        total = total * tl.exp(peak - shift) + tl.sum(tl.exp(score - shift[:, None]), axis=1)
        peak = new_peak
    at = statistics + part * B + rows
    plane = tl.num_programs(1) * B
    tl.store(at, peak, mask=rows < B)
    tl.store(at + plane, total, mask=rows < B)
    tl.store(at + 2 * plane, mass, mask=rows < B)
    tl.store(at + 3 * plane, cross, mask=rows < B)


@triton.jit
def merge(statistics, rows, B, slices):
    """(log Σ e^s, Σ q, Σ q·s) of rows over all slices."""
    peak = tl.load(statistics + rows, mask=rows < B, other=0.0)
    for part in range(1, slices):
        peak = tl.maximum(peak, tl.load(statistics + part * B + rows, mask=rows < B, other=0.0))
    total = peak * 0
    mass = peak * 0
    cross = peak * 0
    plane = slices * B
    for part in range(slices):
        at = statistics + part * B + rows
        gain = tl.exp(tl.load(at, mask=rows < B, other=0.0) - peak)
        total += tl.load(at + plane, mask=rows < B, other=1.0) * gain
        mass += tl.load(at + 2 * plane, mask=rows < B, other=0.0)
        cross += tl.load(at + 3 * plane, mask=rows < B, other=0.0)
    return peak + tl.log(total), mass, cross


@triton.jit(do_not_specialize=["C", "per_slice", "slices"])
def gradient_kernel(
    x, memory, labels, targets, spans, statistics, partial, B, C, D, per_slice, slices, temperature,
    smoothing,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
    NORMALIZE: tl.constexpr, HAS_SPANS: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    part = tl.program_id(1)
    first = part * per_slice
    scale = tiles.row_scale(x, rows, B, D, BM, BK, NORMALIZE) / temperature
    log_z, mass, _ = merge(statistics, rows, B, slices)
    ones = log_z * 0 + 1
    out = partial + part.to(tl.int64) * B * D
    for start in range(first, tl.minimum(first + per_slice, C), BN):
        columns = start + tl.arange(0, BN)
        score = tiles.score_tile(x, memory, rows, columns, B, C, D, BM, BN, BK, DOT) * scale[:, None]
        inside = tiles.span_mask(columns, spans, rows, B, HAS_SPANS, BM, BN, C)
        q = target_tile(targets, labels, rows, columns, inside, spans, smoothing, B, C, HAS_SPANS, DENSE)
        p = tl.where(inside, tl.exp(score - log_z[:, None]), 0.0)
        by_score = p * mass[:, None] - q
        tiles.gradient_tile(out, by_score, ones, memory, rows, columns, start == first, B, C, D, BK, DOT)


@triton.jit(do_not_specialize=["slices"])
def finish_kernel(
    x, weights, statistics, partial, losses, gradient, B, D, slices, temperature,
    BD: tl.constexpr, NORMALIZE: tl.constexpr, HAS_WEIGHTS: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    log_z, mass, cross = merge(statistics, row, B, slices)
    weight = 1.0 / B
    if HAS_WEIGHTS:
        weight = tl.load(weights + row).to(tl.float32)
    tl.store(losses + row, (mass * log_z - cross) * weight)
    if GRAD:
        d = tl.arange(0, BD)
        h = tl.zeros([BD], tl.float32)
        for part in range(slices):
            h += tl.load(partial + (part * B + row) * D + d, mask=d < D, other=0.0)
        x_row = tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        scale = 1.0
        if NORMALIZE:
            scale = 1.0 / tl.maximum(tl.sqrt(tl.sum(x_row * x_row, axis=0)), 1e-12)
        h = tiles.through_norm(h * (weight / temperature), x_row, scale, NORMALIZE)
        tl.store(gradient + row * D + d, h, mask=d < D)


def contrast(
    x: torch.Tensor, memory: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor | None, temperature:
    float, *,
    normalize: bool = True, smoothing: float = 0.0, spans: torch.Tensor | None = None,
    weights: torch.Tensor | None = None, needs_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(loss, gradient [B, D] or [0]) in float32. Four launches, three without the gradient."""
    x, memory, labels = x.contiguous(), memory.contiguous(), labels.contiguous()
    targets = targets if targets is None else targets.contiguous()
    (B, D), C = x.shape, memory.shape[0]
    sizes = tiles.plan(x, memory) | {"BN": 64}  # the tile of q takes the registers of half a tile of scores
    row_blocks = triton.cdiv(B, sizes["BM"])
    slices, per_slice = tiles.split(C, sizes["BN"], row_blocks, x.device)
    statistics = tiles.empty(x, 4, slices, B)
    partial = tiles.empty(x, slices, B, D) if needs_grad else None
    losses, gradient = tiles.empty(x, B), tiles.empty(x, B, D) if needs_grad else tiles.empty(x, 0)
    kinds = {"NORMALIZE": normalize, "HAS_SPANS": spans is not None, "DENSE": targets is not None}
    grid = (row_blocks, slices)
    statistics_kernel[grid](
        x,
        memory,
        labels,
        targets,
        spans,
        statistics,
        B,
        C,
        D,
        per_slice,
        temperature,
        smoothing,
        **kinds,
        **sizes,
    )
    if needs_grad:
        gradient_kernel[grid](
            x, memory, labels, targets, spans, statistics, partial, B, C, D, per_slice, slices, temperature,
            smoothing,
            **kinds, **sizes,
        )  # fmt: skip
    finish_kernel[(B,)](
        x, weights, statistics, partial, losses, gradient, B, D, slices, temperature,
        BD=triton.next_power_of_2(D), NORMALIZE=normalize, HAS_WEIGHTS=weights is not None, GRAD=needs_grad,
    )  # fmt: skip
    return losses.sum(), gradient
