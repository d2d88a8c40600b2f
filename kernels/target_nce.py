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
    targets_ptr,  # [B, C] q, with DENSE
    labels_ptr,  # [B] int64, otherwise
    spans_ptr,  # [B, 2] int64, with HAS_SPANS
    rows,  # [BM]
    columns,  # [BN]
    inside,  # [BM, BN] the columns of each row's softmax
    smoothing,  # ε of the smoothed one-hot rows
    B,
    C,
    HAS_SPANS: tl.constexpr,
    DENSE: tl.constexpr,
):
    """q of a tile, [BM, BN] float32, zero outside the row's span."""
    if DENSE:
        at = targets_ptr + rows[:, None].to(tl.int64) * C + columns[None, :]
        q = tl.load(at, mask=inside & (rows[:, None] < B), other=0.0).to(tl.float32)
    else:
        label = tl.load(labels_ptr + rows, mask=rows < B, other=-1)
        even = smoothing / C
        if HAS_SPANS:
            start, stop = tiles.load_span(spans_ptr, rows, B, C)
            even = (smoothing / (stop - start).to(tl.float32))[:, None]
        q = tl.where(columns[None, :] == label[:, None], 1.0 - smoothing + even, even)
    return tl.where(inside, q, 0.0)


@triton.jit(do_not_specialize=["C", "per_slice"])
def statistics_kernel(
    x_ptr,  # [B, D] features
    memory_ptr,  # [C, D]
    labels_ptr,  # [B] int64, without DENSE
    targets_ptr,  # [B, C] q, with DENSE
    spans_ptr,  # [B, 2] int64, with HAS_SPANS
    statistics_ptr,  # [4, slices, B] out: maximum, Σ e^{logit - maximum}, Σ q and Σ q·logit over one slice
    B,
    C,
    D,
    per_slice,  # columns of a slice
    temperature,
    smoothing,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_SPANS: tl.constexpr,
    DENSE: tl.constexpr,
):
    """Launch 1."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    part = tl.program_id(1)
    first = part * per_slice
    scale = tiles.row_scale(x_ptr, rows, B, D, BM, BK, NORMALIZE) / temperature
    running_max = tl.full([BM], float("-inf"), tl.float32)
    running_sum = tl.zeros([BM], tl.float32)
    mass = tl.zeros([BM], tl.float32)
    cross = tl.zeros([BM], tl.float32)
    for start in range(first, tl.minimum(first + per_slice, C), BN):
        columns = start + tl.arange(0, BN)
        logits = tiles.product_tile(x_ptr, memory_ptr, rows, columns, B, C, D, BM, BN, BK, DOT) * scale[:, None]
        inside = tiles.span_mask(columns, spans_ptr, rows, B, C, HAS_SPANS, BM, BN)
        q = target_tile(targets_ptr, labels_ptr, spans_ptr, rows, columns, inside, smoothing, B, C, HAS_SPANS, DENSE)
        mass += tl.sum(q, axis=1)
        cross += tl.sum(q * logits, axis=1)
        logits = tl.where(inside, logits, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(logits, axis=1))
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        running_sum = running_sum * tl.exp(running_max - shift) + tl.sum(tl.exp(logits - shift[:, None]), axis=1)
        running_max = new_max
    at = statistics_ptr + part * B + rows
    plane = tl.num_programs(1) * B
    tl.store(at, running_max, mask=rows < B)
    tl.store(at + plane, running_sum, mask=rows < B)
    tl.store(at + 2 * plane, mass, mask=rows < B)
    tl.store(at + 3 * plane, cross, mask=rows < B)


@triton.jit
def merge(
    statistics_ptr,  # [4, slices, B] from launch 1
    rows,  # [BM], or the number of one row
    B,
    slices,
):
    """(log Σ e^logit, Σ q, Σ q·logit) of rows over all slices."""
    row_max = tl.load(statistics_ptr + rows, mask=rows < B, other=0.0)
    for part in range(1, slices):
        row_max = tl.maximum(row_max, tl.load(statistics_ptr + part * B + rows, mask=rows < B, other=0.0))
    zero = row_max * 0  # of the shape of `rows`, which may be a scalar: there tl.zeros makes none
    row_sum, mass, cross = zero, zero, zero
    plane = slices * B
    for part in range(slices):
        at = statistics_ptr + part * B + rows
        rescale = tl.exp(tl.load(at, mask=rows < B, other=0.0) - row_max)
        row_sum += tl.load(at + plane, mask=rows < B, other=1.0) * rescale
        mass += tl.load(at + 2 * plane, mask=rows < B, other=0.0)
        cross += tl.load(at + 3 * plane, mask=rows < B, other=0.0)
    return row_max + tl.log(row_sum), mass, cross


@triton.jit(do_not_specialize=["C", "per_slice", "slices"])
def gradient_kernel(
    x_ptr,  # [B, D] features
    memory_ptr,  # [C, D]
    labels_ptr,  # [B] int64, without DENSE
    targets_ptr,  # [B, C] q, with DENSE
    spans_ptr,  # [B, 2] int64, with HAS_SPANS
    statistics_ptr,  # [4, slices, B] from launch 1
    partial_ptr,  # [slices, B, D] float32 out: Σ_c (p_c·Σq - q_c) memory_c over one slice
    B,
    C,
    D,
    per_slice,  # columns of a slice
    slices,
    temperature,
    smoothing,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_SPANS: tl.constexpr,
    DENSE: tl.constexpr,
):
    """Launch 2."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    part = tl.program_id(1)
    first = part * per_slice
    scale = tiles.row_scale(x_ptr, rows, B, D, BM, BK, NORMALIZE) / temperature
    log_z, mass, _ = merge(statistics_ptr, rows, B, slices)
    out = partial_ptr + part.to(tl.int64) * B * D
    for start in range(first, tl.minimum(first + per_slice, C), BN):
        columns = start + tl.arange(0, BN)
        logits = tiles.product_tile(x_ptr, memory_ptr, rows, columns, B, C, D, BM, BN, BK, DOT) * scale[:, None]
        inside = tiles.span_mask(columns, spans_ptr, rows, B, C, HAS_SPANS, BM, BN)
        q = target_tile(targets_ptr, labels_ptr, spans_ptr, rows, columns, inside, smoothing, B, C, HAS_SPANS, DENSE)
        p = tl.where(inside, tl.exp(logits - log_z[:, None]), 0.0)
        by_logits = p * mass[:, None] - q
        tiles.add_gradient_tile(out, by_logits, memory_ptr, rows, columns, start == first, B, C, D, BK, DOT)


@triton.jit(do_not_specialize=["C", "slices"])
def finish_kernel(
    x_ptr,  # [B, D] features
    labels_ptr,  # [B] int64
    spans_ptr,  # [B, 2] int64, with HAS_SPANS
    weights_ptr,  # [B], with HAS_WEIGHTS
    statistics_ptr,  # [4, slices, B] from launch 1
    partial_ptr,  # [slices, B, D] from launch 2, with GRAD
    losses_ptr,  # [B] out: weighted
    gradient_ptr,  # [B, D] out, with GRAD
    B,
    C,
    D,
    slices,
    temperature,
    BD: tl.constexpr,  # at least D
    NORMALIZE: tl.constexpr,
    DENSE: tl.constexpr,
    HAS_SPANS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    GRAD: tl.constexpr,
):
    """Launch 3, one program a row."""
    row = tl.program_id(0).to(tl.int64)
    log_z, mass, cross = merge(statistics_ptr, row, B, slices)
    weight = tiles.row_weight(weights_ptr, labels_ptr, None, row, B, 0, False, HAS_WEIGHTS)
    label = tl.load(labels_ptr + row)
    if not DENSE:
        start, stop = 0, C
        if HAS_SPANS:
            start, stop = tiles.load_span(spans_ptr, row, B, C)
        # A label outside its row's columns must not pass for a loss.
        weight = tl.where((label == -1) | ((label >= start) & (label < stop)), weight, float("nan"))
    tl.store(losses_ptr + row, tl.where(label == -1, 0.0, (mass * log_z - cross) * weight))
    if GRAD:
        d = tl.arange(0, BD)
        h = tl.zeros([BD], tl.float32)
        for part in range(slices):
            h += tl.load(partial_ptr + (part * B + row) * D + d, mask=d < D, other=0.0)
        x = tl.load(x_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        scale = 1.0
        if NORMALIZE:
            scale = 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, axis=0)), 1e-12)
        h = tl.where(label == -1, 0.0, h * (weight / temperature))
        h = tiles.through_norm(h, x, scale, NORMALIZE)
        tl.store(gradient_ptr + row * D + d, h, mask=d < D)


def target_nce(
    x: torch.Tensor,
    memory: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    normalize: bool,
    smoothing: float,
    targets: torch.Tensor | None,
    spans: torch.Tensor | None,
    weights: torch.Tensor | None,
    needs_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, gradient [B, D] or [0]) in float32. Four launches, three without the gradient."""
    (B, D), C = x.shape, memory.shape[0]
    sizes = tiles.plan(x, memory) | {"BN": 64}  # the tile of q takes the registers of half a tile of logits
    row_blocks = triton.cdiv(max(1, B), sizes["BM"])
    slices, per_slice = tiles.split(max(1, C), sizes["BN"], row_blocks, x.device)
    statistics, losses = tiles.empty(x, 4, slices, B), tiles.empty(x, B)
    partial = tiles.empty(x, slices, B, D) if needs_grad else None
    gradient = tiles.empty(x, *x.shape) if needs_grad else tiles.empty(x, 0)
    common = {
        "x_ptr": x,
        "labels_ptr": labels,
        "spans_ptr": spans,
        "statistics_ptr": statistics,
        "B": B,
        "C": C,
        "D": D,
        "temperature": temperature,
        "NORMALIZE": normalize,
        "HAS_SPANS": spans is not None,
        "DENSE": targets is not None,
    }
    streamed = {
        "memory_ptr": memory,
        "targets_ptr": targets,
        "per_slice": per_slice,
        "smoothing": smoothing,
        **common,
    }
    statistics_kernel[(row_blocks, slices)](**streamed, **sizes)
    if needs_grad:
        gradient_kernel[(row_blocks, slices)](partial_ptr=partial, slices=slices, **streamed, **sizes)
    finish_kernel[(B,)](
        weights_ptr=weights,
        partial_ptr=partial,
        losses_ptr=losses,
        gradient_ptr=gradient,
        slices=slices,
        BD=triton.next_power_of_2(D),
        HAS_WEIGHTS=weights is not None,
        GRAD=needs_grad,
        **common,
    )
    return losses.sum(), gradient
