"""Contrast of each feature with all proxies of its identity against the hardest proxies of others.

Launch 1 writes the products of all pairs, and beside them int32 keys that sort like the products of the negatives.
Launch 2, one program a row, finds the n-th largest key two bits at a time and packs the row's part of the softmax, its
positives and its n hardest negatives, into the front of that row. Launch 3 gathers the packed proxies: the only ones
that the gradient needs.
"""

import torch
import triton
import triton.language as tl

from reid_fast.kernels import tiles

WIDE = tl.constexpr(128)  # rows of the workspaces are whole blocks of so many columns: loads of four, whatever C
LOWEST = tl.constexpr(-(2**31))  # the key of what is no negative, below all others


@triton.jit
def sortable(
    products,  # float32
):
    """Int32 keys in the order of the products, above LOWEST."""
    bits = products.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, LOWEST - bits, bits)


@triton.jit(do_not_specialize=["C", "blocks"])
def score_kernel(
    x_ptr,  # [B, D] features
    memory_ptr,  # [C, D] proxies
    memory_labels_ptr,  # [C] int64
    labels_ptr,  # [B] int64
    scores_ptr,  # [B, width] float32 out: products
    keys_ptr,  # [B, width] int32 out: `sortable` of a negative's product, LOWEST elsewhere
    B,
    C,
    D,
    blocks,  # of WIDE columns
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
):
    """Launch 1, programs (rows, columns). Neither ‖x‖ nor τ changes the order of a row's products."""
    width = blocks * WIDE
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    products = tiles.product_tile(x_ptr, memory_ptr, rows, columns, B, C, D, BM, BN, BK, DOT)
    label = tl.load(labels_ptr + rows, mask=rows < B, other=0)
    owner = tl.load(memory_labels_ptr + columns, mask=columns < C, other=0)
    negative = (columns < C)[None, :] & (owner[None, :] != label[:, None])
    at = rows[:, None].to(tl.int64) * width + columns[None, :]
    tl.store(scores_ptr + at, products, mask=rows[:, None] < B)
    tl.store(keys_ptr + at, tl.where(negative, sortable(products), LOWEST), mask=rows[:, None] < B)


@triton.jit
def at_least(
    keys_ptr,  # [width] of this row
    bounds,  # [4] int32
    width,
    BC: tl.constexpr,
):
    """How many keys reach each bound, [4]."""
    count = tl.zeros([4, BC], tl.int32)
    for start in range(0, width, BC):
        columns = start + tl.arange(0, BC)
        keys = tl.load(keys_ptr + columns, mask=columns < width, other=LOWEST)
        count += (keys[None, :] >= bounds[:, None]).to(tl.int32)
    return tl.sum(count, axis=1)


@triton.jit
def smallest_taken(
    keys_ptr,  # [width] of this row
    wanted,  # how many keys shall be taken
    C,
    width,
    BC: tl.constexpr,
):
    """(a key that at least `wanted` keys reach, and more only where they tie with it; how many keys exceed it).

    It is LOWEST where there are fewer negatives.
    """
    smallest, reached, shift = LOWEST + 0, C, 30
    while (reached != wanted) & (shift >= 0):
        bounds = smallest + (tl.arange(0, 4) << shift)
        count = at_least(keys_ptr, bounds, width, BC)
        smallest = tl.max(tl.where(count >= wanted, bounds, LOWEST), axis=0)
        reached = tl.max(tl.where(bounds == smallest, count, 0), axis=0)
        shift -= 2
    above = tl.max(at_least(keys_ptr, smallest + 1 + tl.zeros([4], tl.int32), width, BC), axis=0)
    return smallest, above


@triton.jit(do_not_specialize=["C", "blocks", "negatives"])
def select_kernel(
    x_ptr,  # [B, D] features
    weights_ptr,  # [B], with HAS_WEIGHTS
    scores_ptr,  # [B, width] float32 products; out: those of the packed columns
    keys_ptr,  # [B, width] int32 keys of launch 1; out: the packed columns, positives as -1 - column
    packed_ptr,  # [B] int32 out: how many
    shares_ptr,  # [B] float32 out: 1 / positives
    log_z_ptr,  # [B] float32 out: the normaliser of the softmax
    scales_ptr,  # [B] float32 out: 1/‖x‖
    losses_ptr,  # [B] float32 out: weighted
    B,
    C,
    D,
    blocks,  # of WIDE columns
    negatives,  # how many are wanted
    temperature,
    BC: tl.constexpr,  # columns that are read at once
    BD: tl.constexpr,  # at least D
    NORMALIZE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    """Launch 2, one program a row."""
    width = blocks * WIDE
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * width
    keys_ptr += row * width
    d = tl.arange(0, BD)
    x = tl.load(x_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    norm_scale = 1.0
    if NORMALIZE:
        norm_scale = 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, axis=0)), 1e-12)
    scale = norm_scale / temperature
    # The largest product is a positive's or that of the hardest negative: in the softmax either way.
    largest = tl.full([BC], float("-inf"), tl.float32)
    positive_sum = tl.zeros([BC], tl.float32)
    count = tl.zeros([BC], tl.int32)
    for start in range(0, width, BC):
        columns = start + tl.arange(0, BC)
        products = tl.load(scores_ptr + columns, mask=columns < width, other=0.0)
        keys = tl.load(keys_ptr + columns, mask=columns < width, other=0)
        positive = (keys == LOWEST) & (columns < C)
        largest = tl.maximum(largest, tl.where(columns < C, products, float("-inf")))
        positive_sum += tl.where(positive, products, 0.0)
        count += positive.to(tl.int32)
    shift = tl.max(largest, axis=0) * scale
    positives = tl.sum(count, axis=0)
    smallest, above = smallest_taken(keys_ptr, negatives, C, width, BC)
    tied = negatives - above  # how many of the keys that equal the smallest: the first ones
    packed = 0
    seen = 0  # ties
    sums = tl.zeros([BC], tl.float32)
    for start in range(0, width, BC):
        columns = start + tl.arange(0, BC)
        products = tl.load(scores_ptr + columns, mask=columns < width, other=0.0)
        keys = tl.load(keys_ptr + columns, mask=columns < width, other=LOWEST)
        positive = (keys == LOWEST) & (columns < C)
        tie = ((keys == smallest) & (keys != LOWEST)).to(tl.int32)
        first_ties = (tie > 0) & (seen + tl.cumsum(tie, axis=0) <= tied)
        taken = positive | (keys > smallest) & (keys != LOWEST) | first_ties
        sums += tl.where(taken, tl.exp(products * scale - shift), 0.0)
        at = packed + tl.cumsum(taken.to(tl.int32), axis=0) - 1
        tl.debug_barrier()  # what is packed may lie where other threads have just read
        tl.store(scores_ptr + at, products, mask=taken)
        tl.store(keys_ptr + at, tl.where(positive, -1 - columns, columns), mask=taken)
        packed += tl.sum(taken.to(tl.int32), axis=0)
        seen += tl.sum(tie, axis=0)
    weight = 1.0 / B
    if HAS_WEIGHTS:
        weight = tl.load(weights_ptr + row).to(tl.float32)
    share = 1.0 / tl.maximum(positives, 1)
    some = positives > 0
    log_z = shift + tl.log(tl.where(some, tl.sum(sums, axis=0), 1.0))
    loss = (log_z - tl.sum(positive_sum, axis=0) * scale * share) * weight
    tl.store(packed_ptr + row, tl.where(some, packed, 0))
    tl.store(shares_ptr + row, share)
    tl.store(log_z_ptr + row, log_z)
    tl.store(scales_ptr + row, norm_scale)
    tl.store(losses_ptr + row, tl.where(some, loss, 0.0))


@triton.jit(do_not_specialize=["blocks"])
def gradient_kernel(
    x_ptr,  # [B, D] features
    memory_ptr,  # [C, D] proxies
    weights_ptr,  # [B], with HAS_WEIGHTS
    scores_ptr,  # [B, width] float32 from launch 2
    keys_ptr,  # [B, width] int32 from launch 2
    packed_ptr,  # [B] int32 from launch 2
    shares_ptr,  # [B] float32 from launch 2
    log_z_ptr,  # [B] float32 from launch 2
    scales_ptr,  # [B] float32 from launch 2
    gradient_ptr,  # [B, D] float32 out
    B,
    D,
    blocks,  # of WIDE columns
    temperature,
    BC: tl.constexpr,  # proxies that are gathered at once
    BD: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    """Launch 3, programs (row, BD elements of it): Σ ∂loss/∂product times proxy, then through the norm.

    The norm takes from the gradient h of the unit feature u its part along u; h·u is a sum of products that are known.
    """
    width = blocks * WIDE
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    packed = tl.load(packed_ptr + row)
    share, log_z, norm_scale = tl.load(shares_ptr + row), tl.load(log_z_ptr + row), tl.load(scales_ptr + row)
    weight = 1.0 / B
    if HAS_WEIGHTS:
        weight = tl.load(weights_ptr + row).to(tl.float32)
    h = tl.zeros([BC, BD], tl.float32)
    along = tl.zeros([BC], tl.float32)
    for start in range(0, packed, BC):
        place = start + tl.arange(0, BC)
        inside = place < packed
        product = tl.load(scores_ptr + row * width + place, mask=inside, other=0.0) * norm_scale
        column = tl.load(keys_ptr + row * width + place, mask=inside, other=0)
        by_product = tl.exp(product / temperature - log_z) - tl.where(column < 0, share, 0.0)
        by_product = tl.where(inside, by_product * (weight / temperature), 0.0)
        column = tl.where(column < 0, -1 - column, column).to(tl.int64)
        at = memory_ptr + column[:, None] * D + d[None, :]
        proxies = tl.load(at, mask=inside[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        h += by_product[:, None] * proxies
        along += by_product * product
    gradient = tl.sum(h, axis=0)
    if NORMALIZE:
        unit = tl.load(x_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32) * norm_scale
        gradient = (gradient - unit * tl.sum(along, axis=0)) * norm_scale
    tl.store(gradient_ptr + row * D + d, gradient, mask=d < D)


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
    """(loss, gradient [B, D] or [0]) in float32. Three launches and a sum; 8 bytes of workspace a pair."""
    (B, D), C = x.shape, memory.shape[0]
    blocks = triton.cdiv(C, WIDE.value)
    width = blocks * WIDE.value
    sizes = tiles.plan(x, memory)
    # Few rows: narrow tiles are what makes a program for every multiprocessor.
    sizes |= {"BN": 32 if B <= 64 else 64, "BK": max(32, sizes["BK"]), "num_warps": 4, "num_stages": 4}
    scores = tiles.empty(x, B, width)
    keys = torch.empty((B, width), dtype=torch.int32, device=x.device)
    losses = tiles.empty(x, B)
    gradient = tiles.empty(x, *x.shape) if needs_grad else tiles.empty(x, 0)
    score_kernel[(width // sizes["BN"], triton.cdiv(B, sizes["BM"]))](
        x_ptr=x,
        memory_ptr=memory,
        memory_labels_ptr=memory_labels,
        labels_ptr=labels,
        scores_ptr=scores,
        keys_ptr=keys,
        B=B,
        C=C,
        D=D,
        blocks=blocks,
        **sizes,
    )
    shared = {
        "x_ptr": x,
        "weights_ptr": weights,
        "scores_ptr": scores,
        "keys_ptr": keys,
        "packed_ptr": torch.empty(B, dtype=torch.int32, device=x.device),
        "shares_ptr": tiles.empty(x, B),
        "log_z_ptr": tiles.empty(x, B),
        "scales_ptr": tiles.empty(x, B),
        "B": B,
        "D": D,
        "blocks": blocks,
        "temperature": temperature,
        "NORMALIZE": normalize,
        "HAS_WEIGHTS": weights is not None,
    }
    select_kernel[(B,)](
        losses_ptr=losses, C=C, negatives=negatives, BC=1024, BD=triton.next_power_of_2(D), num_warps=16, **shared
    )
    if needs_grad:
        BD = min(512, max(16, triton.next_power_of_2(D)))
        gradient_kernel[(B, triton.cdiv(D, BD))](memory_ptr=memory, gradient_ptr=gradient, BC=16, BD=BD, **shared)
    return losses.sum(), gradient
