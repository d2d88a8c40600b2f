"""Millions of paths in a few arrays."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import index, itemgetter
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from reid_fast.data.sets.places import Place, member, place_of

_BLOCK = 1 << 16  # rows at once, where each becomes an object of Python's


class Packed(NamedTuple):
    """Where images lie inside tar files."""

    shards: Mapping[str, str]  # the tar file by what stands before a base name; files lie in the other folders
    spans: npt.NDArray[np.int64]  # [N, 2] offset and size, 0 of a file


class Paths(Sequence[Path]):
    """N paths, immutable and in any order; each becomes a `Path` when it is asked for.

    The base names lie one behind the other in one buffer and every folder is stored once: a path takes its base name
    and 4 to 8 bytes (16 more inside a tar file). Names that are not UTF-8 survive as `os.fsdecode` has them.
    """

    def __init__(
        self,
        folders: tuple[str, ...],
        folder: npt.NDArray[Any],
        names: bytes,
        bounds: npt.NDArray[Any],
        packed: Packed | None = None,
    ) -> None:
        """
        Args:
            folders: what stands before a base name, the separator included; without duplicates.
            folder: [N] into `folders`.
            names: the base names, one behind the other.
            bounds: [N + 1]: base name i is `names[bounds[i] : bounds[i + 1]]`.
            packed: where images inside tar files lie, if any do.
        """
        self._folders, self._names = folders, names
        self._folder = folder.astype(np.min_scalar_type(len(folders)), copy=False)
        self._bounds = bounds.astype(np.min_scalar_type(len(names)), copy=False)
        self._packed = packed

    @classmethod
    def of(cls, paths: Iterable[Path | str]) -> Paths:
        """These paths, as `str` has them, in this order; `Paths` as they are."""
        if isinstance(paths, Paths):
            return paths
        shards: dict[str, str] = {}
        spans = array("q")

        def split() -> Iterator[tuple[str, str]]:
            for path in paths:
                folder, name = os.path.split(path)
                file, offset, size = place_of(path)
                folder = os.path.join(folder, "")
                if size is not None:
                    shards[folder] = file
                spans.extend((offset, size or 0))
                yield folder, name

        runs = groupby(split(), itemgetter(0))
        found = cls.grouped((folder, [name for _, name in run]) for folder, run in runs)
        return found.packed_in(shards, spans) if shards else found

    @classmethod
    def grouped(cls, groups: Iterable[tuple[str, Sequence[str]]]) -> Paths:
        """Base names by the folder that stands before them, its separator included; a folder may come again."""
        folders: dict[str, int] = {}
        runs = array("q")
        lengths = array("q")
        names = bytearray()
        for folder, group in groups:
            encoded = [_encoded(name) for name in group]
            runs.extend((folders.setdefault(folder, len(folders)), len(encoded)))
            lengths.extend(map(len, encoded))
            names += b"".join(encoded)
        number, count = np.array(runs).reshape(-1, 2).T
        return cls(tuple(folders), np.repeat(number, count), bytes(names), _bounds(np.array(lengths)))

    def packed_in(self, shards: Mapping[str, str], spans: array[int]) -> Paths:
        """The same images inside tar files.

        Args:
            shards: the tar file by what stands before a base name; files lie in the other folders.
            spans: offset and size in the tar file, of one image after the other.
        """
        packed = Packed(shards, np.array(spans, dtype=np.int64).reshape(len(self), 2))
        return Paths(self._folders, self._folder, self._names, self._bounds, packed)

    def __len__(self) -> int:
        return len(self._folder)

    @overload
    def __getitem__(self, at: int) -> Path: ...
    @overload
    def __getitem__(self, at: slice) -> Paths: ...
    def __getitem__(self, at: int | slice) -> Path | Paths:
        if isinstance(at, slice):
            rows = range(len(self))[at]
            return self.select(np.arange(rows.start, rows.stop, rows.step))
        row = range(len(self))[index(at)]
        folder = self._folders[self._folder[row]]
        text = folder + _decoded(self._names[self._bounds[row] : self._bounds[row + 1]])
        if self._packed is None or folder not in self._packed.shards:
            return Path(text)
        return member(text, Place(self._packed.shards[folder], *self._packed.spans[row].tolist()))

    def __iter__(self) -> Iterator[Path]:
        for text, place in zip(self.texts(), self.places(), strict=True):
            yield Path(text) if place.size is None else member(text, place)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Paths):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self.texts(), other.texts(), strict=True))

    def __add__(self, other: Paths) -> Paths:
        folders = {folder: number for number, folder in enumerate(self._folders)}
        renumbered = np.array([folders.setdefault(folder, len(folders)) for folder in other._folders], dtype=np.int64)
        folder = np.concatenate([self._folder, renumbered[other._folder]])
        bounds = np.concatenate([self._bounds, other._bounds[1:].astype(np.int64) + len(self._names)])
        packed = None
        if self._packed or other._packed:
            mine, theirs = (paths._packed or Packed({}, np.zeros((len(paths), 2), np.int64)) for paths in (self, other))
            packed = Packed({**mine.shards, **theirs.shards}, np.concatenate([mine.spans, theirs.spans]))
        return Paths(tuple(folders), folder, self._names + other._names, bounds, packed)

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take."""
        spans = 0 if self._packed is None else self._packed.spans.nbytes
        return len(self._names) + self._folder.nbytes + self._bounds.nbytes + spans

    def texts(self) -> Iterator[str]:
        """`str` of each path."""
        return (folder + name for folder, name in zip(self._each_folder(), self.names(), strict=True))

    def names(self) -> Iterator[str]:
        """The base name of each path."""
        return map(_decoded, self._encoded_names(np.arange(len(self))))

    def places(self) -> Iterator[Place]:
        """Where the bytes of each image lie."""
        if self._packed is None:
            yield from map(Place, self.texts())
            return
        shards = self._packed.shards
        spans = (span for block in _blocks(self._packed.spans) for span in block.tolist())
        for folder, text, span in zip(self._each_folder(), self.texts(), spans, strict=True):
            yield Place(shards[folder], *span) if folder in shards else Place(text)

    def select(self, rows: npt.NDArray[Any]) -> Paths:
        """The paths at these positions from 0, in any order, or where an [N] mask is true."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):  # a part as it lies
            names = self._names[self._bounds[rows[0]] : self._bounds[rows[-1] + 1]]
        else:
            names = b"".join(b"".join(self._encoded_names(block)) for block in _blocks(rows))
        packed = self._packed and self._packed._replace(spans=self._packed.spans[rows])
        bounds = _bounds(self._bounds[rows + 1] - self._bounds[rows])
        return Paths(self._folders, self._folder[rows], names, bounds, packed)

    def isin(self, others: Paths) -> npt.NDArray[np.bool_]:
        """[N] whether each path is among `others`; only folders that both have cost time."""
        common = set(self._folders) & set(others._folders)
        theirs = set(others.select(others._lie_in(common)).texts())
        mask = self._lie_in(common)
        mask[mask] = [text in theirs for text in self.select(mask).texts()]
        return mask

    def fingerprint(self) -> str:
        """Of the names in their order, below the folder that has them all: a set that is moved whole keeps its own."""
        used, folder = np.unique(self._folder, return_inverse=True)
        folders = [os.path.abspath(self._folders[number]) for number in used]
        above = os.path.commonpath(folders) if folders else ""
        below = [os.path.relpath(path, above) for path in folders]
        order = sorted(range(len(below)), key=below.__getitem__)
        digest = hashlib.blake2b(repr([below[number] for number in order]).encode(errors="surrogateescape"))
        for part in (np.argsort(order)[folder], self._bounds):
            digest.update(np.asarray(part, "<i8").tobytes())
        digest.update(self._names)
        return digest.hexdigest()[:32]

    def _each_folder(self) -> Iterator[str]:
        return (self._folders[number] for block in _blocks(self._folder) for number in block.tolist())

    def _lie_in(self, folders: set[str]) -> npt.NDArray[np.bool_]:
        return np.array([folder in folders for folder in self._folders], dtype=bool)[self._folder]

    def _encoded_names(self, rows: npt.NDArray[Any]) -> Iterator[bytes]:
        for block in _blocks(rows):
            first, last = self._bounds[block].tolist(), self._bounds[block + 1].tolist()
            yield from (self._names[a:b] for a, b in zip(first, last, strict=True))


def _blocks(rows: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))


def _bounds(lengths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
