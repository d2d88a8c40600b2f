"""Open a data set for a run: read its records, draw the synthetic one if it is asked for, check the files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import TypeAlias

import numpy as np

from reid_fast.console import Console
from reid_fast.data.images import undecodable
from reid_fast.data.sets import SIZES, Manifest, Paths, ReidSet, Stamps, check_images, load_set, market_style
from reid_fast.data.synthetic import synthetic_folder
from reid_fast.errors import UserError

_PART = 1 << 17  # files between which what was found is learned
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class OpenedSet:
    """A data set, and the unreadable images that were left out of it."""

    data: ReidSet
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
        UserError: no such set or folder, another layout, a broken image.
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
    manifest = Manifest(data.root, name)
    with console.progress("looking for changes", "files") as report:
        stamps = manifest.stamps(paths, report)
    try:
        bad = _bad_rows(paths, stamps, manifest, skip_bad_images, threads, console)
    finally:
        manifest.save(stamps)
    left_out = tuple(paths.select(bad))
    return OpenedSet(data.without(left_out) if left_out else data, left_out)


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
