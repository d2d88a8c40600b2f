"""One-target softmax cross entropy against a memory, with the gradient from the same scores. Three launches.

1. Scores: one program a tile [BM, BN]. It keeps the tile's row maxima and sums, and e^{s - maximum} in DOT for
   launch 2, in a workspace of at most 32 MiB, which stays in L2; more columns go through it in turns of launches 1
   and 2. So each score is computed once and no B×C array exists. Without the workspace each would be computed
   twice: three products of B×C×D instead of two, and products are the limit at large B and C. The accumulators [B, D]
   are too large for registers: forming the gradient in launch 1 would move them through L2 once a tile, about twice
   what these launches move.
2. Gradient: a product of that workspace and the memory, summed over columns in registers. The target column is left
   out and added at the end as 1 - p from the sums: a confident row keeps a correct gradient in bfloat16. By then the
   program has all sums of its rows, and their losses.
3. Finish: one program a row takes the gradient through the L2 norm, and one more sums the losses.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from reid_fast.kernels import tiles

WORKSPACE = 32 << 20  # bytes


class Rows(NamedTuple):
    """What launches 1 and 2 leave for the last one."""

    losses: torch.Tensor  # [B] weighted
    factors: torch.Tensor  # [B] what the sum over `pulled` is multiplied by
    pulled: torch.Tensor | None  # [parts, B, D] Σ e^{s - top} memory - target · Σ e^{s - top}, both without the target


@triton.jit(do_not_specialize=["C", "first", "width"])
def score_kernel(
    x, memory, labels, spans, alive, exps, peaks, totals, targets, B, C, D, first, width, temperature,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
    NORMALIZE: tl.constexpr, HAS_SPANS: tl.constexpr, HAS_ALIVE: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    start = first + tl.program_id(1) * BN
    columns = start + tl.arange(0, BN)
    label = tl.load(labels + rows, mask=rows < B, other=-1)
    scale = tiles.row_scale(x, rows, B, D, BM, BK, NORMALIZE) / temperature
    score = tiles.score_tile(x, memory, rows, columns, B, C, D, BM, BN, BK, DOT) * scale[:, None]
    inside = tiles.span_mask(columns, spans, rows, B, HAS_SPANS, BM, BN, C)
    if HAS_ALIVE:
        inside = inside & (tl.load(alive + columns, mask=columns < C, other=0) != 0)[None, :]
    target = columns[None, :] == label[:, None]
    here = (label >= start) & (label < start + BN) & (label < C) & (rows < B)
    tl.store(targets + rows, tl.sum(tl.where(target, score, 0.0), axis=1), mask=here)
    peak = tl.max(tl.where(inside, score, float("-inf")), axis=1)
    shift = tl.where(peak == float("-inf"), 0.0, peak)  # a row without a column here: exp(-inf), not NaN
    e = tl.where(inside & (target == 0), tl.exp(score - shift[:, None]), 0.0)
    at = (start // BN) * B + rows
    tl.store(peaks + at, peak, mask=rows < B)
    tl.store(totals + at, tl.sum(e, axis=1), mask=rows < B)
    if GRAD:
        at = exps + rows[:, None].to(tl.int64) * width + (columns - first)[None, :]
        tl.store(at, e.to(DOT), mask=rows[:, None] < B)


@triton.jit
def write_losses(
    labels, weights, peaks, totals, targets, losses, factors, top, rows, B, C, count, temperature, epsilon, focal,
    HAS_WEIGHTS: tl.constexpr, HYBRID: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Loss and gradient factor of the rows of a tile; returns Σ e^{s - top} without the target."""
    rest = tiles.rest_of(peaks, totals, top, rows, count, B, BM)
    label = tl.load(labels + rows, mask=rows < B, other=-1)
    known = (label >= 0) & (label < C)
    # A label outside the memory must not pass for a loss.
    score = tl.where(known, tl.load(targets + rows, mask=rows < B, other=0.0), float("nan"))
    if HYBRID:
        rest += epsilon * tl.exp(-top)
    z = rest + tl.exp(score - top)
    loss = tl.log(z) + top - score
    factor = 1.0 / (z * temperature)
    if HYBRID:
        p, other = tl.exp(score - top) / z, rest / z
        log_p = tl.log(p + epsilon)
        safe = tl.maximum(other, 1e-38)
        modulation = tl.where(focal > 0, tl.exp(focal * tl.log(safe)), 1.0)
        loss = -modulation * log_p
        factor *= p * (modulation / (p + epsilon) - focal * modulation / safe * log_p)  # -p ∂loss/∂p
    weight = loss * 0 + 1.0 / B
    if HAS_WEIGHTS:
        weight = tl.load(weights + rows, mask=rows < B, other=0.0).to(tl.float32)
    tl.store(losses + rows, loss * weight, mask=rows < B)
    tl.store(factors + rows, factor * weight, mask=rows < B)
    return rest


@triton.jit(do_not_specialize=["C", "count"])
def loss_kernel(
    labels, weights, peaks, totals, targets, losses, factors, B, C, count, temperature, epsilon, focal,
    HAS_WEIGHTS: tl.constexpr, HYBRID: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Launch 2 where no gradient is asked for."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    top = tiles.top_of(peaks, rows, 0, count, B, BM)
    top = tl.where(top == float("-inf"), 0.0, top)
    write_losses(
        labels, weights, peaks, totals, targets, losses, factors, top, rows, B, C, count, temperature, epsilon, focal,
        HAS_WEIGHTS, HYBRID, BM,
    )  # fmt: skip


@triton.jit(do_not_specialize=["C", "first", "width", "before", "now", "count", "per_part"])
def gradient_kernel(
    memory, labels, weights, exps, peaks, totals, targets, losses, factors, pulled, B, C, D, first, width,
    before, now, count, per_part, temperature, epsilon, focal,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, DOT: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr, HYBRID: tl.constexpr,
):  # fmt: skip
    """One turn: the columns of tiles before..now-1 of `count`, of which each part takes `per_part`."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    part = tl.program_id(2)
    inside = (rows[:, None] < B) & (d[None, :] < D)
    out = pulled + (part * B + rows[:, None]).to(tl.int64) * D + d[None, :]
    old_top = tiles.top_of(peaks, rows, 0, before, B, BM)
    top = tl.maximum(old_top, tiles.top_of(peaks, rows, before, now, B, BM))
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.load(out, mask=inside & (before > 0), other=0.0) * tl.exp(old_top - top)[:, None]
    lowest = before + part * per_part
    for start in range(lowest * BN, tl.minimum(lowest + per_part, now) * BN, BK):
        columns = start + tl.arange(0, BK)
        gain = tl.exp(tl.load(peaks + (start // BN) * B + rows, mask=rows < B, other=0.0) - top)
        at = exps + rows[:, None].to(tl.int64) * width + (columns - first)[None, :]
        e = tl.load(at, mask=rows[:, None] < B, other=0.0).to(tl.float32) * gain[:, None]
        here = (columns[:, None] < C) & (d[None, :] < D)
        row = tl.load(memory + columns[:, None].to(tl.int64) * D + d[None, :], mask=here, other=0.0)
        total = tl.dot(e.to(DOT), row.to(DOT), total, input_precision="tf32x3")
    if (now == count) & (part == 0):
        # All programs of these rows in the first part write the same numbers.
        rest = write_losses(
            labels, weights, peaks, totals, targets, losses, factors, top, rows, B, C, count,
            temperature, epsilon, focal, HAS_WEIGHTS, HYBRID, BM,
        )  # fmt: skip
        label = tl.load(labels + rows, mask=rows < B, other=-1).to(tl.int64)
        here = (label >= 0)[:, None] & (label < C)[:, None] & (d[None, :] < D)
        target = tl.load(memory + label[:, None] * D + d[None, :], mask=here, other=0.0)
        total -= rest[:, None] * target.to(tl.float32)
    tl.store(out, total, mask=inside)


@triton.jit
def finish_row(
    x, factors, pulled, gradient, row, B, D, parts,
    BD: tl.constexpr, NORMALIZE: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """The gradient of one row; reads neither the memory nor any other row."""
    if GRAD:
        d = tl.arange(0, BD)
        h = tl.zeros([BD], tl.float32)
        for part in range(parts):
            h += tl.load(pulled + (part * B + row).to(tl.int64) * D + d, mask=d < D, other=0.0)
        x_row = tl.load(x + row.to(tl.int64) * D + d, mask=d < D, other=0.0).to(tl.float32)
        scale = 1.0
        if NORMALIZE:
            scale = 1.0 / tl.maximum(tl.sqrt(tl.sum(x_row * x_row, axis=0)), 1e-12)
        h = tiles.through_norm(h * tl.load(factors + row), x_row, scale, NORMALIZE)
        tl.store(gradient + row.to(tl.int64) * D + d, h, mask=d < D)


@triton.jit
def sum_losses(losses, loss, B, BB: tl.constexpr):
    row = tl.arange(0, BB)
    tl.store(loss, tl.sum(tl.load(losses + row, mask=row < B, other=0.0), axis=0))


@triton.jit(do_not_specialize=["parts"])
def finish_kernel(
    x, losses, factors, pulled, loss, gradient, B, D, parts,
    BB: tl.constexpr, BD: tl.constexpr, NORMALIZE: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if row < B:
        finish_row(x, factors, pulled, gradient, row, B, D, parts, BD, NORMALIZE, GRAD)
    else:
        sum_losses(losses, loss, B, BB)


def score(
    x: torch.Tensor, memory: torch.Tensor, labels: torch.Tensor, temperature: float, normalize: bool,
    spans: torch.Tensor | None, weights: torch.Tensor | None, alive: torch.Tensor | None,
    epsilon: float, focal: float, needs_grad: bool,
) -> Rows:  # fmt: skip
    """Launches 1 and 2, in as many turns as the workspace asks for; contiguous arguments."""
    (B, D), C = x.shape, memory.shape[0]
    sizes = tiles.plan(x, memory)
    BM, BN, BD = sizes["BM"], sizes["BN"], 128
    dtype, count = tiles.dot_type(x, memory), triton.cdiv(C, BN)
    turn = min(count, max(1, WORKSPACE // (B * BN * dtype.itemsize))) if needs_grad else count
    row_blocks, d_blocks = triton.cdiv(B, BM), triton.cdiv(D, BD)
    parts = max(1, min(turn, tiles.processors(x.device) // (row_blocks * d_blocks)))
    peaks, totals, targets = tiles.empty(x, count, B), tiles.empty(x, count, B), tiles.empty(x, B)
    exps = torch.empty((B, turn * BN), dtype=dtype, device=x.device) if needs_grad else None
    out = Rows(tiles.empty(x, B), tiles.empty(x, B), tiles.empty(x, parts, B, D) if needs_grad else None)
    kinds = {"HAS_WEIGHTS": weights is not None, "HYBRID": epsilon > 0 or focal > 0}
    for before in range(0, count, turn):
        now, first = min(count, before + turn), before * BN
        score_kernel[(row_blocks, now - before)](
            x, memory, labels, spans, alive, exps, peaks, totals, targets, B, C, D, first, turn * BN, temperature,
            NORMALIZE=normalize, HAS_SPANS=spans is not None, HAS_ALIVE=alive is not None, GRAD=needs_grad, **sizes,
        )  # fmt: skip
        if needs_grad:
            gradient_kernel[(row_blocks, d_blocks, parts)](
                memory, labels, weights, exps, peaks, totals, targets, *out, B, C, D, first, turn * BN,
                before, now, count, triton.cdiv(now - before, parts), temperature, epsilon, focal,
                BD=BD, **kinds, **sizes,
            )  # fmt: skip
    if not needs_grad:
        loss_kernel[(row_blocks,)](
            labels, weights, peaks, totals, targets, *out[:2], B, C, count, temperature, epsilon, focal,
            BM=BM, **kinds,
        )  # fmt: skip
    return out


def contrast(
    x: torch.Tensor, memory: torch.Tensor, labels: torch.Tensor, temperature: float, *, normalize: bool = True,
    spans: torch.Tensor | None = None, weights: torch.Tensor | None = None, alive: torch.Tensor | None = None,
    epsilon: float = 0.0, focal: float = 0.0, needs_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(loss, gradient [B, D] or [0]) in float32. Three launches while C fits one turn."""
    x, memory, labels = x.contiguous(), memory.contiguous(), labels.contiguous()
    B, D = x.shape
    rows = score(x, memory, labels, temperature, normalize, spans, weights, alive, epsilon, focal, needs_grad)
    loss, gradient = tiles.empty(x), tiles.empty(x, B, D) if needs_grad else tiles.empty(x, 0)
    finish_kernel[(B + 1,)](
        x, *rows, loss, gradient, B, D, len(rows.pulled) if needs_grad else 0, NORMALIZE=normalize, GRAD=needs_grad,
        BB=triton.next_power_of_2(B), BD=triton.next_power_of_2(D),
    )  # fmt: skip
    return loss, gradient
