"""The hardest mistakes of an evaluation: queries whose first correct match comes last."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reid_fast.data.sets import ImageSet
from reid_fast.device import full_precision
from reid_fast.metrics import score_queries

QUERIES = 8
RANKS = 10


@dataclass(frozen=True)
class Found:
    """A gallery image at a rank, from 1, of a query; camera -1 is unknown."""

    path: Path
    rank: int
    right: bool
    similarity: float
    camera: int


@dataclass(frozen=True)
class Mistake:
    """A query, its first `RANKS` gallery images, and behind them the first correct one, if it comes later."""

    path: Path
    camera: int
    average_precision: float
    matches: int
    found: tuple[Found, ...]


def hardest(query: ImageSet, queries: Tensor, gallery: ImageSet, features: Tensor) -> list[Mistake]:
    """The queries whose first correct match has the highest rank; of equal ones, those of the lowest AP.

    Those whose first image is correct are no mistakes. What a query does not see under the field's rule, images of its
    own identity and camera and junk, is in no list.

    Args:
        query: Q images.
        queries: [Q, D] L2-normalised features.
        gallery: G images.
        features: [G, D] theirs.
    """

    def similarity(rows: slice) -> Tensor:
        with full_precision(features.device):
            return queries[rows] @ features.T

    ids = query.pids, query.cams, gallery.pids, gallery.cams
    scores = score_queries(similarity, *ids, device=features.device)
    first, precision = scores.first.tolist(), scores.precision.tolist()
    wrong = ((scores.matches > 0) & (scores.first > 1)).nonzero()[:, 0].tolist()
    wrong.sort(key=lambda row: (-first[row], precision[row], row))
    return [
        _mistake(row, query, queries[row], gallery, features, precision[row], int(scores.matches[row]))
        for row in wrong[:QUERIES]
    ]


def _mistake(
    row: int, query: ImageSet, feature: Tensor, gallery: ImageSet, features: Tensor, precision: float, matches: int
) -> Mistake:
    pid, cam = int(query.pids[row]), int(query.cams[row])
    same = gallery.pids == pid
    hidden = (same & (gallery.cams == cam)) | (gallery.pids == -1)
    with full_precision(features.device):
        similarity = (features @ feature).cpu()
    order = similarity.masked_fill(torch.from_numpy(hidden), -torch.inf).argsort(descending=True, stable=True).tolist()
    order = order[: len(order) - int(hidden.sum())]
    right = next(place for place, index in enumerate(order) if same[index])
    places = [*range(min(RANKS, len(order))), *([right] if right >= RANKS else [])]
    found = (
        Found(
            gallery.paths[order[place]],
            place + 1,
            bool(same[order[place]]),
            similarity[order[place]].item(),
            int(gallery.cams[order[place]]),
        )
        for place in places
    )
    return Mistake(query.paths[row], cam, precision, matches, tuple(found))
