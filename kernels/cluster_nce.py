"""One-target softmax cross entropy against a memory, with the gradient in the same pass over the memory.

Launch 1 streams the memory: each program owns BM rows and a slice of the columns, keeps the row's running
maximum and sum as in online softmax, and accumulates Σ_c e^{s_c - peak} memory_c. The target column is left
out of both, so that launch 2 can form 1 - p without cancellation: a confident row keeps a correct gradient in
bfloat16. Launch 2 merges the slices, one program a row, and takes the gradient through the L2 norm.
"""

import torch
import triton
import triton.language as tl

from reid_fast.kernels import tiles


@triton.jit(do_not_specialize=["C", "per_slice"])
def stream_kernel(
    x, memory, labels, spans, alive, peaks, totals, partial, B, C, D, per_slice, temperature,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
    NORMALIZE: tl.constexpr, HAS_SPANS: tl.constexpr, HAS_ALIVE: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    part = tl.program_id(1)
    first = part * per_slice
    label = tl.load(labels + rows, mask=rows < B, other=-1)
    scale = tiles.row_scale(x, rows, B, D, BM, BK, NORMALIZE) / temperature
    out = partial
    if GRAD:
        out += part.to(tl.int64) * B * D
    peak = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    for start in range(first, tl.minimum(first + per_slice, C), BN):
        columns = start + tl.arange(0, BN)
        score = tiles.score_tile(x, memory, rows, columns, B, C, D, BM, BN, BK, DOT) * scale[:, None]
        inside = tiles.span_mask(columns, spans, rows, B, HAS_SPANS, BM, BN, C) & (
            columns[None, :] != label[:, None]
        )
        if HAS_ALIVE:
            inside = inside & (tl.load(alive + columns, mask=columns < C, other=0) != 0)[None, :]
        score = tl.where(inside, score, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(score, axis=1))
        shift = tl.where(
            new_peak == float("-inf"), 0.0, new_peak
        )  # a row without a column yet: exp(-inf), not NaN
        p = tl.exp(score - shift[:, None])
        keep = tl.exp(peak - shift)
        total = total * keep + tl.sum(p, axis=1)
        if GRAD:
            tiles.gradient_tile(out, p, keep, memory, rows, columns, start == first, B, C, D, BK, DOT)
        peak = new_peak
    tl.store(peaks + part * B + rows, peak, mask=rows < B)
    tl.store(totals + part * B + rows, total, mask=rows < B)


@triton.jit
def merge(peaks, totals, partial, row, d, slices, B, D, GRAD: tl.constexpr, BD: tl.constexpr):
    """(maximum, sum, Σ e^{s-maximum} memory) of one row over all slices."""
    peak = float("-inf")
    total = 0.0
    weighted = tl.zeros([BD], tl.float32)
    for part in range(slices):
        part_peak = tl.load(peaks + part * B + row)
        new_peak = tl.maximum(peak, part_peak)
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        keep, gain = tl.exp(peak - shift), tl.exp(part_peak - shift)
        total = total * keep + tl.load(totals + part * B + row) * gain
        if GRAD:
            at = partial + (part * B + row) * D + d  # row is int64
            weighted = weighted * keep + tl.load(at, mask=d < D, other=0.0) * gain
        peak = new_peak
    return peak, total, weighted


@triton.jit
def row_loss(p, rest, z, top, score, epsilon, focal, HYBRID: tl.constexpr):
    """(loss, -p·dloss/dp) of one row; `rest` is 1 - p."""
    if HYBRID:
        log_p = tl.log(p + epsilon)
        safe = tl.maximum(rest, 1e-38)
        modulation = tl.where(focal > 0, tl.exp(focal * tl.log(safe)), 1.0)
        loss = -modulation * log_p
        slope = p * (modulation / (p + epsilon) - focal * modulation / safe * log_p)
    else:
        loss = tl.log(z) + top - score
        slope = 1.0
    return loss, slope


@triton.jit(do_not_specialize=["C", "slices"])
def finish_kernel(
    x, memory, labels, weights, peaks, totals, partial, losses, gradient, B, C, D, slices, temperature,
    epsilon, focal,
    BD: tl.constexpr, NORMALIZE: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HYBRID: tl.constexpr, GRAD:
    tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    label = tl.load(labels + row).to(tl.int64)
    known = (label >= 0) & (label < C)
    x_row = tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    target = tl.load(memory + label * D + d, mask=(d < D) & known, other=0.0).to(tl.float32)
    scale = 1.0
    if NORMALIZE:
        scale = 1.0 / tl.maximum(tl.sqrt(tl.sum(x_row * x_row, axis=0)), 1e-12)
    # A label outside the memory must not pass for a loss.
    score = tl.where(known, tl.sum(x_row * target, axis=0) * scale / temperature, float("nan"))
    peak, total, weighted = merge(peaks, totals, partial, row, d, slices, B, D, GRAD, BD)
    top = tl.maximum(peak, score, propagate_nan=tl.PropagateNan.ALL)
    rest = total * tl.exp(peak - top)
    if HYBRID:
        rest += epsilon * tl.exp(-top)
    z = rest + tl.exp(score - top)
    loss, slope = row_loss(tl.exp(score - top) / z, rest / z, z, top, score, epsilon, focal, HYBRID)
    weight = 1.0 / B
    if HAS_WEIGHTS:
        weight = tl.load(weights + row).to(tl.float32)
    tl.store(losses + row, loss * weight)
    if GRAD:
        h = (weighted * tl.exp(peak - top) - rest * target) * (slope * weight / z / temperature)
        tl.store(gradient + row * D + d, tiles.through_norm(h, x_row, scale, NORMALIZE), mask=d < D)


def contrast(
    x: torch.Tensor, memory: torch.Tensor, labels: torch.Tensor, temperature: float, *, normalize: bool =
    True,
    spans: torch.Tensor | None = None, weights: torch.Tensor | None = None, alive: torch.Tensor | None = None,
    epsilon: float = 0.0, focal: float = 0.0, needs_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(weighted losses [B], gradient [B, D] or [0]) in float32. Two launches."""
    x, memory, labels = x.contiguous(), memory.contiguous(), labels.contiguous()
    (B, D), C = x.shape, memory.shape[0]
    sizes = tiles.plan(x, memory)
    row_blocks = triton.cdiv(B, sizes["BM"])
    slices, per_slice = tiles.split(C, sizes["BN"], row_blocks, x.device)
    peaks, totals = tiles.empty(x, slices, B), tiles.empty(x, slices, B)
    partial = tiles.empty(x, slices, B, D) if needs_grad else None
    losses, gradient = tiles.empty(x, B), tiles.empty(x, B, D) if needs_grad else tiles.empty(x, 0)
    stream_kernel[(row_blocks, slices)](
        x, memory, labels, spans, alive, peaks, totals, partial, B, C, D, per_slice, temperature,
        NORMALIZE=normalize, HAS_SPANS=spans is not None, HAS_ALIVE=alive is not None, GRAD=needs_grad,
        **sizes,
    )  # fmt: skip
    finish_kernel[(B,)](
        x, memory, labels, weights, peaks, totals, partial, losses, gradient, B, C, D, slices,
        temperature, epsilon, focal, BD=triton.next_power_of_2(D), NORMALIZE=normalize,
        HAS_WEIGHTS=weights is not None, HYBRID=epsilon > 0 or focal > 0, GRAD=needs_grad,
    )  # fmt: skip
    return losses, gradient
