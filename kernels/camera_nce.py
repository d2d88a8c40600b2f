"""Contrast of each feature with all proxies of its identity against the hardest proxies of others.

Launch 1 streams the memory and keeps, for each row, the K best negatives of a slice of the columns as sorted
int64 keys (score above, column below, so that equal scores prefer the lower column). Launch 2, one program a
row, merges the slices, walks the positives and those negatives, and has the loss and the gradient: only these
rows are read again.
"""

import torch
import triton
import triton.language as tl

from reid_fast.kernels import tiles

LAST = tl.constexpr(0x7FFFFFFF)
NONE = tl.constexpr(-(2**63))


@triton.jit
def pack(score, columns):
    """Keys that sort by score, then by lower column."""
    bits = score.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ LAST, bits)
    return (ordered.to(tl.int64) << 32) | (columns ^ LAST).to(tl.int64)


@triton.jit
def best_of(a, b, ROWS: tl.constexpr, K: tl.constexpr):
    """The K largest of two [ROWS, K] sets of keys."""
    return tl.topk(tl.reshape(tl.join(a, b), [ROWS, 2 * K]), K)


@triton.jit(do_not_specialize=["C", "per_slice"])
def hardest_kernel(
    x, memory, memory_labels, labels, keys, B, C, D, per_slice,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """keys [slices, B, BN]: the best negatives of a slice; neither ‖x‖ nor τ changes their order."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    part = tl.program_id(1)
    first = part * per_slice
    label = tl.load(labels + rows, mask=rows < B, other=-1)
    best = tl.full([BM, BN], NONE, tl.int64)
    for start in range(first, tl.minimum(first + per_slice, C), BN):
        columns = start + tl.arange(0, BN)
        score = tiles.score_tile(x, memory, rows, columns, B, C, D, BM, BN, BK, DOT)
        owner = tl.load(memory_labels + columns, mask=columns < C, other=-1)
        negative = (columns < C)[None, :] & (owner[None, :] != label[:, None])
        best = best_of(best, tl.where(negative, pack(score, columns[None, :]), NONE), BM, BN)
    at = keys + (part.to(tl.int64) * B + rows[:, None]) * BN + tl.arange(0, BN)[None, :]
    tl.store(at, best, mask=rows[:, None] < B)


@triton.jit
def absorb(column, memory, x_row, scale, d, D, peak, total, pulled):
    """Fold one memory row into the running softmax; also returns its score and the row."""
    row = tl.load(memory + column.to(tl.int64) * D + d, mask=d < D, other=0.0).to(tl.float32)
    score = tl.sum(row * x_row, axis=0) * scale
    new_peak = tl.maximum(peak, score)
    keep, gain = tl.exp(peak - new_peak), tl.exp(score - new_peak)
    return new_peak, total * keep + gain, pulled * keep + row * gain, score, row


@triton.jit(do_not_specialize=["C", "slices"])
def finish_kernel(
    x, memory, memory_labels, labels, weights, keys, losses, gradient, B, C, D, slices, negatives,
    temperature,
    K: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr,
    NORMALIZE: tl.constexpr, HAS_WEIGHTS: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    x_row = tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    scale = 1.0
    if NORMALIZE:
        scale = 1.0 / tl.maximum(tl.sqrt(tl.sum(x_row * x_row, axis=0)), 1e-12)
    by_score = scale / temperature
    label = tl.load(labels + row)
    peak = float("-inf")
    total = 0.0
    pulled = tl.zeros([BD], tl.float32)  # Σ e^{s - peak} memory over positives and negatives
    wanted = tl.zeros([BD], tl.float32)  # Σ memory over positives
    score_sum = 0.0
    count = 0
    for start in range(0, C, BC):
        columns = start + tl.arange(0, BC)
        owner = tl.load(memory_labels + columns, mask=columns < C, other=-1)
        mine = (owner == label) & (columns < C)
        column = tl.min(tl.where(mine, columns, LAST), axis=0)
        while column < LAST:
            peak, total, pulled, score, target = absorb(column, memory, x_row, by_score, d, D, peak, total, pulled)
            wanted += target
            score_sum += score
            count += 1
            column = tl.min(tl.where(mine & (columns > column), columns, LAST), axis=0)
    k = tl.arange(0, K)
    best = tl.full([1, K], NONE, tl.int64)
    for part in range(slices):
        best = best_of(best, tl.load(keys + (part * B + row) * K + k)[None, :], 1, K)
    best = tl.reshape(best, [K])
    for i in range(negatives):
        key = tl.max(tl.where(k == i, best, NONE), axis=0)
        if key != NONE:
            column = (key & LAST).to(tl.int32) ^ LAST
            peak, total, pulled, score, target = absorb(column, memory, x_row, by_score, d, D, peak, total, pulled)
    weight = 1.0 / B
    if HAS_WEIGHTS:
        weight = tl.load(weights + row).to(tl.float32)
    tl.store(losses + row, (peak + tl.log(total) - score_sum / count) * weight)
    if GRAD:
        h = (pulled / total - wanted / count) * (weight / temperature)
        tl.store(gradient + row * D + d, tiles.through_norm(h, x_row, scale, NORMALIZE), mask=d < D)


def contrast(
    x: torch.Tensor, memory: torch.Tensor, memory_labels: torch.Tensor, labels: torch.Tensor, temperature:
    float,
    negatives: int, weights: torch.Tensor | None = None, normalize: bool = True, needs_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(loss, gradient [B, D] or [0]) in float32. Three launches."""
    x, memory, labels = x.contiguous(), memory.contiguous(), labels.contiguous()
    memory_labels = memory_labels.contiguous()
    (B, D), C = x.shape, memory.shape[0]
    K = max(16, triton.next_power_of_2(negatives))
    # One tile holds as many columns as the answer: the sort of both together is as narrow as it can be.
    sizes = tiles.plan(x, memory) | {"BM": 16, "BN": K, "num_warps": 4 if K <= 64 else 8}
    row_blocks = triton.cdiv(B, sizes["BM"])
    slices, per_slice = tiles.split(C, K, row_blocks, x.device)
    keys = torch.empty((slices, B, K), dtype=torch.int64, device=x.device)
    losses, gradient = tiles.empty(x, B), tiles.empty(x, B, D) if needs_grad else tiles.empty(x, 0)
    hardest_kernel[(row_blocks, slices)](x, memory, memory_labels, labels, keys, B, C, D, per_slice, **sizes)
    finish_kernel[(B,)](
        x, memory, memory_labels, labels, weights, keys, losses, gradient, B, C, D, slices, negatives,
        temperature,
        K=K, BD=triton.next_power_of_2(D), BC=1024, NORMALIZE=normalize, HAS_WEIGHTS=weights is not None,
        GRAD=needs_grad,
    )  # fmt: skip
    return losses.sum(), gradient
