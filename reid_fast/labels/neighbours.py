"""Features to neighbours, on a clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from reid_fast import clustering
from reid_fast.clock import Clock
from reid_fast.clustering.jaccard import Neighbours
from reid_fast.ranks import ALONE, Ranks


def find_neighbours(
    features: Tensor,
    k: int,
    clock: Clock,
    *,
    search: Literal["exact", "ivf"] = "exact",
    say: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> Neighbours:
    """The k nearest rows of each row (see `reid_fast.knn`).

    Args:
        features: [N, D] L2-normalised rows.
        k: neighbours of a row, itself included; at most N are found.
        clock: gets the stage "knn".
        search: all neighbours, or approximate ones, for millions of images.
        say: is told the recall of an approximate search.
        ranks: share an exact search; all of them get all rows.
    """
    k = min(k, len(features))
    with clock.stage("knn"):
        if search == "exact":
            return clustering.knn(features, k, group=ranks.group)
        index, similarity, recall = ranks.from_first(lambda: clustering.knn_ivf(features, k))
        say(f"approximate neighbours: {recall:.1%} of the true ones found")
        return index, similarity
