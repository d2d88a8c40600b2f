"""Contrast of each feature with all proxies of its identity against the hardest proxies of others.

Launch 1 streams the memory and keeps, for each row, the K best negatives of a slice of the columns as sorted
int64 keys (product above, column below, so that equal products prefer the lower column). Launch 2, one program a
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
def pack(
    products,  # float32
    columns,  # their numbers
):
    """Keys that sort by product, then by lower column."""
    bits = products.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ LAST, bits)
    return (ordered.to(tl.int64) << 32) | (columns ^ LAST).to(tl.int64)


@triton.jit
def best_of(
    a,  # [ROWS, K] keys
    b,  # [ROWS, K] keys
    ROWS: tl.constexpr,
    K: tl.constexpr,
):
    """The K largest of two sets of keys, [ROWS, K]."""
    return tl.topk(tl.reshape(tl.join(a, b), [ROWS, 2 * K]), K)


@triton.jit(do_not_specialize=["C", "per_slice"])
def hardest_kernel(
    x_ptr,  # [B, D] features
    memory_ptr,  # [C, D] proxies
    memory_labels_ptr,  # [C] int64
    labels_ptr,  # [B] int64
    keys_ptr,  # [slices, B, BN] int64 out: the best negatives of a slice
    B,
    C,
    D,
    per_slice,  # columns of a slice
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
):
    """Launch 1. Neither ‖x‖ nor τ changes the order of a row's products."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    part = tl.program_id(1)
    first = part * per_slice
    label = tl.load(labels_ptr + rows, mask=rows < B, other=-1)
    best = tl.full([BM, BN], NONE, tl.int64)
    for start in range(first, tl.minimum(first + per_slice, C), BN):
        columns = start + tl.arange(0, BN)
        products = tiles.product_tile(x_ptr, memory_ptr, rows, columns, B, C, D, BM, BN, BK, DOT)
        owner = tl.load(memory_labels_ptr + columns, mask=columns < C, other=-1)
        negative = (columns < C)[None, :] & (owner[None, :] != label[:, None])
        best = best_of(best, tl.where(negative, pack(products, columns[None, :]), NONE), BM, BN)
    at = keys_ptr + (part.to(tl.int64) * B + rows[:, None]) * BN + tl.arange(0, BN)[None, :]
    tl.store(at, best, mask=rows[:, None] < B)


@triton.jit
def absorb(
    column,  # of the proxy
    memory_ptr,  # [C, D]
    x,  # [BD] the feature
    scale,  # from a product to a logit
    d,  # [BD] its elements
    D,
    running_max,
    running_sum,  # Σ e^{logit - running_max}
    acc,  # [BD] Σ e^{logit - running_max} proxy
):
    """Fold one proxy into the running softmax; also returns its logit and the proxy itself."""
    proxy = tl.load(memory_ptr + column.to(tl.int64) * D + d, mask=d < D, other=0.0).to(tl.float32)
    logit = tl.sum(proxy * x, axis=0) * scale
    new_max = tl.maximum(running_max, logit)
    rescale, e = tl.exp(running_max - new_max), tl.exp(logit - new_max)
    return new_max, running_sum * rescale + e, acc * rescale + proxy * e, logit, proxy


@triton.jit(do_not_specialize=["C", "slices"])
def finish_kernel(
    x_ptr,  # [B, D] features
    memory_ptr,  # [C, D] proxies
    memory_labels_ptr,  # [C] int64
    labels_ptr,  # [B] int64
    weights_ptr,  # [B], with HAS_WEIGHTS
    keys_ptr,  # [slices, B, K] int64 from launch 1
    losses_ptr,  # [B] out: weighted
    gradient_ptr,  # [B, D] out, with GRAD
    B,
    C,
    D,
    slices,
    negatives,  # how many are taken, at most K
    temperature,
    K: tl.constexpr,
    BD: tl.constexpr,  # at least D
    BC: tl.constexpr,  # labels of the memory that are read at once
    NORMALIZE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    GRAD: tl.constexpr,
):
    """Launch 2, one program a row."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    x = tl.load(x_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    norm_scale = 1.0
    if NORMALIZE:
        norm_scale = 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, axis=0)), 1e-12)
    scale = norm_scale / temperature
    label = tl.load(labels_ptr + row)
    running_max = float("-inf")
    running_sum = 0.0
    acc = tl.zeros([BD], tl.float32)
    positives = tl.zeros([BD], tl.float32)  # their sum
    logit_sum = 0.0  # over positives
    count = 0  # of positives
    for start in range(0, C, BC):
        columns = start + tl.arange(0, BC)
        owner = tl.load(memory_labels_ptr + columns, mask=columns < C, other=-1)
        mine = (owner == label) & (columns < C)
        column = tl.min(tl.where(mine, columns, LAST), axis=0)
        while column < LAST:
            running_max, running_sum, acc, logit, proxy = absorb(
                column, memory_ptr, x, scale, d, D, running_max, running_sum, acc
            )
            positives += proxy
            logit_sum += logit
            count += 1
            column = tl.min(tl.where(mine & (columns > column), columns, LAST), axis=0)
    k = tl.arange(0, K)
    best = tl.full([1, K], NONE, tl.int64)
    for part in range(slices):
        best = best_of(best, tl.load(keys_ptr + (part * B + row) * K + k)[None, :], 1, K)
    best = tl.reshape(best, [K])
    for i in range(negatives):
        key = tl.max(tl.where(k == i, best, NONE), axis=0)
        if key != NONE:
            column = (key & LAST).to(tl.int32) ^ LAST
            running_max, running_sum, acc, logit, proxy = absorb(
                column, memory_ptr, x, scale, d, D, running_max, running_sum, acc
            )
    weight = 1.0 / B
    if HAS_WEIGHTS:
        weight = tl.load(weights_ptr + row).to(tl.float32)
    tl.store(losses_ptr + row, (running_max + tl.log(running_sum) - logit_sum / count) * weight)
    if GRAD:
        h = (acc / running_sum - positives / count) * (weight / temperature)
        tl.store(gradient_ptr + row * D + d, tiles.through_norm(h, x, norm_scale, NORMALIZE), mask=d < D)


def camera_nce(
    x: torch.Tensor,
    memory: torch.Tensor,
    memory_labels: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    negatives: int,
    weights: torch.Tensor | None,
    normalize: bool,
    needs_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, gradient [B, D] or [0]) in float32. Three launches."""
    (B, D), C = x.shape, memory.shape[0]
    K = max(16, triton.next_power_of_2(negatives))
    # One tile holds as many columns as the answer: the sort of both together is as narrow as it can be.
    sizes = tiles.plan(x, memory) | {"BM": 16, "BN": K, "num_warps": 4 if K <= 64 else 8, "num_stages": 3}
    row_blocks = triton.cdiv(B, sizes["BM"])
    slices, per_slice = tiles.split(C, K, row_blocks, x.device)
    losses = tiles.empty(x, B)
    gradient = tiles.empty(x, B, D) if needs_grad else tiles.empty(x, 0)
    shared = {
        "x_ptr": x.contiguous(),
        "memory_ptr": memory.contiguous(),
        "memory_labels_ptr": memory_labels.contiguous(),
        "labels_ptr": labels.contiguous(),
        "keys_ptr": torch.empty((slices, B, K), dtype=torch.int64, device=x.device),
        "B": B,
        "C": C,
        "D": D,
    }
    hardest_kernel[(row_blocks, slices)](per_slice=per_slice, **shared, **sizes)
    finish_kernel[(B,)](
        weights_ptr=weights,
        losses_ptr=losses,
        gradient_ptr=gradient,
        slices=slices,
        negatives=negatives,
        temperature=temperature,
        K=K,
        BD=triton.next_power_of_2(D),
        BC=1024,
        NORMALIZE=normalize,
        HAS_WEIGHTS=weights is not None,
        GRAD=needs_grad,
        **shared,
    )
    return losses.sum(), gradient
