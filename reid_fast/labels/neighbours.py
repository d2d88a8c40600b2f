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
) -> Neighbours | None:
    """The k nearest rows of each row (see `reid_fast.knn`).

    Args:
        features: [N, D] L2-normalised rows.
        k: neighbours of a row, itself included; at most N are found.
        clock: gets the stage "knn".
        search: all neighbours, or approximate ones, for millions of images.
        say: is told the recall of an approximate search.
        ranks: share an exact search; an approximate one the first rank makes alone.

    Returns:
        Index and similarity; None on ranks that need none, for the first one builds the graph.
    """
    k = min(k, len(features))
    with clock.stage("knn"):
        if search == "exact":
            return clustering.knn(features, k, group=ranks.group)
        found: list[Neighbours] = []

        def approximate() -> float:
            index, similarity, recall = clustering.knn_ivf(features, k)
            found.append((index, similarity))
            return recall

        say(f"approximate neighbours: {ranks.from_first(approximate):.1%} of the true ones found")
        return found[0] if found else None
