"""Device code that the streaming losses share: score tiles, gradient tiles, statistics of tiles, row norms.

B rows of features meet C columns of memory in tiles [BM, BN]; the D axis is walked in steps of BK. Products
are taken in DOT, the lower of the two operand types, and accumulated in float32.
"""

import torch
import triton
import triton.language as tl

BT = tl.constexpr(32)  # tiles whose statistics are read at once
DOT_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def row_scale(x, rows, B, D, BM: tl.constexpr, BK: tl.constexpr, NORMALIZE: tl.constexpr):
    """1 / max(‖x_i‖, 1e-12) for each row of the tile, or ones."""
    square = tl.zeros([BM], tl.float32)
    if NORMALIZE:
        for d in range(0, D, BK):
            k = d + tl.arange(0, BK)
            inside = (rows[:, None] < B) & (k[None, :] < D)
            a = tl.load(x + rows[:, None].to(tl.int64) * D + k[None, :], mask=inside, other=0.0).to(tl.float32)
            square += tl.sum(a * a, axis=1)
        scale = 1.0 / tl.maximum(tl.sqrt(square), 1e-12)
    else:
        scale = square + 1.0
    return scale


@triton.jit
def score_tile(
    x, memory, rows, columns, B, C, D, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr
):
    """x[rows] · memory[columns]ᵀ as [BM, BN] float32; rows past B and columns past C give 0."""
    score = tl.zeros([BM, BN], tl.float32)
    for d in range(0, D, BK):
        k = d + tl.arange(0, BK)
        a_inside = (rows[:, None] < B) & (k[None, :] < D)
        b_inside = (columns[:, None] < C) & (k[None, :] < D)
        a = tl.load(x + rows[:, None].to(tl.int64) * D + k[None, :], mask=a_inside, other=0.0)
        b = tl.load(memory + columns[:, None].to(tl.int64) * D + k[None, :], mask=b_inside, other=0.0)
        # tf32x3: three tensor-core products that keep float32's accuracy; 16-bit operands ignore it.
        score = tl.dot(a.to(DOT), tl.trans(b.to(DOT)), score, input_precision="tf32x3")
    return score


@triton.jit
def gradient_tile(out, p, keep, memory, rows, columns, fresh, B, C, D, BK: tl.constexpr, DOT: tl.constexpr):
    """out[rows] ← out[rows] · keep + p · memory[columns]; `fresh` reads `out` as 0.

    [BM, D] does not fit the registers, so `out` is this program's own slice of a workspace small enough for
    L2.
    """
    for d in range(0, D, BK):
        k = d + tl.arange(0, BK)
        inside = (rows[:, None] < B) & (k[None, :] < D)
        b_inside = (columns[:, None] < C) & (k[None, :] < D)
        b = tl.load(memory + columns[:, None].to(tl.int64) * D + k[None, :], mask=b_inside, other=0.0)
        at = out + rows[:, None].to(tl.int64) * D + k[None, :]
        old = tl.load(at, mask=inside & (fresh == 0), other=0.0)
        tl.store(at, tl.dot(p.to(DOT), b.to(DOT), old * keep[:, None], input_precision="tf32x3"), mask=inside)
    tl.debug_barrier()  # the next tile may read these values from other threads


@triton.jit
def span_mask(columns, spans, rows, B, HAS_SPANS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, C):
    """Which columns each row's softmax runs over: all C of them, or its own [start, stop)."""
    inside = tl.broadcast_to((columns < C)[None, :], [BM, BN])
    if HAS_SPANS:
        start = tl.load(spans + 2 * rows, mask=rows < B, other=0)
        stop = tl.load(spans + 2 * rows + 1, mask=rows < B, other=0)
        inside = inside & (columns[None, :] >= start[:, None]) & (columns[None, :] < stop[:, None])
    return inside


@triton.jit
def top_of(peaks, rows, first, last, B, BM: tl.constexpr):
    """The maximum of each row over tiles first..last-1; -inf for none."""
    top = tl.full([BM], float("-inf"), tl.float32)
    for start in range(first, last, BT):
        tile = start + tl.arange(0, BT)
        inside = (tile < last)[:, None] & (rows < B)[None, :]
        at = tile[:, None] * B + rows[None, :]
        top = tl.maximum(top, tl.max(tl.load(peaks + at, mask=inside, other=float("-inf")), axis=0))
    return top


@triton.jit
def rest_of(peaks, totals, top, rows, count, B, BM: tl.constexpr):
    """Σ e^{s - top} of each row over all tiles, without the target."""
    rest = tl.zeros([BM], tl.float32)
    for start in range(0, count, BT):
        tile = start + tl.arange(0, BT)
        inside = (tile < count)[:, None] & (rows < B)[None, :]
        at = tile[:, None] * B + rows[None, :]
        gain = tl.exp(tl.load(peaks + at, mask=inside, other=float("-inf")) - top[None, :])
        rest += tl.sum(tl.load(totals + at, mask=inside, other=0.0) * gain, axis=0)
    return rest


@triton.jit
def through_norm(h, x_row, scale, NORMALIZE: tl.constexpr):
    """The gradient of x from h, the gradient of x·scale (x/‖x‖, when NORMALIZE)."""
    if NORMALIZE:
        unit = x_row * scale
        h = (h - unit * tl.sum(h * unit, axis=0)) * scale
    return h


def dot_type(x: torch.Tensor, memory: torch.Tensor) -> torch.dtype:
    """The type that products are taken in: the lower of the two; the memory's, of two low ones."""
    for dtype in (x.dtype, memory.dtype):
        if dtype not in DOT_TYPES:
            raise TypeError(f"features and memory must be float32, float16 or bfloat16 on CUDA, not {dtype}")
    return x.dtype if memory.dtype == torch.float32 else memory.dtype


def plan(x: torch.Tensor, memory: torch.Tensor) -> dict:
    """Tile sizes from B and the types alone: C changes every epoch and must not compile anything.

    Float32 takes three products a step (tf32x3), whose operands need twice the registers: a smaller tile, no
    spills.
    """
    dot = dot_type(x, memory)
    low = dot != torch.float32
    widest = max(x.element_size(), memory.element_size())
    return {
        "BM": min(64, max(16, triton.next_power_of_2(x.shape[0]))),
        "BN": 128 if low else 64,
        "BK": 128 // widest if low else 16,
        "DOT": DOT_TYPES[dot],
        "num_warps": 8,
        "num_stages": 3 if low else 2,
    }


def processors(device: torch.device) -> int:
    """The multiprocessors that a grid should fill; a few for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def split(C: int, BN: int, row_blocks: int, device: torch.device) -> tuple[int, int]:
    """(slices, columns per slice): about one program per multiprocessor, each with whole tiles."""
    tiles = triton.cdiv(C, BN)
    per_slice = triton.cdiv(tiles, max(1, processors(device) // row_blocks))
    return triton.cdiv(tiles, per_slice), per_slice * BN


def empty(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)
