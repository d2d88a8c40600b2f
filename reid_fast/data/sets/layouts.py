"""The folder layouts of re-identification sets: how to recognise one, and how to read it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from reid_fast.data.sets.files import entries, flat_images, is_image, nested_images
from reid_fast.data.sets.records import ImageSet, Unparsed
from reid_fast.errors import UserError

Splits = tuple[ImageSet, ImageSet, ImageSet]
Row = tuple[Path, int, int]

_LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
_PROBED = 100  # names read per split folder to recognise a layout: enough to pass a stray first file


@dataclass(frozen=True)
class Naming:
    """What a set's base names say.

    Attributes:
        pattern: matched at the start of a base name; group `cam`, and `pid` unless a list file gives it.
        example: a valid base name, for error messages.
        cameras: camera number in the name -> 0-based camera.
        pids: valid identity numbers (-1, junk, is always allowed and always dropped).
        distractors: pid 0 is no identity but gallery clutter.
    """

    pattern: re.Pattern[str]
    example: str
    cameras: Mapping[int, int]
    pids: range
    distractors: bool = False

    def parse(self, path: Path, pid: str | None = None) -> Row:
        """(path, pid, 0-based camera) of one file; the folders above it have no say."""
        match = self.pattern.match(path.name)
        if match is None:
            raise UserError(f"{path} is not named like {self.example}: rename it or move it out of the set")
        identity = int(match["pid"] if pid is None else pid)
        if identity != -1 and identity not in self.pids:
            allowed = f"{self.pids.start}..{self.pids.stop - 1}"
            raise UserError(f"{path} has identity {identity}, outside {allowed}: is --dataset right?")
        camera = int(match["cam"])
        if camera not in self.cameras:
            raise UserError(f"{path} has camera {camera}, which the set does not have: is --dataset right?")
        return path, identity, self.cameras[camera]

    def rows(self, files: Iterable[tuple[Path, str | None]], unparsed: Unparsed | None) -> Iterator[Row]:
        """`parse` of files and the identities that a list gives them."""
        for path, pid in files:
            try:
                yield self.parse(path, pid)
            except UserError as error:
                if unparsed is None:
                    raise
                unparsed(path, str(error))

    def is_person(self, pid: int) -> bool:
        """Whether images of `pid` may be trained on or searched for."""
        return pid > 0 or (pid == 0 and not self.distractors)


class Layout(Protocol):
    """One way a set is laid out on disk."""

    @property
    def title(self) -> str:
        """Its name in tables and messages."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Names of the split folders."""

    def sought(self) -> str:
        """What a folder must contain to have this layout, in words."""

    def matches(self, root: Path) -> bool:
        """Whether `root` has this layout, judged by its content."""

    def read(self, root: Path, unparsed: Unparsed | None = None) -> Splits:
        """Train, query and gallery of a `root` that matches; images that `unparsed` is told of are left out."""


@dataclass(frozen=True)
class FolderLayout:
    """Three flat folders (train, query, gallery) whose base names give identity and camera."""

    title: str
    folders: tuple[str, str, str]
    naming: Naming

    def sought(self) -> str:
        return f"folders {', '.join(self.folders)} with names like {self.naming.example}"

    def matches(self, root: Path) -> bool:
        if not all(os.path.isdir(root / folder) for folder in self.folders):
            return False
        names = [name for folder in self.folders for name in _some_images(root / folder)]
        return not names or any(self.naming.pattern.match(name) for name in names)

    def read(self, root: Path, unparsed: Unparsed | None = None) -> Splits:
        files = ([(path, None) for path in flat_images(root / folder)] for folder in self.folders)
        train, query, gallery = (list(self.naming.rows(some, unparsed)) for some in files)
        return _splits(train, query, gallery, self.naming, root)


@dataclass(frozen=True)
class ListLayout:
    """MSMT17's own releases: lists of `relative/path pid`, one folder for train and val, one for the test.

    V1 and V2 (faces masked) share the lists and differ in the folders' names.
    """

    title: str
    folders: tuple[str, str]
    naming: Naming

    def sought(self) -> str:
        return f"{', '.join(_LISTS)} beside folders {' and '.join(self.folders)}"

    def matches(self, root: Path) -> bool:
        return all(os.path.isdir(root / f) for f in self.folders) and all(os.path.isfile(root / f) for f in _LISTS)

    def read(self, root: Path, unparsed: Unparsed | None = None) -> Splits:
        train_dir, test_dir = (root / folder for folder in self.folders)
        train_files, test_files = set(nested_images(train_dir)), set(nested_images(test_dir))
        lists = [(root / f, train_dir, train_files) for f in _LISTS[:2]]
        lists += [(root / f, test_dir, test_files) for f in _LISTS[2:]]
        train, val, query, gallery = (list(self.naming.rows(self._listed(*one), unparsed)) for one in lists)
        return _splits(train + val, query, gallery, self.naming, root)

    def _listed(self, list_file: Path, folder: Path, files: set[Path]) -> Iterator[tuple[Path, str]]:
        try:
            lines = list_file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"{list_file} cannot be read as UTF-8 ({error}): get the list file again") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            entry = re.fullmatch(r"\s*(.+?)\s+(-?\d{1,18})\s*", line)
            if entry is None:
                raise UserError(f"{list_file}:{number} is not `path identity`: get the list file again")
            path = folder / entry[1]
            if path not in files:
                raise UserError(f"{list_file}:{number} names {path}, which is missing: extract the set again")
            yield path, entry[2]


def _some_images(folder: Path) -> list[str]:
    return [entry.name for entry in entries(folder) if is_image(entry.name)][:_PROBED]


def _splits(train: list[Row], query: list[Row], gallery: list[Row], naming: Naming, root: Path) -> Splits:
    """Drop junk everywhere and distractors outside the gallery; no split may come out empty."""
    train = [row for row in train if naming.is_person(row[1])]
    query = [row for row in query if naming.is_person(row[1])]
    gallery = [row for row in gallery if row[1] != -1]
    for split, rows in (("training", train), ("query", query), ("gallery", gallery)):
        if not rows:
            raise UserError(f"the {split} split in {root} is empty: extract the data set again")
    return (
        ImageSet.from_rows(train, relabel=True),
        ImageSet.from_rows(query),
        ImageSet.from_rows(gallery),
    )
