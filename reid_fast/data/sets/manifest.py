"""Which files of a tree were found good: remembered, so that the next start looks only at those that have changed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from reid_fast.data.cache import file_about, keep
from reid_fast.data.sets.in_threads import in_threads
from reid_fast.data.sets.paths import Paths

Found: TypeAlias = Literal["whole", "decoded"]  # by `check_images`; by decoding, which sees more
Stamps: TypeAlias = npt.NDArray[np.uint64]

_VERSION = 2  # raise it whenever a check or a stamp changes
FRESH = 2 * 10**9  # nanoseconds within which a file may change and keep its time
_NEVER = bytes(8)  # the stamp of a file that is not to be remembered


class Manifest:
    """What is known of the files of one set.

    A file is known by its stamp, 64 bits of a hash of its path below the root, size and time of last change: another
    content is noticed unless both size and time have stayed. Files changed within two seconds of being looked at are
    never remembered, for their time could stay. A manifest that is missing, damaged or foreign knows nothing, and one
    that cannot be written is not: then files are checked again.
    """

    def __init__(self, root: Path, name: str) -> None:
        """
        Args:
            root: the folder, or the file, that holds or lists the set; known by its real path.
            name: of the set, for one folder may be read as several.
        """
        self._above = str((root if os.path.isdir(root) else root.parent) / "_")[:-1]
        self._file = file_about(root, f"{name}.npz")
        self._saved = _load(self._file)
        self._good = dict(self._saved)

    def stamps(self, paths: Paths, progress: Callable[[int, int], None]) -> Stamps:
        """[N] stamp of each file as it is now; 0 where there is none to be had.

        Args:
            paths: N images.
            progress: called with (files done, files in all).
        """
        before = time.time_ns() - FRESH
        parts = in_threads(lambda some: _stamps(some, self._above, before), paths, progress)
        return np.frombuffer(b"".join(parts), "<u8").astype(np.uint64)

    def knows(self, found: Found, stamps: Stamps) -> npt.NDArray[np.bool_]:
        """[N] whether a file was found good and has not changed since."""
        return _rows(self._good[found], stamps) >= 0

    def learn(self, found: Found, stamps: Stamps) -> None:
        """Remember that these files are good."""
        new = stamps[~self.knows(found, stamps) & (stamps != 0)]
        if len(new):
            self._good[found] = np.union1d(self._good[found], new)

    def save(self, stamps: Stamps) -> None:
        """Write what is known of files with these stamps, whole; what is known of others is forgotten."""
        good = {found: _present(known, stamps) for found, known in self._good.items()}
        same = all(np.array_equal(good[found], self._saved[found]) for found in good)
        version = np.array(_VERSION)
        whole, decoded = good["whole"], good["decoded"]
        keep(self._file, None if same else lambda file: np.savez(file, version=version, whole=whole, decoded=decoded))


def _rows(known: Stamps, stamps: Stamps) -> npt.NDArray[np.int64]:
    """[N] the row of `known`, which is sorted, where each stamp stands; -1 where it does not."""
    rows = np.searchsorted(known, stamps)
    return np.where((np.append(known, np.uint64(0))[rows] == stamps) & (stamps != 0), rows, -1)


def _present(known: Stamps, stamps: Stamps) -> Stamps:
    present = np.zeros(len(known) + 1, dtype=bool)
    present[_rows(known, stamps)] = True
    return known[present[:-1]]


def _stamps(paths: Paths, above: str, before: int) -> bytes:
    digests = []
    for text, place in zip(paths.texts(), paths.places(), strict=True):
        try:
            status = os.stat(place.file)
        except OSError:
            digests.append(_NEVER)
            continue
        size, time_ns = status.st_size, status.st_mtime_ns
        key = f"{text.removeprefix(above)}\0{place.offset} {place.size} {size} {time_ns}"
        digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        digests.append(digest if time_ns < before else _NEVER)
    return b"".join(digests)


def _load(file: Path) -> dict[Found, Stamps]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if arrays["version"].tolist() == _VERSION:
                return {found: arrays[found].astype(np.uint64).reshape(-1) for found in get_args(Found)}
    except Exception:  # there are many ways for a file to be foreign, and one answer to all
        pass
    return {found: np.empty(0, np.uint64) for found in get_args(Found)}
