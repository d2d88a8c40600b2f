"""Cameras and identities by whatever texts name them."""

from __future__ import annotations

from array import array

import numpy as np

from reid_fast.data.sets.records import Int64


class Numbering:
    """Numbers texts from 0 in their sorted order, however many of them there are."""

    def __init__(self) -> None:
        self._rows = array("q")
        self._codes: dict[str, int] = {}

    def add(self, text: str | None) -> None:
        """One more image; None where nothing is known of it."""
        self._rows.append(-1 if text is None else self._codes.setdefault(text, len(self._codes)))

    def numbers(self) -> Int64:
        """[N] the number of each image's text, -1 for None."""
        rank = np.full(len(self._codes) + 1, -1)
        rank[[self._codes[text] for text in sorted(self._codes)]] = np.arange(len(self._codes))
        return rank[np.array(self._rows, dtype=np.int64)]
