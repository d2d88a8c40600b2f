"""Logits, losses and gradients of a contrast with one target, streamed over the memory: two launches in turns.

1. Logits: one program a tile [BM, BN]. It keeps the tile's row maxima and sums, and e^{logit - maximum} in DOT for
   launch 2, in a workspace of at most 32 MiB, which stays in L2; more columns go through it in turns of launches 1
   and 2. So each logit is computed once and no B×C array exists. Without the workspace each would be computed
   twice: three products of B×C×D instead of two, and products are the limit at large B and C. The accumulators [B, D]
   are too large for registers: forming the gradient in launch 1 would move them through L2 once a tile, about twice
   what these launches move.
2. Gradient: a product of that workspace and the memory, summed over columns in registers. The column of the label is
   left out and added at the end as 1 - p from the sums: a confident row keeps a correct gradient in bfloat16. By then
   the program has all sums of its rows, and their losses.

`cluster_nce` and `cluster_step` add the third launch, which finishes.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from reid_fast.kernels import tiles


class Hybrid(NamedTuple):
    """What makes it the loss of SpCL's hybrid memory."""

    counts: torch.Tensor  # [C] int64 members; a class without any takes no part
    instances: torch.Tensor  # [B] int64: the labels are [N] then, and that of row i is labels[instances[i]]
    focal: float  # exponent of the focal weight
    epsilon: float  # added to the softmax's denominator and inside the logarithm


class Partial(NamedTuple):
    """What launches 1 and 2 leave for the last one."""

    losses: torch.Tensor  # [B] weighted
    factors: torch.Tensor  # [B] what the sum over `acc` is multiplied by
    acc: torch.Tensor | None  # [parts, B, D] Σ e^{l - max} memory - label's row · Σ e^{l - max}, both without the label
    parts: int


@triton.jit(do_not_specialize=["C", "before", "turn"])
def logits_kernel(
    x_ptr,  # [B, D] features
    memory_ptr,  # [C, D]
    labels_ptr,  # [B] int64, or with HYBRID [N]
    index_ptr,  # [B] int64 rows of N, with HYBRID
    spans_ptr,  # [B, 2] int64, with HAS_SPANS
    counts_ptr,  # [C] int64 members, with HYBRID
    exps_ptr,  # [B, turn·BN] DOT, out: e^{logit - maximum of the tile} of this turn, the label's as 0
    max_ptr,  # [tiles, B] out: the maximum over a tile
    sum_ptr,  # [tiles, B] out: the sum of e^{logit - that maximum}, without the label's
    label_logits_ptr,  # [B] out: the logit of the label's column, NaN if the softmax leaves it out
    B,
    C,
    D,
    N,
    before,  # tiles of earlier turns
    turn,  # tiles of a turn
    row_blocks,
    temperature,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_SPANS: tl.constexpr,
    HYBRID: tl.constexpr,
    GRAD: tl.constexpr,
):
    """Launch 1; row blocks of one tile of columns follow one another, and read it from L2."""
    rows = (tl.program_id(0) % row_blocks) * BM + tl.arange(0, BM)
    tile = tl.program_id(0) // row_blocks
    start = (before + tile) * BN
    columns = start + tl.arange(0, BN)
    label = tiles.load_labels(labels_ptr, index_ptr, rows, B, N, HYBRID)
    logits = tiles.logits_tile(x_ptr, memory_ptr, rows, columns, B, C, D, temperature, BM, BN, BK, DOT, NORMALIZE)
    lowest, highest = tiles.load_span(spans_ptr, rows, B, C, HAS_SPANS)
    inside = (columns[None, :] >= lowest[:, None]) & (columns[None, :] < highest[:, None])
    if HYBRID:
        inside = inside & (tl.load(counts_ptr + columns, mask=columns < C, other=0) != 0)[None, :]
    own = columns[None, :] == label[:, None]
    here = (label >= start) & (label < start + BN) & (label < C) & (rows < B)
    label_logits = tl.where(own, logits, 0.0)
    if HAS_SPANS | HYBRID:
        label_logits = tl.where(own & (inside == 0), float("nan"), label_logits)
    tl.store(label_logits_ptr + rows, tl.sum(label_logits, axis=1), mask=here)
    tile_max = tl.max(tl.where(inside, logits, float("-inf")), axis=1)
    shift = tl.where(tile_max == float("-inf"), 0.0, tile_max)  # a row without a column here: exp(-inf), not NaN
    e = tl.where(inside & (own == 0), tl.exp(logits - shift[:, None]), 0.0)
    at = (before + tile).to(tl.int64) * B + rows
    tl.store(max_ptr + at, tile_max, mask=rows < B)
    tl.store(sum_ptr + at, tl.sum(e, axis=1), mask=rows < B)
    if GRAD:
        at = exps_ptr + rows[:, None].to(tl.int64) * (turn * BN) + (tile * BN + tl.arange(0, BN))[None, :]
        tl.store(at, e.to(DOT), mask=rows[:, None] < B)


@triton.jit
def write_losses(
    labels_ptr,  # [B] int64, or with HYBRID [N]
    index_ptr,  # [B] int64 rows of N, with HYBRID
    weights_ptr,  # [B], with HAS_WEIGHTS
    max_ptr,  # [tiles, B] from launch 1
    sum_ptr,  # [tiles, B] from launch 1
    label_logits_ptr,  # [B] from launch 1
    losses_ptr,  # [B] out: weighted
    factors_ptr,  # [B] out: what the sum over `acc` is multiplied by
    row_max,  # [BM] the maximum over all tiles
    rows,  # [BM]
    B,
    C,
    N,
    count,  # of tiles
    temperature,
    epsilon,
    focal,
    HAS_WEIGHTS: tl.constexpr,
    HYBRID: tl.constexpr,
    BM: tl.constexpr,
):
    """Loss and gradient factor of the rows of a tile; returns Σ e^{logit - row_max} without the label's, [BM]."""
    rest = tiles.sum_of_tiles(max_ptr, sum_ptr, row_max, rows, count, B, BM)
    label = tiles.load_labels(labels_ptr, index_ptr, rows, B, N, HYBRID)
    known = (label >= 0) & (label < C)
    # A label outside the memory must not pass for a loss.
    logit = tl.where(known, tl.load(label_logits_ptr + rows, mask=rows < B, other=0.0), float("nan"))
    if HYBRID:
        rest += epsilon * tl.exp(-row_max)
    z = rest + tl.exp(logit - row_max)
    loss = tl.log(z) + row_max - logit
    factor = 1.0 / (z * temperature)
    if HYBRID:
        p, other = tl.exp(logit - row_max) / z, rest / z
        log_p = tl.log(p + epsilon)
        safe = tl.maximum(other, 1e-38)
        modulation = tl.where(focal > 0, tl.exp(focal * tl.log(safe)), 1.0)
        loss = -modulation * log_p
        factor *= p * (modulation / (p + epsilon) - focal * modulation / safe * log_p)  # -p ∂loss/∂p
    weight = tiles.row_weight(weights_ptr, labels_ptr, index_ptr, rows, B, N, HYBRID, HAS_WEIGHTS)
    tl.store(losses_ptr + rows, tl.where(label == -1, 0.0, loss * weight), mask=rows < B)
    tl.store(factors_ptr + rows, tl.where(label == -1, 0.0, factor * weight), mask=rows < B)
    return rest


@triton.jit(do_not_specialize=["C", "count"])
def loss_kernel(
    labels_ptr,  # these are the arguments of `write_losses`
    index_ptr,
    weights_ptr,
    max_ptr,
    sum_ptr,
    label_logits_ptr,
    losses_ptr,
    factors_ptr,
    B,
    C,
    N,
    count,
    temperature,
    epsilon,
    focal,
    HAS_WEIGHTS: tl.constexpr,
    HYBRID: tl.constexpr,
    BM: tl.constexpr,
):
    """Launch 2 where no gradient is asked for."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    row_max = tiles.max_of_tiles(max_ptr, rows, 0, count, B, BM)
    row_max = tl.where(row_max == float("-inf"), 0.0, row_max)
    write_losses(
        labels_ptr,
        index_ptr,
        weights_ptr,
        max_ptr,
        sum_ptr,
        label_logits_ptr,
        losses_ptr,
        factors_ptr,
        row_max,
        rows,
        B,
        C,
        N,
        count,
        temperature,
        epsilon,
        focal,
        HAS_WEIGHTS,
        HYBRID,
        BM,
    )


@triton.jit(do_not_specialize=["C", "before", "turn", "now", "count", "per_part"])
def gradient_kernel(
    memory_ptr,  # [C, D]
    exps_ptr,  # [B, turn·BN] DOT, from launch 1
    acc_ptr,  # [parts, B, D] float32, in and out: see `Partial.acc`
    labels_ptr,  # from here the arguments of `write_losses`
    index_ptr,
    weights_ptr,
    max_ptr,
    sum_ptr,
    label_logits_ptr,
    losses_ptr,
    factors_ptr,
    B,
    C,
    D,
    N,
    before,  # tiles of earlier turns
    turn,  # tiles of a turn
    now,  # tiles up to the end of this turn
    count,  # tiles of all turns
    per_part,  # tiles of this turn that a part takes
    temperature,
    epsilon,
    focal,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    DOT: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HYBRID: tl.constexpr,
):
    """Launch 2, one turn: the columns of tiles before..now-1 of `count`."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    part = tl.program_id(2)
    inside = (rows[:, None] < B) & (d[None, :] < D)
    out = acc_ptr + (part * B + rows[:, None]).to(tl.int64) * D + d[None, :]
    running_max = tiles.max_of_tiles(max_ptr, rows, 0, before, B, BM)
    row_max = tl.maximum(running_max, tiles.max_of_tiles(max_ptr, rows, before, now, B, BM))
    row_max = tl.where(row_max == float("-inf"), 0.0, row_max)
    acc = tl.load(out, mask=inside & (before > 0), other=0.0) * tl.exp(running_max - row_max)[:, None]
    lowest = before + part * per_part
    for start in range(lowest * BN, tl.minimum(lowest + per_part, now) * BN, BK):
        columns = start + tl.arange(0, BK)
        rescale = tl.exp(
            tl.load(max_ptr + tl.cast(start // BN, tl.int64) * B + rows, mask=rows < B, other=0.0) - row_max
        )
        at = exps_ptr + rows[:, None].to(tl.int64) * (turn * BN) + (columns - before * BN)[None, :]
        e = tl.load(at, mask=rows[:, None] < B, other=0.0).to(tl.float32) * rescale[:, None]
        here = (columns[:, None] < C) & (d[None, :] < D)
        prototypes = tl.load(memory_ptr + columns[:, None].to(tl.int64) * D + d[None, :], mask=here, other=0.0)
        acc = tl.dot(e.to(DOT), prototypes.to(DOT), acc, input_precision="tf32x3")
    if (now == count) & (part == 0):
        # All programs of these rows in the first part write the same numbers.
        rest = write_losses(
            labels_ptr,
            index_ptr,
            weights_ptr,
            max_ptr,
            sum_ptr,
            label_logits_ptr,
            losses_ptr,
            factors_ptr,
            row_max,
            rows,
            B,
            C,
            N,
            count,
            temperature,
            epsilon,
            focal,
            HAS_WEIGHTS,
            HYBRID,
            BM,
        )
        label = tiles.load_labels(labels_ptr, index_ptr, rows, B, N, HYBRID).to(tl.int64)
        here = (label >= 0)[:, None] & (label < C)[:, None] & (d[None, :] < D)
        own = tl.load(memory_ptr + label[:, None] * D + d[None, :], mask=here, other=0.0)
        acc -= rest[:, None] * own.to(tl.float32)
    tl.store(out, acc, mask=inside)


def stream(
    x: torch.Tensor,
    memory: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    normalize: bool,
    spans: torch.Tensor | None,
    weights: torch.Tensor | None,
    hybrid: Hybrid | None,
    needs_grad: bool,
) -> Partial:
    """Launches 1 and 2, in as many turns as the workspace asks for."""
    (B, D), C = x.shape, memory.shape[0]
    sizes, dtype = tiles.plan(x, memory), tiles.dot_type(x, memory)
    BM, BN, BD = sizes["BM"], sizes["BN"], sizes["BN"]
    row_blocks, d_blocks, count, turn, parts = tiles.schedule(x, C, sizes | {"BD": BD}, dtype.itemsize, needs_grad)
    acc = tiles.empty(x, parts, B, D) if needs_grad else None
    out = Partial(tiles.empty(x, B), tiles.empty(x, B), acc, parts)
    exps = torch.empty((B, turn * BN), dtype=dtype, device=x.device) if needs_grad else None
    found = {
        "labels_ptr": labels,
        "index_ptr": hybrid.instances if hybrid else None,
        "max_ptr": tiles.empty(x, count, B),
        "sum_ptr": tiles.empty(x, count, B),
        "label_logits_ptr": tiles.empty(x, B),
        "B": B,
        "C": C,
        "N": labels.shape[0],
        "temperature": temperature,
        "HYBRID": hybrid is not None,
    }
    loss = found | {
        "weights_ptr": weights,
        "losses_ptr": out.losses,
        "factors_ptr": out.factors,
        "count": count,
        "focal": hybrid.focal if hybrid else 0.0,
        "epsilon": hybrid.epsilon if hybrid else 0.0,
        "HAS_WEIGHTS": weights is not None,
    }
    for before in range(0, count, turn):
        now = min(count, before + turn)
        place = {"before": before, "turn": turn}
        logits_kernel[(row_blocks * (now - before),)](
            x_ptr=x,
            memory_ptr=memory,
            spans_ptr=spans,
            counts_ptr=hybrid.counts if hybrid else None,
            exps_ptr=exps,
            D=D,
            row_blocks=row_blocks,
            NORMALIZE=normalize,
            HAS_SPANS=spans is not None,
            GRAD=needs_grad,
            **found,
            **place,
            **sizes,
        )
        if needs_grad:
            gradient_kernel[(row_blocks, d_blocks, parts)](
                memory_ptr=memory,
                exps_ptr=exps,
                acc_ptr=acc,
                D=D,
                now=now,
                per_part=triton.cdiv(now - before, parts),
                BD=BD,
                **loss,
                **place,
                **sizes,
            )
    if not needs_grad:
        loss_kernel[(row_blocks,)](BM=BM, **loss)
    return out
