"""Features to a Jaccard graph, stage by stage, on a clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from scipy import sparse
from torch import Tensor

from reid_fast import clustering
from reid_fast.clock import Clock
from reid_fast.clustering.jaccard import Neighbours


def jaccard_graph(
    features: Tensor,
    k1: int,
    k2: int,
    max_distance: float,
    clock: Clock,
    *,
    search: Literal["exact", "ivf"] = "exact",
    say: Callable[[str], None],
) -> sparse.csr_matrix:
    """The neighbours, then the k-reciprocal Jaccard graph up to `max_distance` (see `reid_fast.jaccard_graph`).

    Args:
        features: [N, D] L2-normalised rows.
        k1, k2, max_distance: as in `reid_fast.jaccard_graph`.
        clock: gets the stages "knn" and "jaccard".
        search: all neighbours, or approximate ones, for millions of images.
        say: is told the recall of an approximate search.
    """
    k = min(k1, len(features))
    with clock.stage("knn"):
        if search == "ivf":
            index, similarity, recall = clustering.knn_ivf(features, k)
            neighbours: Neighbours = index, similarity
            say(f"approximate neighbours: {recall:.1%} of the true ones found")
        else:
            neighbours = clustering.knn(features, k)
    with clock.stage("jaccard"):
        return clustering.jaccard_graph(features, k1, k2, max_distance, neighbours=neighbours)
