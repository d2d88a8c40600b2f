"""Softmax cross entropy against a memory with a distribution as target: dense q, or smoothed one-hot rows.

Three launches in turns, like those of `one_target`. Near the optimum p ≈ q, so p·Σq - q must be formed in float32
before anything is rounded: launch 1 keeps the logits themselves, and launch 2 knows the softmax's denominator. Of a
memory that takes several turns launch 1 therefore runs twice, first for the statistics of all columns.
"""

import torch
import triton
import triton.language as tl

from reid_fast.kernels import tiles
from reid_fast.kernels.cluster_nce import finish
from reid_fast.kernels.one_target import Partial


@triton.jit
def target_tile(
    targets_ptr,  # [B, C] q, with DENSE
    label,  # [BM], otherwise
    lowest,  # [BM] the columns of each row's softmax: the first
    highest,  # [BM] and the first that is not
    rows,  # [BM]
    columns,  # [BN]
    smoothing,  # ε of the smoothed one-hot rows
    B,
    C,
    DENSE: tl.constexpr,
):
    """(q of a tile, [BM, BN] float32, zero outside those columns; which of the tile are such columns)."""
    inside = (columns[None, :] >= lowest[:, None]) & (columns[None, :] < highest[:, None])
    if DENSE:
        at = targets_ptr + rows[:, None].to(tl.int64) * C + columns[None, :]
        q = tl.load(at, mask=inside & (rows[:, None] < B), other=0.0).to(tl.float32)
    else:
        even = smoothing / (highest - lowest).to(tl.float32)
        q = tl.where(columns[None, :] == label[:, None], 1.0 - smoothing, 0.0) + even[:, None]
    return tl.where(inside, q, 0.0), inside


@triton.jit(do_not_specialize=["C", "count", "before", "turn"])
def logits_kernel(
    x_ptr,  # [B, D] features
    memory_ptr,  # [C, D]
    labels_ptr,  # [B] int64
    targets_ptr,  # [B, C] q, with DENSE
    spans_ptr,  # [B, 2] int64, with HAS_SPANS
    logits_ptr,  # [B, turn·BN] float32 out, with GRAD: the logits of this turn
    statistics_ptr,  # [4, count, B] out: maximum, Σ e^{logit - maximum}, Σ q and Σ q·logit over a tile
    B,
    C,
    D,
    count,  # of tiles
    before,  # tiles of earlier turns
    turn,  # tiles of a turn
    row_blocks,
    temperature,
    smoothing,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_SPANS: tl.constexpr,
    DENSE: tl.constexpr,
    GRAD: tl.constexpr,
):
    """Launch 1; row blocks of one tile of columns follow one another, and read it from L2."""
    rows = (tl.program_id(0) % row_blocks) * BM + tl.arange(0, BM)
    tile = tl.program_id(0) // row_blocks
    columns = (before + tile) * BN + tl.arange(0, BN)
    logits = tiles.logits_tile(x_ptr, memory_ptr, rows, columns, B, C, D, temperature, BM, BN, BK, DOT, NORMALIZE)
    label = tiles.load_labels(labels_ptr, None, rows, B, 0, False)
    lowest, highest = tiles.load_span(spans_ptr, rows, B, C, HAS_SPANS)
    q, inside = target_tile(targets_ptr, label, lowest, highest, rows, columns, smoothing, B, C, DENSE)
    tile_max = tl.max(tl.where(inside, logits, float("-inf")), axis=1)
    shift = tl.where(tile_max == float("-inf"), 0.0, tile_max)  # a row without a column here: exp(-inf), not NaN
    e = tl.where(inside, tl.exp(logits - shift[:, None]), 0.0)
    at = statistics_ptr + (before + tile).to(tl.int64) * B + rows
    plane = tl.cast(count, tl.int64) * B
    tl.store(at, tile_max, mask=rows < B)
    tl.store(at + plane, tl.sum(e, axis=1), mask=rows < B)
    tl.store(at + 2 * plane, tl.sum(q, axis=1), mask=rows < B)
    tl.store(at + 3 * plane, tl.sum(q * logits, axis=1), mask=rows < B)
    if GRAD:
        at = logits_ptr + rows[:, None].to(tl.int64) * (turn * BN) + (tile * BN + tl.arange(0, BN))[None, :]
        tl.store(at, logits, mask=rows[:, None] < B)


@triton.jit
def write_losses(
    labels_ptr,  # [B] int64
    weights_ptr,  # [B], with HAS_WEIGHTS
    statistics_ptr,  # [4, count, B] from launch 1
    losses_ptr,  # [B] out: weighted
    factors_ptr,  # [B] out: what the sum over `acc` is multiplied by
    lowest,  # [BM] the columns of each row's softmax: the first
    highest,  # [BM] and the first that is not
    rows,  # [BM]
    B,
    count,  # of tiles
    temperature,
    HAS_WEIGHTS: tl.constexpr,
    DENSE: tl.constexpr,
    BM: tl.constexpr,
):
    """Loss and gradient factor of the rows of a tile; returns (log Σ e^logit, Σ q) of each row, [BM]."""
    plane = tl.cast(count, tl.int64) * B
    row_max = tiles.max_of_tiles(statistics_ptr, rows, 0, count, B, BM)
    row_max = tl.where(row_max == float("-inf"), 0.0, row_max)
    log_z = row_max + tl.log(tiles.sum_of_tiles(statistics_ptr, statistics_ptr + plane, row_max, rows, count, B, BM))
    mass = tiles.total_of_tiles(statistics_ptr + 2 * plane, rows, count, B, BM)
    cross = tiles.total_of_tiles(statistics_ptr + 3 * plane, rows, count, B, BM)
    label = tiles.load_labels(labels_ptr, None, rows, B, 0, False)
    weight = tiles.row_weight(weights_ptr, labels_ptr, None, rows, B, 0, False, HAS_WEIGHTS)
    if not DENSE:
        # A label outside its row's columns must not pass for a loss.
        weight = tl.where((label >= lowest) & (label < highest), weight, float("nan"))
    tl.store(losses_ptr + rows, tl.where(label == -1, 0.0, (mass * log_z - cross) * weight), mask=rows < B)
    tl.store(factors_ptr + rows, tl.where(label == -1, 0.0, weight / temperature), mask=rows < B)
    return log_z, mass


@triton.jit(do_not_specialize=["C", "count"])
def loss_kernel(
    labels_ptr,  # these are the arguments of `write_losses`
    spans_ptr,
    weights_ptr,
    statistics_ptr,
    losses_ptr,
    factors_ptr,
    B,
    C,
    count,
    temperature,
    HAS_SPANS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    DENSE: tl.constexpr,
    BM: tl.constexpr,
):
    """Launch 2 where no gradient is asked for."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    lowest, highest = tiles.load_span(spans_ptr, rows, B, C, HAS_SPANS)
    write_losses(
        labels_ptr,
        weights_ptr,
        statistics_ptr,
        losses_ptr,
        factors_ptr,
        lowest,
        highest,
        rows,
        B,
        count,
        temperature,
        HAS_WEIGHTS,
        DENSE,
        BM,
    )


@triton.jit(do_not_specialize=["C", "count", "before", "turn", "now", "per_part"])
def gradient_kernel(
    memory_ptr,  # [C, D]
    targets_ptr,  # [B, C] q, with DENSE
    logits_ptr,  # [B, turn·BN] float32, from launch 1
    acc_ptr,  # [parts, B, D] float32, in and out: Σ_c (p_c·Σq - q_c) memory_c
    labels_ptr,  # from here the arguments of `write_losses`
    spans_ptr,
    weights_ptr,
    statistics_ptr,
    losses_ptr,
    factors_ptr,
    B,
    C,
    D,
    count,  # tiles of all turns
    before,  # tiles of earlier turns
    turn,  # tiles of a turn
    now,  # tiles up to the end of this turn
    per_part,  # tiles of this turn that a part takes
    temperature,
    smoothing,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    DOT: tl.constexpr,
    HAS_SPANS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    DENSE: tl.constexpr,
):
    """Launch 2, one turn: the columns of tiles before..now-1 of `count`. All programs of a row write one loss."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    part = tl.program_id(2)
    inside = (rows[:, None] < B) & (d[None, :] < D)
    out = acc_ptr + (part * B + rows[:, None]).to(tl.int64) * D + d[None, :]
    lowest, highest = tiles.load_span(spans_ptr, rows, B, C, HAS_SPANS)
    log_z, mass = write_losses(
        labels_ptr,
        weights_ptr,
        statistics_ptr,
        losses_ptr,
        factors_ptr,
        lowest,
        highest,
        rows,
        B,
        count,
        temperature,
        HAS_WEIGHTS,
        DENSE,
        BM,
    )
    label = tiles.load_labels(labels_ptr, None, rows, B, 0, False)
    acc = tl.load(out, mask=inside & (before > 0), other=0.0)
    first = before + part * per_part
    for start in range(first * BN, tl.minimum(first + per_part, now) * BN, BK):
        columns = start + tl.arange(0, BK)
        at = logits_ptr + rows[:, None].to(tl.int64) * (turn * BN) + (columns - before * BN)[None, :]
        logits = tl.load(at, mask=rows[:, None] < B, other=0.0)
        q, here = target_tile(targets_ptr, label, lowest, highest, rows, columns, smoothing, B, C, DENSE)
        by_logits = tl.where(here, tl.exp(logits - log_z[:, None]), 0.0) * mass[:, None] - q
        here = (columns[:, None] < C) & (d[None, :] < D)
        prototypes = tl.load(memory_ptr + columns[:, None].to(tl.int64) * D + d[None, :], mask=here, other=0.0)
        acc = tl.dot(by_logits.to(DOT), prototypes.to(DOT), acc, input_precision="tf32x3")
    tl.store(out, acc, mask=inside)


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
    """(loss, gradient [B, D] or [0]) in float32. Three launches while C fits one turn."""
    (B, D), C = x.shape, memory.shape[0]
    # The tile of q takes the registers of half a tile of logits; launch 2 takes steps of 128 bytes of logits.
    sizes = tiles.plan(x, memory) | {"BN": 64}
    summed = sizes | {"BK": 32, "BD": 64}
    row_blocks, d_blocks, count, turn, parts = tiles.schedule(x, C, summed, 4, needs_grad)
    acc = tiles.empty(x, parts, B, D) if needs_grad else None
    out = Partial(tiles.empty(x, B), tiles.empty(x, B), acc, parts)
    logits = tiles.empty(x, B, turn * sizes["BN"]) if needs_grad else None
    common = {
        "labels_ptr": labels,
        "spans_ptr": spans,
        "statistics_ptr": tiles.empty(x, 4, count, B),
        "B": B,
        "C": C,
        "count": count,
        "temperature": temperature,
        "HAS_SPANS": spans is not None,
        "DENSE": targets is not None,
    }
    loss = common | {
        "weights_ptr": weights,
        "losses_ptr": out.losses,
        "factors_ptr": out.factors,
        "HAS_WEIGHTS": weights is not None,
    }
    streamed = {"memory_ptr": memory, "targets_ptr": targets, "logits_ptr": logits, "D": D, "smoothing": smoothing}

    def find_logits(before: int) -> None:
        logits_kernel[(row_blocks * (min(count, before + turn) - before),)](
            x_ptr=x,
            before=before,
            turn=turn,
            row_blocks=row_blocks,
            NORMALIZE=normalize,
            GRAD=needs_grad,
            **common,
            **streamed,
            **sizes,
        )

    for before in range(0, count, turn):
        find_logits(before)
    for before in range(0, count, turn) if needs_grad else ():
        if turn < count:
            find_logits(before)
        now = min(count, before + turn)
        gradient_kernel[(row_blocks, d_blocks, parts)](
            acc_ptr=acc,
            before=before,
            turn=turn,
            now=now,
            per_part=triton.cdiv(now - before, parts),
            **loss,
            **streamed,
            **summed,
        )
    if not needs_grad:
        loss_kernel[(row_blocks,)](BM=sizes["BM"], **loss)
    return finish(x, out, normalize, needs_grad)
