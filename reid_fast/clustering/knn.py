"""Exact nearest neighbours of L2-normalised rows among themselves (Zhong et al., CVPR 2017, the first step)."""

from __future__ import annotations

from typing import overload

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from reid_fast import _C
from reid_fast.clustering import knn_device
from reid_fast.clustering.inputs import Features, clip_k, normalised_rows
from reid_fast.device import full_precision


@overload
def knn(features: Tensor, k: int, *, group: dist.ProcessGroup | None = None) -> tuple[Tensor, Tensor]: ...
@overload
def knn(features: np.ndarray, k: int, *, group: dist.ProcessGroup | None = None) -> tuple[np.ndarray, np.ndarray]: ...
def knn(
    features: Features, k: int, *, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor] | tuple[np.ndarray, np.ndarray]:
    """The k most similar rows of each row by cosine, exact.

    On the CPU one compiled pass forms the products and selects from them: in bf16 where the processor
    multiplies it (fp32 elsewhere), each product used for its row and its column, and everything that the
    rounding error bound cannot exclude settled by an fp32 dot product. Memory: half the features' size (all
    of it in fp32) and 24·K bytes a row. On a GPU torch does the same in blocks of rows, in at most half of the memory
    that is free beside half the features' size. The caller's autocast and matmul precision change nothing.

    Args:
        features: [N, D], any float type, strides and device; rows are divided by their norm here.
        k: neighbours of a row, itself included; more than N is clipped to N with a warning.
        group: processes that share the search, each a part of the rows: all of them call this with the same features,
            and all get all rows. Without a group the caller searches alone, whatever processes there are.

    Returns:
        index [N, K] int32 and similarity [N, K] float32, most similar first (the lower index on ties), the
        row itself in column 0; arrays for an array, tensors on the features' device for a tensor.

    Raises:
        ValueError: k < 1, or a feature row that is zero or not finite (named).
    """
    rows = normalised_rows(features)
    k = clip_k(k, len(rows), "k")
    index, similarity = _search(rows, k, 0, len(rows)) if group is None else _shared_search(rows, k, group)
    return (index, similarity) if isinstance(features, Tensor) else (index.numpy(), similarity.numpy())


def knn_ref(features: Features, k: int) -> tuple[Tensor, Tensor] | tuple[np.ndarray, np.ndarray]:
    """`knn` in plain PyTorch: the products of blocks of rows, sorted whole."""
    rows = normalised_rows(features)
    k = clip_k(k, len(rows), "k")
    index = torch.empty(len(rows), k, dtype=torch.int32, device=rows.device)
    similarity = torch.empty(len(rows), k, device=rows.device)
    for own in torch.arange(len(rows), device=rows.device).split(1024):
        with full_precision(rows.device):
            products = rows[own] @ rows.T
        to_itself = products.gather(1, own[:, None])
        products.scatter_(1, own[:, None], torch.inf)
        best, column = products.sort(dim=1, descending=True, stable=True)
        index[own], similarity[own] = column[:, :k].int(), best[:, :k]
        similarity[own, :1] = to_itself
    return (index, similarity) if isinstance(features, Tensor) else (index.numpy(), similarity.numpy())


def _search(rows: Tensor, k: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
    if rows.is_cuda:
        return knn_device.search(rows, k, begin, end)[:2]
    index, similarity = _C.knn(rows.numpy(), k, begin, end)
    return torch.from_numpy(index), torch.from_numpy(similarity)


def _shared_search(rows: Tensor, k: int, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Each process searches an equal share of the rows, the last perhaps less, and all gather all shares."""
    share = -(-len(rows) // group.size())
    begin = min(group.rank() * share, len(rows))
    index, similarity = _search(rows, k, begin, min(begin + share, len(rows)))
    return _gathered(index, share, group)[: len(rows)], _gathered(similarity, share, group)[: len(rows)]


def _gathered(part: Tensor, share: int, group: dist.ProcessGroup) -> Tensor:
    padded = part.new_zeros(share, part.shape[1])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in range(group.size())]
    dist.all_gather(parts, padded, group)
    return torch.cat(parts)
