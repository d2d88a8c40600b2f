"""Attention that each member of a cluster receives from the others; all clusters at once, ragged, never n×n in memory.

Rows of all clusters lie one after another. A program takes BM rows of them, whatever clusters they belong to, and
streams the rows from the first of these clusters' starts to the last one's stop, masked to equal clusters: no padding,
no table of blocks, and a grid that depends on N alone. q and k are [heads, N, D]; i is the row that attends (query), j
the one attended to (key), s_ij = scale · q_i·k_j, A = softmax over j ≠ i.
"""

import torch
import triton
import triton.language as tl

from reid_fast.kernels import tiles


@triton.jit
def extent(starts, stops, rows, N):
    """The rows of all clusters that a tile touches: [first, last)."""
    return (
        tl.min(tl.load(starts + rows, mask=rows < N, other=N), axis=0),
        tl.max(tl.load(stops + rows, mask=rows < N, other=0), axis=0),
    )


@triton.jit
def pair_mask(starts, rows, others, N):
    """Members of one cluster that are not the same member, [BM, BN]."""
    start = tl.load(starts + rows, mask=rows < N, other=-1)
    other = tl.load(starts + others, mask=others < N, other=-2)
    return (start[:, None] == other[None, :]) & (rows[:, None] != others[None, :])


@triton.jit(do_not_specialize=["N"])
def log_sum_kernel(
    q, k, scale, starts, stops, log_z, N, D,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """log_z [heads, N]: log Σ_j e^{s_ij}, -inf where a cluster has one member."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    head = tl.program_id(1).to(tl.int64) * N
    gain = tl.load(scale)
    peak = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    first, last = extent(starts, stops, rows, N)
    for start in range(first, last, BN):
        others = start + tl.arange(0, BN)
        score = tiles.score_tile(q + head * D, k + head * D, rows, others, N, N, D, BM, BN, BK, DOT) * gain
        score = tl.where(pair_mask(starts, rows, others, N), score, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(score, axis=1))
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        total = total * tl.exp(peak - shift) + tl.sum(tl.exp(score - shift[:, None]), axis=1)
        peak = new_peak
    some = total > 0
    log = tl.where(some, peak + tl.log(tl.where(some, total, 1.0)), float("-inf"))
    tl.store(log_z + head + rows, log, mask=rows < N)


@triton.jit
def attention_tile(
    q, k, gain, starts, log_z, head, rows, others, N, D, KEYS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A of a tile, [BM, BN]: rows attend to others, or with KEYS are attended to by them."""
    if KEYS:
        score = tiles.score_tile(k + head * D, q + head * D, rows, others, N, N, D, BM, BN, BK, DOT) * gain
        score -= tl.load(log_z + head + others, mask=others < N, other=0.0)[None, :]
    else:
        score = tiles.score_tile(q + head * D, k + head * D, rows, others, N, N, D, BM, BN, BK, DOT) * gain
        score -= tl.load(log_z + head + rows, mask=rows < N, other=0.0)[:, None]
    return tl.where(pair_mask(starts, rows, others, N), tl.exp(score), 0.0)


@triton.jit(do_not_specialize=["N"])
def sum_kernel(
    q, k, scale, starts, stops, log_z, by_weight, out, N, D, KEYS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """out [heads, N]: with KEYS Σ_i A_ij, else Σ_j A_ij · by_weight_j."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    head = tl.program_id(1).to(tl.int64) * N
    gain = tl.load(scale)
    total = tl.zeros([BM], tl.float32)
    first, last = extent(starts, stops, rows, N)
    for start in range(first, last, BN):
        others = start + tl.arange(0, BN)
        a = attention_tile(q, k, gain, starts, log_z, head, rows, others, N, D, KEYS, BM, BN, BK, DOT)
        if not KEYS:
            a *= tl.load(by_weight + others, mask=others < N, other=0.0)[None, :]
        total += tl.sum(a, axis=1)
    tl.store(out + head + rows, total, mask=rows < N)


@triton.jit(do_not_specialize=["N"])
def gradient_kernel(
    q, k, scale, starts, stops, log_z, by_weight, mean, out, N, D, KEYS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out [heads, N, D]: scale · Σ ∂L/∂s_ij times k_j (gradient of q), or with KEYS times q_i (gradient of k).

    ∂L/∂s_ij = A_ij (by_weight_j - mean_i), mean_i = Σ_j A_ij by_weight_j.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    head = tl.program_id(1).to(tl.int64) * N
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    gain = tl.load(scale)
    partner = q if KEYS else k
    total = tl.zeros([BM, BD], tl.float32)
    first, last = extent(starts, stops, rows, N)
    for start in range(first, last, BN):
        others = start + tl.arange(0, BN)
        a = attention_tile(q, k, gain, starts, log_z, head, rows, others, N, D, KEYS, BM, BN, BK, DOT)
        queries, keys = (others, rows) if KEYS else (rows, others)
        push = tl.load(by_weight + keys, mask=keys < N, other=0.0)
        pull = tl.load(mean + head + queries, mask=queries < N, other=0.0)
        a *= (push[:, None] - pull[None, :]) if KEYS else (push[None, :] - pull[:, None])
        inside = (others[:, None] < N) & (d[None, :] < D)
        row = tl.load(partner + (head + others[:, None]) * D + d[None, :], mask=inside, other=0.0)
        total = tl.dot(a.to(DOT), row.to(DOT), total, input_precision="tf32x3")
    at = out + (head + rows[:, None]) * D + d[None, :]
    tl.store(at, total * gain, mask=(rows[:, None] < N) & (d[None, :] < D))


def _plan(q: torch.Tensor) -> dict:
    sizes = tiles.plan(q, q)
    return sizes | {"BM": min(32, sizes["BM"]), "BN": 32, "BK": max(32, sizes["BK"]), "num_warps": 4}


def forward(
    q: torch.Tensor, k: torch.Tensor, scale: torch.Tensor, starts: torch.Tensor, stops: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Σ_i A_ij, log_z), both [heads, N]. Two launches."""
    heads, N, D = q.shape
    sizes = _plan(q)
    log_z, received = tiles.empty(q, heads, N), tiles.empty(q, heads, N)
    grid = (triton.cdiv(N, sizes["BM"]), heads)
    log_sum_kernel[grid](q, k, scale, starts, stops, log_z, N, D, **sizes)
    sum_kernel[grid](q, k, scale, starts, stops, log_z, None, received, N, D, KEYS=True, **sizes)
    return received, log_z


def backward(
    q: torch.Tensor, k: torch.Tensor, scale: torch.Tensor, starts: torch.Tensor, stops: torch.Tensor,
    log_z: torch.Tensor, by_weight: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of q and k, [heads, N, D] float32, from ∂L/∂A_ij = by_weight_j. Three launches."""
    heads, N, D = q.shape
    sizes = _plan(q)
    BD = min(64, max(16, triton.next_power_of_2(D)))
    mean, by_q, by_k = tiles.empty(q, heads, N), tiles.empty(q, *q.shape), tiles.empty(q, *q.shape)
    grid = (triton.cdiv(N, sizes["BM"]), heads)
    sum_kernel[grid](q, k, scale, starts, stops, log_z, by_weight, mean, N, D, KEYS=False, **sizes)
    for out, KEYS in ((by_q, False), (by_k, True)):
        gradient_kernel[(*grid, triton.cdiv(D, BD))](
            q, k, scale, starts, stops, log_z, by_weight, mean, out, N, D, KEYS=KEYS, BD=BD, **sizes
        )
    return by_q, by_k
