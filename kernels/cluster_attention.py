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
def extent(
    starts_ptr,  # [N] int64, the first row of each row's cluster
    stops_ptr,  # [N] int64, the first one behind it
    rows,  # [BM]
    N,
):
    """The rows of all clusters that a tile touches: [first, last), never out of 0..N-1."""
    first = tl.min(tl.load(starts_ptr + rows, mask=rows < N, other=N), axis=0)
    last = tl.max(tl.load(stops_ptr + rows, mask=rows < N, other=0), axis=0)
    return tl.maximum(first, 0).to(tl.int32), tl.minimum(last, N).to(tl.int32)


@triton.jit
def pair_mask(
    starts_ptr,  # [N] int64, the first row of each row's cluster
    stops_ptr,  # [N] int64, the first one behind it
    rows,  # [BM]
    others,  # [BN]
    N,
):
    """Members of one cluster that are not the same member, [BM, BN]."""
    start = tl.load(starts_ptr + rows, mask=rows < N, other=0).to(tl.int32)
    stop = tl.minimum(tl.load(stops_ptr + rows, mask=rows < N, other=0), N).to(tl.int32)
    other = others[None, :]
    return (other >= start[:, None]) & (other < stop[:, None]) & (other != rows[:, None])


@triton.jit(do_not_specialize=["N"])
def log_sum_kernel(
    q_ptr,  # [heads, N, D]
    k_ptr,  # [heads, N, D]
    scale_ptr,  # [] float32
    starts_ptr,  # [N] int64, the first row of each row's cluster
    stops_ptr,  # [N] int64, the first one behind it
    log_z_ptr,  # [heads, N] out: log Σ_j e^{s_ij}, -inf where a cluster has one member
    N,
    D,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
):
    """The normaliser of each row's softmax."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    head = tl.program_id(1).to(tl.int64) * N
    scale = tl.load(scale_ptr)
    running_max = tl.full([BM], float("-inf"), tl.float32)
    running_sum = tl.zeros([BM], tl.float32)
    first, last = extent(starts_ptr, stops_ptr, rows, N)
    for start in range(first, last, BN):
        others = start + tl.arange(0, BN)
        logits = tiles.product_tile(q_ptr + head * D, k_ptr + head * D, rows, others, N, N, D, BM, BN, BK, DOT) * scale
        logits = tl.where(pair_mask(starts_ptr, stops_ptr, rows, others, N), logits, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(logits, axis=1))
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        running_sum = running_sum * tl.exp(running_max - shift) + tl.sum(tl.exp(logits - shift[:, None]), axis=1)
        running_max = new_max
    some = running_sum > 0
    log_z = tl.where(some, running_max + tl.log(tl.where(some, running_sum, 1.0)), float("-inf"))
    tl.store(log_z_ptr + head + rows, log_z, mask=rows < N)


@triton.jit
def attention_tile(
    q_ptr,  # [heads, N, D]
    k_ptr,  # [heads, N, D]
    scale,
    starts_ptr,  # [N] int64, the first row of each row's cluster
    stops_ptr,  # [N] int64, the first one behind it
    log_z_ptr,  # [heads, N]
    head,  # its first row, of heads·N
    rows,  # [BM]
    others,  # [BN]
    N,
    D,
    KEYS: tl.constexpr,  # rows are attended to by the others, instead of attending to them
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
):
    """A of a tile, [BM, BN]."""
    if KEYS:
        logits = tiles.product_tile(k_ptr + head * D, q_ptr + head * D, rows, others, N, N, D, BM, BN, BK, DOT) * scale
        logits -= tl.load(log_z_ptr + head + others, mask=others < N, other=0.0)[None, :]
    else:
        logits = tiles.product_tile(q_ptr + head * D, k_ptr + head * D, rows, others, N, N, D, BM, BN, BK, DOT) * scale
        logits -= tl.load(log_z_ptr + head + rows, mask=rows < N, other=0.0)[:, None]
    return tl.where(pair_mask(starts_ptr, stops_ptr, rows, others, N), tl.exp(logits), 0.0)


@triton.jit(do_not_specialize=["N"])
def sum_kernel(
    q_ptr,  # [heads, N, D]
    k_ptr,  # [heads, N, D]
    scale_ptr,  # [] float32
    starts_ptr,  # [N] int64, the first row of each row's cluster
    stops_ptr,  # [N] int64, the first one behind it
    log_z_ptr,  # [heads, N]
    by_received_ptr,  # [N] float32, without KEYS
    sums_ptr,  # [heads, N] out: with KEYS Σ_i A_ij, else Σ_j A_ij · by_received_j
    N,
    D,
    KEYS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
):
    """Sums of a row or of a column of A."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    head = tl.program_id(1).to(tl.int64) * N
    scale = tl.load(scale_ptr)
    sums = tl.zeros([BM], tl.float32)
    first, last = extent(starts_ptr, stops_ptr, rows, N)
    for start in range(first, last, BN):
        others = start + tl.arange(0, BN)
        a = attention_tile(
            q_ptr, k_ptr, scale, starts_ptr, stops_ptr, log_z_ptr, head, rows, others, N, D, KEYS, BM, BN, BK, DOT
        )
        if not KEYS:
            a *= tl.load(by_received_ptr + others, mask=others < N, other=0.0)[None, :]
        sums += tl.sum(a, axis=1)
    tl.store(sums_ptr + head + rows, sums, mask=rows < N)


@triton.jit(do_not_specialize=["N"])
def gradient_kernel(
    q_ptr,  # [heads, N, D]
    k_ptr,  # [heads, N, D]
    scale_ptr,  # [] float32
    starts_ptr,  # [N] int64, the first row of each row's cluster
    stops_ptr,  # [N] int64, the first one behind it
    log_z_ptr,  # [heads, N]
    by_received_ptr,  # [N] float32, ∂L/∂A_ij
    mean_ptr,  # [heads, N], Σ_j A_ij by_received_j
    gradient_ptr,  # [heads, N, D] float32 out
    N,
    D,
    KEYS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    BD: tl.constexpr,  # elements of a row that a program takes
):
    """scale · Σ ∂L/∂s_ij times k_j (gradient of q), or with KEYS times q_i (gradient of k).

    ∂L/∂s_ij = A_ij (by_received_j - mean_i).
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    head = tl.program_id(1).to(tl.int64) * N
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    scale = tl.load(scale_ptr)
    partner_ptr = q_ptr if KEYS else k_ptr
    gradient = tl.zeros([BM, BD], tl.float32)
    first, last = extent(starts_ptr, stops_ptr, rows, N)
    for start in range(first, last, BN):
        others = start + tl.arange(0, BN)
        a = attention_tile(
            q_ptr, k_ptr, scale, starts_ptr, stops_ptr, log_z_ptr, head, rows, others, N, D, KEYS, BM, BN, BK, DOT
        )
        queries, keys = (others, rows) if KEYS else (rows, others)
        push = tl.load(by_received_ptr + keys, mask=keys < N, other=0.0)
        pull = tl.load(mean_ptr + head + queries, mask=queries < N, other=0.0)
        a *= (push[:, None] - pull[None, :]) if KEYS else (push[None, :] - pull[:, None])
        inside = (others[:, None] < N) & (d[None, :] < D)
        partners = tl.load(partner_ptr + (head + others[:, None]) * D + d[None, :], mask=inside, other=0.0)
        gradient = tl.dot(a.to(DOT), partners.to(DOT), gradient, input_precision="tf32x3")
    at = gradient_ptr + (head + rows[:, None]) * D + d[None, :]
    tl.store(at, gradient * scale, mask=(rows[:, None] < N) & (d[None, :] < D))


def _bounds(offsets: torch.Tensor, N: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first row of each row's cluster and the first one behind it, [N]; they are equal where it has none."""
    rows = torch.arange(N, dtype=offsets.dtype, device=offsets.device)
    behind = torch.bucketize(rows, offsets, right=True)
    return offsets[(behind - 1).clamp(min=0)], offsets[behind.clamp(max=len(offsets) - 1)]


def _shared(q: torch.Tensor, k: torch.Tensor, scale: torch.Tensor, offsets: torch.Tensor) -> dict:
    """What every launch takes: the projections, the bounds of each row's cluster, the sizes of the tiles."""
    (_, N, D), sizes = q.shape, tiles.plan(q, q)
    starts, stops = _bounds(offsets, N)
    return sizes | {
        "q_ptr": q,
        "k_ptr": k,
        "scale_ptr": scale,
        "starts_ptr": starts,
        "stops_ptr": stops,
        "N": N,
        "D": D,
        "BM": min(32, sizes["BM"]),
        "BN": 32,
        "BK": max(32, sizes["BK"]),
        "num_warps": 4,
        "num_stages": 4,
    }


def received_attention(
    q: torch.Tensor, k: torch.Tensor, scale: torch.Tensor, offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Σ_a Σ_i A^a_ij [N], log_z [heads, N]). Two launches and a sum over heads."""
    heads, N, _ = q.shape
    shared = _shared(q, k, scale, offsets)
    shared["log_z_ptr"] = log_z = tiles.empty(q, heads, N)
    received = tiles.empty(q, heads, N)
    grid = (triton.cdiv(N, shared["BM"]), heads)
    log_sum_kernel[grid](**shared)
    sum_kernel[grid](by_received_ptr=None, sums_ptr=received, KEYS=True, **shared)
    return received.sum(0), log_z


def received_attention_backward(
    by_received: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    scale: torch.Tensor,
    offsets: torch.Tensor,
    log_z: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of q and k, [heads, N, D] float32. Three launches."""
    heads, N, D = q.shape
    shared = _shared(q, k, scale, offsets) | {"log_z_ptr": log_z, "by_received_ptr": by_received}
    BD = min(128, max(16, triton.next_power_of_2(D)))
    mean, by_q, by_k = tiles.empty(q, heads, N), tiles.empty(q, *q.shape), tiles.empty(q, *q.shape)
    grid = (triton.cdiv(N, shared["BM"]), heads)
    sum_kernel[grid](sums_ptr=mean, KEYS=False, **shared)
    for gradient, KEYS in ((by_q, False), (by_k, True)):
        gradient_kernel[(*grid, triton.cdiv(D, BD))](mean_ptr=mean, gradient_ptr=gradient, KEYS=KEYS, BD=BD, **shared)
    return by_q, by_k
