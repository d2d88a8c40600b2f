"""Open a data set, or any images, for use: read the records, draw the synthetic set if it is asked for, check files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import groupby
from operator import add
from pathlib import Path
from typing import TypeAlias

import numpy as np

from reid_fast.console import Console
from reid_fast.data.images import undecodable
from reid_fast.data.sets import (
    SIZES,
    Manifest,
    Paths,
    ReidSet,
    Stamps,
    as_path,
    check_images,
    is_image,
    is_readable,
    load_set,
    market_style,
)
from reid_fast.data.synthetic import synthetic_folder
from reid_fast.errors import UserError

_PART = 1 << 17  # files between which what was found is learned
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class OpenedSet:
    """A data set, and the unreadable images that were left out of it."""

    data: ReidSet
    left_out: tuple[Path, ...]


@dataclass(frozen=True)
class OpenedImages:
    """Images of any origin, and the unreadable ones that were left out."""

    paths: Paths
    left_out: tuple[Path, ...]


def open_set(
    name: str,
    data_dir: Path | None,
    *,
    pattern: str | None = None,
    skip_bad_images: bool = False,
    threads: int = 2,
    console: Console,
) -> OpenedSet:
    """Read a data set and check its files, but for those that an earlier run found good and that have not changed.

    Args:
        name: one of `reid_fast.data.sets.SIZES`.
        data_dir: the set's folder or one above it, see `load_set`; for "synthetic", where to keep it (None: the
            user's cache).
        pattern: of a `folder` set: camera (and identity) expression, see `load_set`.
        skip_bad_images: decode every image once and leave out those that fail, instead of stopping at the first
            one whose file is visibly broken.
        threads: CPU threads for that.
        console: shows progress bars; what was found is returned, not said.

    Raises:
        UserError: no such set or folder, another layout, a broken image, a split of which none is left.
    """
    if name not in SIZES:
        raise UserError(f"unknown data set {name!r}: choose one of {', '.join(SIZES)}")
    if name == "synthetic":
        data = market_style(name, _synthetic(data_dir, console))
    elif data_dir is None:
        raise UserError(f"--dataset {name} needs --data-dir, the folder that holds it")
    else:
        with console.progress("listing", "files") as report:
            data = load_set(name, data_dir, pattern=pattern, progress=report)
    paths = reduce(add, (split.paths for split in data.splits.values()))
    left_out = tuple(paths.select(_checked(paths, Manifest(data.root, name), skip_bad_images, threads, console)))
    if not left_out:
        return OpenedSet(data, left_out)
    usable = data.without(left_out)
    if lost := next((name for name, split in usable.splits.items() if not len(split)), None):
        one = data.splits[lost].paths[0]
        raise UserError(
            f"all {len(data.splits[lost])} images of the {lost} split are unreadable, as {one}: repair them"
        )
    return OpenedSet(usable, left_out)


def open_images(
    sources: Sequence[Path],
    *,
    skip_bad_images: bool = False,
    threads: int = 2,
    console: Console,
) -> OpenedImages:
    """List images wherever they lie, and check their files as `open_set` does.

    Args:
        sources: image files, and what a `folder` set may be: folders, tables, tar files, see `load_set`. Their images
            come in this order, those of one source by path; an image that is named twice comes twice.
        skip_bad_images: see `open_set`.
        threads: CPU threads for that.
        console: shows progress bars.

    Raises:
        UserError: no such source, one without images, a broken image.
    """
    paths = Paths.of(())
    left_out: list[Path] = []
    for root, found, name in _listed(sources, console):
        bad = _checked(found, Manifest(root, name), skip_bad_images, threads, console)
        left_out += found.select(bad)
        paths += found.select(np.setdiff1d(np.arange(len(found)), bad))
    if not paths:
        reason = f"all {len(left_out)} images are unreadable" if left_out else "no images are named"
        raise UserError(f"{reason}: give image files, or a folder, table or tar file of images")
    return OpenedImages(paths, tuple(left_out))


def _listed(sources: Sequence[Path], console: Console) -> Iterator[tuple[Path, Paths, str]]:
    """By source, or run of single files: what it is known by, its images, and as which kind of set it is remembered."""
    for single, group in groupby(map(as_path, sources), _is_single):
        if single:
            files = list(group)
            if missing := next((file for file in files if not is_readable(file)), None):
                raise UserError(f"there is no image {missing}")
            yield Path(os.path.commonpath([file.parent.absolute() for file in files])), Paths.of(files), "files"
            continue
        for source in group:
            if not os.path.exists(source):
                raise UserError(f"there is no {source}: give image files, or a folder, table or tar file of images")
            with console.progress("listing", "files") as report:
                data = load_set("folder", source, progress=report)
            yield data.root, data.train.paths, "folder"


def _is_single(source: Path) -> bool:
    return is_image(source.name) and not os.path.isdir(source)


def _checked(paths: Paths, manifest: Manifest, skip_bad_images: bool, threads: int, console: Console) -> np.ndarray:
    """The rows of `paths` to leave out, once it is clear that the others are whole."""
    with console.progress("looking for changes", "files") as report:
        stamps = manifest.stamps(paths, report)
    try:
        return _bad_rows(paths, stamps, manifest, skip_bad_images, threads, console)
    finally:
        manifest.save(stamps)


def _synthetic(root: Path | None, console: Console) -> Path:
    with console.progress("drawing people") as report:
        return synthetic_folder(root, progress=report)


def _bad_rows(
    paths: Paths, stamps: Stamps, manifest: Manifest, skip_bad_images: bool, threads: int, console: Console
) -> np.ndarray:
    """The rows of `paths` to leave out, in order: none without `skip_bad_images`."""

    def check(some: Paths, report: Progress) -> dict[int, str]:
        return dict(check_images(some, progress=report))

    def decode(some: Paths, report: Progress) -> dict[int, str]:
        fails = some.isin(Paths.of(undecodable(some, threads, report)))
        return dict.fromkeys(np.flatnonzero(fails).tolist(), "cannot be decoded")

    rows = np.flatnonzero(~manifest.knows("whole", stamps))
    with console.progress("checking files", "files") as report:
        broken = _look(check, paths, rows, partial(manifest.learn, "whole"), stamps, report)
    if broken and not skip_bad_images:
        (row, reason), others = next(iter(broken.items())), len(broken) - 1
        more = f" and {others} more" if others else ""
        raise UserError(f"{paths[row]} is unusable ({reason}){more}: repair or remove it, or pass --skip-bad-images")
    if skip_bad_images:
        rows = np.setdiff1d(np.flatnonzero(~manifest.knows("decoded", stamps)), list(broken))
        with console.progress("decoding") as report:
            broken |= _look(decode, paths, rows, partial(manifest.learn, "decoded"), stamps, report)
    return np.array(sorted(broken), dtype=np.int64)


def _look(
    find: Callable[[Paths, Progress], dict[int, str]],
    paths: Paths,
    rows: np.ndarray,
    learn: Callable[[Stamps], None],
    stamps: Stamps,
    report: Progress,
) -> dict[int, str]:
    """The rows among `rows` that `find` calls bad, and why.

    The others are learned part by part: a start that is interrupted goes on there the next time.
    """
    bad: dict[int, str] = {}
    for start in range(0, len(rows), _PART):
        part = rows[start : start + _PART]
        found = find(paths.select(part), partial(_report_part, report, start, len(rows)))
        bad |= {int(part[row]): reason for row, reason in found.items()}
        learn(np.delete(stamps[part], list(found)))
    return bad


def _report_part(report: Progress, start: int, total: int, done: int, _: int) -> None:
    report(start + done, total)
