"""What a data set is once its folder has been read: file names, identities, cameras."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from reid_fast.data.sets.in_threads import in_threads
from reid_fast.data.sets.paths import Paths

Int64 = npt.NDArray[np.int64]

# Is told each image whose name does not say what it must, and why, where that is no error.
Unparsed: TypeAlias = Callable[[Path, str], None]


@dataclass(frozen=True, eq=False, init=False)
class ImageSet:
    """One split, sorted by path.

    Attributes:
        paths: N image files; kept as `Paths`, whatever they are given as.
        pids: [N] int64, -1 = unknown identity.
        cams: [N] int64, 0-based, -1 = unknown camera.
    """

    paths: Paths
    pids: Int64
    cams: Int64

    def __init__(self, paths: Iterable[Path], pids: Int64, cams: Int64) -> None:
        for name, value in {"paths": Paths.of(paths), "pids": pids, "cams": cams}.items():
            object.__setattr__(self, name, value)
        if not pids.shape == cams.shape == (len(self),):
            raise ValueError(f"{len(self)} paths, pids {pids.shape}, cams {cams.shape}")

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[Path, int, int]], *, relabel: bool = False) -> ImageSet:
        """Sort (path, pid, camera) rows by path; `relabel` renames the pids 0..S-1 in sorted order."""
        ordered = sorted(rows, key=lambda row: str(row[0]))
        pids = np.array([pid for _, pid, _ in ordered], dtype=np.int64)
        if relabel:
            pids = np.unique(pids, return_inverse=True)[1].astype(np.int64)
        cams = np.array([cam for _, _, cam in ordered], dtype=np.int64)
        return cls((path for path, _, _ in ordered), pids, cams)

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, index: npt.ArrayLike) -> ImageSet:
        """The images at `index` (positions in any order, or an [N] boolean mask), pids unchanged."""
        index = np.asarray(index)
        chosen = np.arange(len(self))[index if index.size else []]
        return ImageSet(self.paths.select(chosen), self.pids[chosen], self.cams[chosen])

    def shared(self, other: ImageSet) -> Paths:
        """The files that both have, by name."""
        return self.paths.select(self.paths.isin(other.paths))

    @property
    def identities(self) -> int:
        """Number of known identities; a gallery's distractors (pid 0) count as one."""
        return len(np.unique(self.pids[self.pids >= 0]))

    @property
    def cameras(self) -> int:
        """Number of known cameras that took at least one of these images."""
        return len(np.unique(self.cams[self.cams >= 0]))


@dataclass(frozen=True, eq=False)
class ReidSet:
    """A data set: what to train on and, where identities are known, what to score on.

    Attributes:
        name: the name it was asked for by.
        train: pids relabelled 0..S-1; all -1 when unknown.
        query: None when the set has no test part.
        gallery: pid 0 may be distractors; junk boxes (pid -1) are gone.
        layout: the folder layout that was detected, e.g. "Market-style".
        root: the folder, or the file, that holds it or lists it.
    """

    name: str
    train: ImageSet
    query: ImageSet | None
    gallery: ImageSet | None
    layout: str
    root: Path

    @property
    def splits(self) -> dict[str, ImageSet]:
        """Those that the set has, by name: train, query, gallery."""
        splits = {"train": self.train, "query": self.query, "gallery": self.gallery}
        return {name: split for name, split in splits.items() if split is not None}

    def without(self, paths: Iterable[Path]) -> ReidSet:
        """The set with these files left out."""
        gone = Paths.of(paths)

        def kept(split: ImageSet) -> ImageSet:
            return split.select(~split.paths.isin(gone))

        query, gallery = (None if split is None else kept(split) for split in (self.query, self.gallery))
        return replace(self, train=kept(self.train), query=query, gallery=gallery)


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What a run learns from: the labelled images of a source, if there is one, then the N unlabelled target images.

    The source comes first everywhere: its images, its classes (its identities, 0..S-1), its half of a batch.

    Attributes:
        target: the N images that are clustered.
        source: images of S known identities, 0..S-1 (domain adaptation).
    """

    target: ImageSet
    source: ImageSet | None = None

    @cached_property
    def images(self) -> ImageSet:
        """All images, as the indices of a plan count them."""
        if self.source is None:
            return self.target
        parts = self.source, self.target
        pids, cams = (np.concatenate([getattr(part, name) for part in parts]) for name in ("pids", "cams"))
        return ImageSet(self.source.paths + self.target.paths, pids, cams)

    def fingerprints(self) -> dict[str, tuple[int, str]]:
        """How many images there are by these names, for each domain: labels and plans count them."""
        parts = {"dataset": self.target, "source": self.source}
        return {name: (len(part), part.paths.fingerprint()) for name, part in parts.items() if part is not None}

    def sizes(self) -> Int64:
        """[N] bytes of each image as its file is now, the source first; -1 where there is none."""
        return np.concatenate([np.empty(0, np.int64), *in_threads(_sizes, self.images.paths)])

    @property
    def first(self) -> int:
        """Index of the first target image."""
        return 0 if self.source is None else len(self.source)

    @property
    def source_classes(self) -> int:
        """S, the source's identities; 0 without one."""
        return 0 if self.source is None else self.source.identities

    @property
    def domains(self) -> int:
        """1, or 2 with a source: a loss is the sum of their means."""
        return 1 if self.source is None else 2

    def classes(self, labels: Int64) -> Int64:
        """The class of every image, source first: its identity, or S + the target's pseudo label; -1 stays.

        Args:
            labels: [N] pseudo labels of the target images.
        """
        if self.source is None:
            return labels
        return np.concatenate([self.source.pids, np.where(labels >= 0, labels + self.source_classes, -1)])


def _sizes(paths: Paths) -> Int64:
    sizes = []
    for place in paths.places():
        try:
            sizes.append(os.stat(place.file).st_size if place.size is None else place.size)
        except OSError:
            sizes.append(-1)
    return np.array(sizes, np.int64)
