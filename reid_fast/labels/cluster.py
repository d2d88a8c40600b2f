"""Features to a Jaccard graph, stage by stage, on a clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from scipy import sparse
from torch import Tensor

from reid_fast import ops


class Clock(dict[str, float]):
    """Seconds by stage."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[], None]]:
        """Add the seconds spent inside to `name`, at the end and at each call of the function it yields.

        Waits for the GPU each time.
        """
        start = self._now()

        def lap() -> None:
            nonlocal start
            now = self._now()
            self[name] = self.get(name, 0.0) + now - start
            start = now

        yield lap
        lap()

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


def jaccard_graph(
    features: Tensor,
    k1: int,
    k2: int,
    max_distance: float,
    clock: Clock,
    *,
    search: Literal["exact", "ivf"] = "exact",
    say: Callable[[str], None] = print,
) -> sparse.csr_matrix:
    """The neighbours, then the k-reciprocal Jaccard graph up to `max_distance` (see `reid_fast.jaccard_graph`).

    Args:
        features: [N, D] unit rows.
        k1, k2, max_distance: as in `reid_fast.jaccard_graph`.
        clock: gets the stages "knn" and "jaccard".
        search: all neighbours, or approximate ones, for millions of images.
        say: is told the recall of an approximate search.
    """
    k = min(k1, len(features))
    with clock.stage("knn"):
        if search == "ivf":
            *neighbours, recall = ops.knn_ivf(features, k)
            say(f"approximate neighbours: {recall:.1%} of the true ones found")
        else:
            neighbours = ops.knn(features, k)
    with clock.stage("jaccard"):
        return ops.jaccard_graph(features, k1, k2, max_distance, neighbours=neighbours)
