"""What the streaming losses share: tiles of logits, who takes part, statistics of tiles; sizes and shares of tiles.

B rows of features meet C columns of memory in tiles [BM, BN]; the D axis is walked in steps of BK. Products
are taken in DOT, the lower of the two operand types or that of the caller's autocast, and accumulated in float32. In
all kernels these letters mean that, `rows` and `columns` are the numbers of a tile's features [BM] and memory rows
[BN], and a name in `_ptr` is the first element of a contiguous array. Logits are products divided by the temperature.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

WORKSPACE = 32 << 20  # bytes
LARGEST = tl.constexpr(2**31 - 1)
BT = tl.constexpr(32)  # tiles whose statistics are read at once
DOT_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def products(
    x_ptr,  # [B, D] features
    memory_ptr,  # [C, D]
    rows,  # [BM]
    columns,  # [BN]
    B,
    C,
    D,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    SQUARES: tl.constexpr,  # false: of no use
):
    """(x[rows] · memory[columns]ᵀ [BM, BN], ‖x[rows]‖² [BM]) in float32; rows past B and columns past C give 0."""
    product = tl.zeros([BM, BN], tl.float32)
    squares = tl.zeros([BM, BK], tl.float32)
    for d in range(0, D, BK):
        k = d + tl.arange(0, BK)
        a_inside = (rows[:, None] < B) & (k[None, :] < D)
        b_inside = (columns[:, None] < C) & (k[None, :] < D)
        a = tl.load(x_ptr + rows[:, None].to(tl.int64) * D + k[None, :], mask=a_inside, other=0.0)
        b = tl.load(memory_ptr + columns[:, None].to(tl.int64) * D + k[None, :], mask=b_inside, other=0.0)
        if SQUARES:
            squares += a.to(tl.float32) * a.to(tl.float32)
        # tf32x3: three tensor-core products that keep float32's accuracy; 16-bit operands ignore it.
        product = tl.dot(a.to(DOT), tl.trans(b.to(DOT)), product, input_precision="tf32x3")
    return product, tl.sum(squares, axis=1)


@triton.jit
def product_tile(
    x_ptr,  # these are the arguments of `products`
    memory_ptr,
    rows,
    columns,
    B,
    C,
    D,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
):
    """x[rows] · memory[columns]ᵀ as [BM, BN] float32."""
    product, _ = products(x_ptr, memory_ptr, rows, columns, B, C, D, BM, BN, BK, DOT, False)
    return product


@triton.jit
def logits_tile(
    x_ptr,  # from here the arguments of `products`
    memory_ptr,
    rows,
    columns,
    B,
    C,
    D,
    temperature,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    NORMALIZE: tl.constexpr,  # divide each feature by max(‖x‖, 1e-12) first
):
    """x[rows] · memory[columns]ᵀ / temperature as [BM, BN] float32."""
    product, squares = products(x_ptr, memory_ptr, rows, columns, B, C, D, BM, BN, BK, DOT, NORMALIZE)
    if NORMALIZE:
        temperature = temperature * tl.maximum(tl.sqrt(squares), 1e-12)[:, None]
    return product * (1.0 / temperature)


@triton.jit
def load_span(
    spans_ptr,  # [B, 2] int64 [start, stop), with HAS_SPANS
    rows,  # [BM]
    B,
    C,
    HAS_SPANS: tl.constexpr,
):
    """The columns [start, stop) that each row's softmax runs over, [BM] each; all of them without HAS_SPANS."""
    start, stop = rows * 0, rows * 0 + C
    if HAS_SPANS:
        first = tl.load(spans_ptr + 2 * rows, mask=rows < B, other=0)
        last = tl.load(spans_ptr + 2 * rows + 1, mask=rows < B, other=0)
        # Cut off before they become 32 bits wide, as columns are.
        start, stop = (
            tl.minimum(tl.maximum(first, start), stop).to(tl.int32),
            tl.minimum(tl.maximum(last, start), stop).to(tl.int32),
        )
    return start, stop


@triton.jit
def load_labels(
    labels_ptr,  # [B] int64, or with INDEXED [N]
    index_ptr,  # [B] int64 rows of N, with INDEXED
    rows,  # [BM], or the number of one row
    B,
    N,
    INDEXED: tl.constexpr,
):
    """The label of each row, int32: -1 takes no part, and as -2 counts an index out of range, of which nothing is read.

    What 32 bits do not hold stays out of range.
    """
    if INDEXED:
        index = tl.load(index_ptr + rows, mask=rows < B, other=-1)
        inside = (index >= 0) & (index < N)
        label = tl.load(labels_ptr + index, mask=inside, other=-1)
        label = tl.where(inside | (index == -1), label, -2)
    else:
        label = tl.load(labels_ptr + rows, mask=rows < B, other=-1)
    return tl.minimum(tl.maximum(label, -2), LARGEST).to(tl.int32)


@triton.jit
def row_weight(
    weights_ptr,  # [B], with HAS_WEIGHTS
    labels_ptr,  # from here the arguments of `load_labels`
    index_ptr,
    rows,
    B,
    N,
    INDEXED: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    """What each row's loss is multiplied by; 0 where its label is -1, by default 1/(the others)."""
    label = load_labels(labels_ptr, index_ptr, rows, B, N, INDEXED)
    if HAS_WEIGHTS:
        weight = tl.load(weights_ptr + rows, mask=rows < B, other=0.0).to(tl.float32)
    else:
        others = tl.zeros([BT], tl.int32)
        for start in range(0, B, BT):
            some = start + tl.arange(0, BT)
            others += (load_labels(labels_ptr, index_ptr, some, B, N, INDEXED) != -1).to(tl.int32)
        weight = 1.0 / tl.maximum(tl.sum(others, axis=0), 1).to(tl.float32)
    return tl.where(label == -1, 0.0, weight)


@triton.jit
def max_of_tiles(
    max_ptr,  # [tiles, B] the maximum of each row over the columns of a tile
    rows,  # [BM]
    first,  # the first tile that is read
    last,  # the first one that is not
    B,
    BM: tl.constexpr,
):
    """The maximum of each row over tiles first..last-1, [BM]; -inf for none."""
    row_max = tl.full([BM], float("-inf"), tl.float32)
    for start in range(first, last, BT):
        tile = start + tl.arange(0, BT)
        inside = (tile < last)[:, None] & (rows < B)[None, :]
        at = tile[:, None].to(tl.int64) * B + rows[None, :]
        row_max = tl.maximum(row_max, tl.max(tl.load(max_ptr + at, mask=inside, other=float("-inf")), axis=0))
    return row_max


@triton.jit
def sum_of_tiles(
    max_ptr,  # [tiles, B] the maximum of each row over the columns of a tile
    sum_ptr,  # [tiles, B] its sum of e^{logit - that maximum}
    row_max,  # [BM] its maximum over all tiles
    rows,  # [BM]
    count,  # of tiles
    B,
    BM: tl.constexpr,
):
    """Σ e^{logit - row_max} of each row over all tiles, [BM]."""
    row_sum = tl.zeros([BM], tl.float32)
    for start in range(0, count, BT):
        tile = start + tl.arange(0, BT)
        inside = (tile < count)[:, None] & (rows < B)[None, :]
        at = tile[:, None].to(tl.int64) * B + rows[None, :]
        rescale = tl.exp(tl.load(max_ptr + at, mask=inside, other=float("-inf")) - row_max[None, :])
        row_sum += tl.sum(tl.load(sum_ptr + at, mask=inside, other=0.0) * rescale, axis=0)
    return row_sum


@triton.jit
def total_of_tiles(
    sum_ptr,  # [tiles, B] a sum of each row over the columns of a tile
    rows,  # [BM]
    count,  # of tiles
    B,
    BM: tl.constexpr,
):
    """The sum of each row over all tiles, [BM]."""
    total = tl.zeros([BM], tl.float32)
    for start in range(0, count, BT):
        tile = start + tl.arange(0, BT)
        inside = (tile < count)[:, None] & (rows < B)[None, :]
        at = tile[:, None].to(tl.int64) * B + rows[None, :]
        total += tl.sum(tl.load(sum_ptr + at, mask=inside, other=0.0), axis=0)
    return total


@triton.jit
def through_norm(
    h,  # [BD] the gradient of x·scale
    x,  # [BD] one feature
    scale,  # 1/‖x‖, or 1
    NORMALIZE: tl.constexpr,
):
    """The gradient of x, [BD], from that of x·scale, which is x/‖x‖ when NORMALIZE."""
    if NORMALIZE:
        unit = x * scale
        h = (h - unit * tl.sum(h * unit, axis=0)) * scale
    return h


def dot_type(x: torch.Tensor, memory: torch.Tensor) -> torch.dtype:
    """The type that products are taken in: the lower of the two; of two low ones the memory's.

    Two of float32 are multiplied in the type of the caller's autocast, as PyTorch's own products are.
    """
    for dtype in (x.dtype, memory.dtype):
        if dtype not in DOT_TYPES:
            raise TypeError(f"features and memory must be float32, float16 or bfloat16 on CUDA, not {dtype}")
    if x.dtype == memory.dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    return x.dtype if memory.dtype == torch.float32 else memory.dtype


def plan(x: torch.Tensor, memory: torch.Tensor) -> dict:
    """Tile sizes from B and the types alone: C changes every epoch and must not compile anything.

    A step along D takes 128 bytes of a row, and two steps are on their way while one is multiplied. Float32 takes three
    products a step (tf32x3), whose operands need twice the registers: a smaller tile, no spills.
    """
    dot = dot_type(x, memory)
    low = dot != torch.float32
    widest = max(x.element_size(), memory.element_size())
    return {
        "BM": min(64, max(16, triton.next_power_of_2(x.shape[0]))),
        "BN": 128 if low else 64,
        "BK": 128 // widest,
        "DOT": DOT_TYPES[dot],
        "num_warps": 8,
        "num_stages": 4,
    }


class Schedule(NamedTuple):
    """How the tiles of a memory are shared out: see `one_target`."""

    row_blocks: int
    d_blocks: int
    columns: int  # tiles of columns
    turn: int  # of them at once, as the workspace holds; all where there is no gradient
    parts: int  # programs that share the tiles of a turn in launch 2


def schedule(x: torch.Tensor, C: int, sizes: dict, itemsize: int, needs_grad: bool) -> Schedule:
    """The schedule of a workspace of elements of `itemsize` bytes. No row and no column count as one."""
    B, D = x.shape
    count, row_blocks, d_blocks = (triton.cdiv(max(1, n), sizes[size]) for n, size in ((C, "BN"), (B, "BM"), (D, "BD")))
    if not needs_grad:
        return Schedule(row_blocks, d_blocks, count, count, 0)
    turn = min(count, max(1, WORKSPACE // (max(1, B) * sizes["BN"] * itemsize)))
    parts = max(1, min(turn, processors(x.device) // (row_blocks * d_blocks)))
    return Schedule(row_blocks, d_blocks, count, turn, parts)


def processors(device: torch.device) -> int:
    """The multiprocessors that a grid should fill; a few for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def split(C: int, BN: int, row_blocks: int, device: torch.device) -> tuple[int, int]:
    """(slices, columns per slice): about one program per multiprocessor, each with whole tiles."""
    tiles = triton.cdiv(C, BN)
    per_slice = triton.cdiv(tiles, max(1, processors(device) // row_blocks))
    return triton.cdiv(tiles, per_slice), per_slice * BN


def empty(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Float32 on the device of `like`."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def results(x: torch.Tensor, needs_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for a loss and the gradient of x, [B, D], or [0] where none is wanted."""
    return empty(x), empty(x, *x.shape) if needs_grad else empty(x, 0)
