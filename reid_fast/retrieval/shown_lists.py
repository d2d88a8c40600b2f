"""Ranked lists as they are shown: which ones, who is right, and by which rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from reid_fast.data.sets import ImageSet, Paths, picture

Verdict: TypeAlias = Literal["right", "wrong", "unknown"]


@dataclass(frozen=True)
class Match:
    """An image in a list."""

    rank: int  # from 1
    row: int  # of the gallery
    similarity: float
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class ShownLists:
    """Ranked lists with what is known of their images.

    Attributes:
        query, gallery: the images; -1 is an unknown identity.
        index: [Q, k] int64 rows of the gallery, -1 for none.
        similarity: [Q, k].
        rule: what a query does not see, in a sentence.
    """

    query: ImageSet
    gallery: ImageSet
    index: Tensor
    similarity: Tensor
    rule: str

    @property
    def identities_known(self) -> bool:
        """Whether any match can be right or wrong."""
        return bool((self.query.pids >= 0).any() and (self.gallery.pids >= 0).any())

    def matches(self, query: int) -> list[Match]:
        """The list of a query."""
        rows = zip(self.index[query].tolist(), self.similarity[query].tolist(), strict=True)
        return [
            Match(rank, row, similarity, self._verdict(query, row))
            for rank, (row, similarity) in enumerate(rows, start=1)
            if row >= 0
        ]

    def chosen(self, count: int) -> list[int]:
        """At most `count` queries, evenly spread."""
        count = min(count, len(self.query))
        return np.linspace(0, len(self.query) - 1, count).round().astype(int).tolist() if count else []

    def first_right(self) -> tuple[int, int]:
        """How many queries of known identity have the right person first, and how many such queries there are."""
        known = np.flatnonzero(self.query.pids >= 0).tolist()
        first = [found[0].verdict for found in map(self.matches, known) if found]
        return first.count("right"), len(known)

    def to_json(self) -> dict[str, Any]:
        """All lists as JSON's types."""
        queries, others = list(self.query.paths.texts()), list(self.gallery.paths.texts())
        return {
            "rule": self.rule,
            "gallery_images": len(others),
            "queries": [
                {
                    "query": name,
                    "matches": [
                        {"image": others[match.row], "similarity": match.similarity, "verdict": match.verdict}
                        for match in self.matches(row)
                    ],
                }
                for row, name in enumerate(queries)
            ],
        }

    def _verdict(self, query: int, row: int) -> Verdict:
        asked, found = self.query.pids[query], self.gallery.pids[row]
        if asked < 0 or found < 0:
            return "unknown"
        return "right" if asked == found else "wrong"


def pictures(paths: Paths, rows: list[int]) -> Iterator[tuple[str, Image.Image]]:
    """Base name and pixels of some images."""
    for row in rows:
        path = paths[row]
        yield path.name, picture(path)
