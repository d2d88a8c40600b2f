"""The gallery images most like each query, exactly, by inner product."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reid_fast.clustering import reporting, rerank
from reid_fast.console import Console
from reid_fast.data.sets import ImageSet, Paths
from reid_fast.device import full_precision
from reid_fast.errors import UserError
from reid_fast.retrieval.loaded import Embedded, LoadedEncoder

_BLOCK_ELEMENTS = 2**23  # query × gallery similarities held at once: 32 MiB


@dataclass(frozen=True, eq=False)
class RankedLists:
    """For each query the most similar gallery images, the best first.

    Attributes:
        index: [Q, k] int64 rows of the gallery; -1 where no further image is left.
        similarity: [Q, k] float32 inner products of unit features, -1..1; -inf where index is -1.
        query, gallery: the files, or None where features or pixels were given.
    """

    index: Tensor
    similarity: Tensor
    query: Paths | None
    gallery: Paths | None


def search(encoder: LoadedEncoder, query: Any, gallery: Any, k: int = 10, *, reranked: bool = False) -> RankedLists:
    """Find the gallery images most like each query.

    Args:
        encoder: what `load_encoder` returns.
        query, gallery: image files, folders, tables or tar files of images (one of them or a list); or what the encoder
            takes; or what it has made of them: an `Embedded`, or [N, D] features.
        k: images of a list; fewer where the gallery has fewer.
        reranked: order them by k-reciprocal re-ranking, see `rerank`; the similarities stay those of the features.

    Returns:
        The lists, on the CPU. A file is never in a list of its own.

    Raises:
        UserError: no such images, an unreadable one, k < 1.
    """
    queries, others = _embedded(encoder, query), _embedded(encoder, gallery)
    hidden = None if queries.paths is None or others.paths is None else own_files(queries.paths, others.paths)
    order = rank_again if reranked else rank
    index, similarity = order(queries.features, others.features, k, hidden)
    return RankedLists(index, similarity, queries.paths, others.paths)


def rank(query: Tensor, gallery: Tensor, k: int, hidden: Sequence[np.ndarray] | None = None) -> tuple[Tensor, Tensor]:
    """The k largest inner products of each query, exact in float32; of equal ones the lower row comes first.

    Args:
        query: [Q, D] float32.
        gallery: [G, D] float32; the work is done on its device.
        k: at least 1.
        hidden: Q arrays of gallery rows that a query does not see.

    Returns:
        index [Q, k] int64 and similarity [Q, k] float32 on the CPU, k at most G; -1 and -inf where nothing is left.
    """
    k, most = _needed(query, gallery, k, hidden)
    index = torch.empty(len(query), most, dtype=torch.int64)
    similarity = torch.empty(len(query), most)
    for rows in torch.arange(len(query)).split(max(1, _BLOCK_ELEMENTS // max(1, len(gallery)))):
        with full_precision(gallery.device):
            products = query[rows].to(gallery) @ gallery.T
        best, found = _largest(products, most)
        index[rows], similarity[rows] = found.cpu(), best.cpu()
    if hidden is None:
        return index, similarity
    return _without(index, similarity, hidden, k)


def rank_again(
    query: Tensor, gallery: Tensor, k: int, hidden: Sequence[np.ndarray] | None = None, console: Console | None = None
) -> tuple[Tensor, Tensor]:
    """The first k gallery rows of each query by k-reciprocal re-ranking as published, see `reid_fast.rerank`.

    Args:
        query, gallery, k, hidden: as of `rank`; what is hidden from a query takes part in the re-ranking.
        console: shows what begins, and progress.

    Returns:
        As `rank`, in the order of re-ranking; the similarities are the inner products.
    """
    k, most = _needed(query, gallery, k, hidden)
    console = console or Console(quiet=True)
    with console.progress("preparing", "parts") as report, reporting(report):
        made = rerank(query, gallery, say=lambda stage: console.say(f"re-ranking: {stage}"))
    with console.progress("re-ranking", "queries") as report:
        index = made.nearest(most, report)[0].cpu()
    similarity = torch.empty(index.shape)
    for row, found in enumerate(index.to(gallery.device)):
        with full_precision(gallery.device):
            similarity[row] = (gallery[found] @ query[row].to(gallery)).cpu()
    return (index, similarity) if hidden is None else _without(index, similarity, hidden, k)


def _needed(query: Tensor, gallery: Tensor, k: int, hidden: Sequence[np.ndarray] | None) -> tuple[int, int]:
    """The length of a list, and how many rows must be found for it."""
    if k < 1:
        raise UserError(f"k must be at least 1, not {k}")
    if query.shape[1] != gallery.shape[1]:
        raise UserError(f"query features have {query.shape[1]} columns, gallery features {gallery.shape[1]}")
    k = min(k, len(gallery))
    return k, min(len(gallery), k + max((len(rows) for rows in hidden or ()), default=0))


def own_files(query: Paths, gallery: Paths) -> list[np.ndarray]:
    """For each query the gallery rows that are the same file, by path."""
    rows = defaultdict[str, list[int]](list)
    asked = {_absolute(text) for text in query.texts()}
    for row, text in enumerate(gallery.texts()):
        if (file := _absolute(text)) in asked:
            rows[file].append(row)
    return [np.array(rows.get(_absolute(text), []), dtype=np.int64) for text in query.texts()]


def same_camera(query: ImageSet, gallery: ImageSet) -> list[np.ndarray]:
    """For each query the gallery rows of its identity from its camera, where both are known: the field's rule."""
    rows = defaultdict[tuple[int, int], list[int]](list)
    for row, key in enumerate(zip(gallery.pids.tolist(), gallery.cams.tolist(), strict=True)):
        rows[key].append(row)
    keys = zip(query.pids.tolist(), query.cams.tolist(), strict=True)
    return [np.array([] if -1 in key else rows.get(key, []), dtype=np.int64) for key in keys]


def _embedded(encoder: LoadedEncoder, images: Any) -> _Given:
    if isinstance(images, Embedded):
        return _Given(images.features, images.paths)
    if isinstance(images, Tensor) and images.is_floating_point() and images.ndim == 2:
        return _Given(images.float(), None)
    sources = [images] if isinstance(images, str | Path) else images
    if isinstance(sources, Paths | list | tuple) and all(isinstance(source, str | Path) for source in sources):
        made = encoder.embed(list(sources))
        return _Given(made.features, made.paths)
    return _Given(encoder(images), None)


@dataclass(frozen=True)
class _Given:
    features: Tensor
    paths: Paths | None


def _absolute(text: str) -> str:
    return os.path.abspath(text)


def _largest(products: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, largest first; of equal ones the first, which `topk` does not promise."""
    best, found = products.topk(min(k + 1, products.shape[1]))
    tied = (best[:, k:] == best[:, k - 1 : k]).any(1)
    best, found = best[:, :k], found[:, :k]
    if tied.any():  # more of them than there are places
        sorted_rows = products[tied].sort(dim=1, descending=True, stable=True)
        best[tied], found[tied] = sorted_rows.values[:, :k], sorted_rows.indices[:, :k]
    by_row = found.argsort(dim=1)
    best, found = best.gather(1, by_row), found.gather(1, by_row)
    order = best.argsort(dim=1, descending=True, stable=True)
    return best.gather(1, order), found.gather(1, order)


def _without(index: Tensor, similarity: Tensor, hidden: Sequence[np.ndarray], k: int) -> tuple[Tensor, Tensor]:
    """The first k of each row that are not hidden from it."""
    gone = torch.from_numpy(np.stack([np.isin(row, rows) for row, rows in zip(index.numpy(), hidden, strict=True)]))
    order = gone.int().argsort(dim=1, stable=True)[:, :k]
    gone = gone.gather(1, order)
    return index.gather(1, order).masked_fill_(gone, -1), similarity.gather(1, order).masked_fill_(gone, -torch.inf)
