"""The exact search in torch, for a GPU: products in bf16 pick candidates, a bound proves them, fp32 sums score them.

A similarity is the sum that `_dot` defines. It consists of single fp32 operations in an order that D alone decides, so
its bits depend neither on the pass that found a neighbour nor on the height of a block nor on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reid_fast.device import free_bytes, full_precision

# What a pass multiplies in, and its candidates beyond k. The rows that it cannot prove are left to the next; those that
# the last one cannot, in a crowd of duplicates, are scored against everything.
Passes = tuple[tuple[torch.dtype, int], ...]
_LAST = (torch.float64, 512)
_UNIT = 2.0**-23  # twice the unit roundoff of fp32
# What a sum of products may be off by, in these units for each term. Tensor cores cut off what lies below the largest
# of the terms that they add at once, and of those at least four; fp64 rounds once, at the end.
_OFF = {torch.bfloat16: 2, torch.float32: 1, torch.float64: 0}
_TALLEST = 2048  # rows of a block: enough for the product not to wait for memory
_TILE = 128  # rows and columns of the product's tiles
_LARGEST = (1 << 31) - 1  # values of a block of products, so that kernels address them with 32 bits
_ON_CPU = 1 << 27  # bytes for blocks where only tests come by
_TERMS = 1 << 28  # values of a block of terms: enough for a kernel not to wait for its launch


def search(
    rows: Tensor, k: int, begin: int, end: int, *, memory: int | None = None, passes: Passes | None = None
) -> tuple[Tensor, Tensor, list[int]]:
    """The k most similar of all rows for each of the rows [begin, end).

    Args:
        rows: [N, D] L2-normalised, float32, C-contiguous.
        k: 1..N, the row itself included.
        memory: bytes for blocks of products and of terms; by default half of what the GPU has free.
        passes: by default the fastest of the device.

    Returns:
        index [end - begin, k] int32 and similarity [end - begin, k] float32 as `reid_fast.knn`, and how many rows each
        pass left unproved.
    """
    memory = memory or (free_bytes(rows.device) // 2 if rows.is_cuda else _ON_CPU)
    index = torch.empty(end - begin, k, dtype=torch.int32, device=rows.device)
    similarity = torch.empty(end - begin, k, device=rows.device)
    searched = pending = torch.arange(begin, end, device=rows.device)
    unproved = []

    def keep(own: Tensor, column: Tensor, score: Tensor) -> None:
        index[own - begin], similarity[own - begin] = column.int(), score

    height = _height(len(rows), memory // 2)
    with full_precision(rows.device):
        for dtype, spare in passes or _passes(rows.device):
            if not len(pending):
                break
            packed, error = _packed(rows, dtype)
            proved = []
            for own in pending.split(height):
                approximate, column = _candidates(dtype, packed, own, min(k + spare, len(rows)))
                score, settled = _settled(rows, own, approximate, column, error[own], k, memory // 2)
                keep(own, *_best(own, column, score, k))
                proved.append(settled)
            pending = pending[~torch.cat(proved)]
            unproved.append(len(pending))
    for own in pending.split(max(1, height // 8)):  # whole rows are sorted, at 48 bytes a value
        column = torch.arange(len(rows), device=rows.device).expand(len(own), -1)
        keep(own, *_best(own, column, _similarity(rows, own, column, memory // 2), k))
    similarity[:, :1] = _similarity(rows, searched, searched[:, None], memory // 2)
    return index, similarity, unproved


def _passes(device: torch.device) -> Passes:
    """bf16 where tensor cores multiply it and torch (2.8) hands out the fp32 sums."""
    tensor_cores = device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)
    first = torch.bfloat16 if tensor_cores and hasattr(torch.ops.aten.mm, "dtype_out") else torch.float32
    return (first, 64), _LAST


def _height(n: int, memory: int) -> int:
    """Rows of a block: whole tiles, where they fit."""
    width = _padded(n)
    height = min(memory // (6 * width), _LARGEST // width, _TALLEST)  # 4 bytes a product, and the selection's
    return height // _TILE * _TILE or max(1, height)


def _padded(n: int) -> int:
    return -(-n // _TILE) * _TILE


def _packed(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rows as a pass multiplies them, and for each an upper bound of |similarity - product| with any other.

    With x = b + r, b the packed row: x·y - b·b' = b·r' + r·b' + r·r', each at most the product of two norms. The sums
    of the product and of the similarity are off by some units for each term and 32 in all, times the norms.
    """
    packed = rows.bfloat16() if dtype == torch.bfloat16 else rows
    parts = list(zip(rows.split(_TALLEST), packed.split(_TALLEST), strict=True))
    norm = torch.cat([torch.linalg.vector_norm(part.float(), dim=1) for _, part in parts])
    residual = torch.cat([torch.linalg.vector_norm(whole - part.float(), dim=1) for whole, part in parts])
    rounding = norm * residual.max() + residual * norm.max() + residual * residual.max()
    width = rows.shape[1]
    sums = (_OFF[dtype] * width + 32) * _UNIT * (norm + residual) * (norm.max() + residual.max())
    return packed, (rounding + sums) * (1 + 2 * (width + 16) * _UNIT)  # the norms are off, too


def _candidates(dtype: torch.dtype, packed: Tensor, own: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest products of each row, largest first, and their columns; the row itself is infinitely so."""
    products = torch.empty(len(own), _padded(len(packed)), device=packed.device)
    _multiply(dtype, packed[own], packed, products[:, : len(packed)])
    products[:, len(packed) :] = -torch.inf
    products.scatter_(1, own[:, None], torch.inf)
    return _largest(products, count)


def _multiply(dtype: torch.dtype, left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left @ right.T, fp32: its sums in fp32, or in fp64 and rounded."""
    if dtype == torch.float64:
        for part, panel in zip(right.split(_TALLEST), out.split(_TALLEST, dim=1), strict=True):
            panel.copy_(left.double() @ part.double().T)
    elif dtype == torch.bfloat16 and left.is_cuda:
        torch.mm(left, right.T, out_dtype=torch.float32, out=out)
    else:  # products of bf16 values are exact in fp32
        torch.mm(left.float(), right.float().T, out=out)


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`values.topk(count)`, which reads its input six times, in about two: the leaders of groups of columns first.

    Whatever a group holds that is not chosen is at most its leader, and so at most each of `count` chosen leaders.
    """
    width = values.shape[1]
    size = min(1 << (width // (2 * count)).bit_length() // 2, _TILE)
    if size == 1:
        return values.topk(count)
    groups = width // size  # group g has the columns g, g + groups, g + 2·groups, ...
    leaders = values.view(-1, size, groups).amax(dim=1).topk(count, sorted=False).indices
    members = (leaders[:, None] + groups * torch.arange(size, device=values.device)[:, None]).flatten(1)
    best, place = values.gather(1, members).topk(count)
    return best, members.gather(1, place)


def _settled(
    rows: Tensor, own: Tensor, approximate: Tensor, column: Tensor, error: Tensor, k: int, memory: int
) -> tuple[Tensor, Tensor]:
    """Similarities of the candidates that may be among the k best, -inf for the others, and which rows are proved.

    k candidates are scored, then those that the error lets reach the worst of these k. A row is proved if its last
    candidate does not reach it, for then nothing that is no candidate does.
    """
    score = torch.full_like(approximate, -torch.inf)
    score[:, 0] = torch.inf
    score[:, 1:k] = _similarity(rows, own, column[:, 1:k], memory)
    floor = score[:, :k].amin(dim=1) - error
    proved = approximate[:, -1] < floor if column.shape[1] < len(rows) else torch.ones_like(floor, dtype=torch.bool)
    reaches = (approximate[:, k:] >= floor[:, None]) & proved[:, None]
    row, place = reaches.nonzero(as_tuple=True)
    score[row, k + place] = _similarity(rows, own[row], column[row, k + place, None], memory)[:, 0]
    return score, proved


def _similarity(rows: Tensor, own: Tensor, column: Tensor, memory: int) -> Tensor:
    """[h, c] similarities of the rows own [h] to the rows column [h, c]."""
    terms = min(memory // 8, _TERMS) // rows.shape[1]
    wide = max(1, min(terms, column.shape[1]))
    tall = max(1, terms // wide)
    score = torch.empty(column.shape, device=rows.device)
    for top in range(0, len(own), tall):
        for left in range(0, column.shape[1], wide):
            block = slice(top, top + tall), slice(left, left + wide)
            score[block] = _dot(rows[own[block[0]], None], rows[column[block]])
    return score


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Σ_d left_d · right_d over the last dimension: products, then the upper half added to the lower until one is left.

    As separate operations, so that each is rounded by itself everywhere; a zero is positive.
    """
    terms = left * right
    width = terms.shape[-1]
    while width > 1:
        half = (width + 1) // 2
        terms[..., : width - half] += terms[..., half:width]
        width = half
    return terms[..., 0] + 0.0


def _best(own: Tensor, column: Tensor, score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k by (similarity descending, index ascending), behind the row itself."""
    column, order = column.sort(dim=1)
    score = score.gather(1, order).masked_fill_(column == own[:, None], torch.inf)
    score, order = score.sort(dim=1, descending=True, stable=True)
    return column.gather(1, order[:, :k]), score[:, :k]
