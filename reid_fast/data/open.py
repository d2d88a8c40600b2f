"""Open a data set for a run: read its records, draw the synthetic one if it is asked for, check the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reid_fast.console import Console
from reid_fast.data.images import undecodable
from reid_fast.data.sets import SIZES, ReidSet, check_images, load_set, market_style
from reid_fast.data.synthetic import synthetic_folder
from reid_fast.errors import UserError


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
    """Read a data set and check its files.

    Args:
        name: one of `reid_fast.data.sets.SIZES`.
        data_dir: the set's folder or one above it; for "synthetic", where to keep it (None: the user's cache).
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
        data = load_set(name, data_dir, pattern=pattern)
    bad = [
        path
        for split in data.splits.values()
        for path in sorted(_broken(split.paths, skip_bad_images, threads, console))
    ]
    return OpenedSet(data.without(bad) if bad else data, tuple(bad))


def _synthetic(root: Path | None, console: Console) -> Path:
    with console.progress("drawing people") as report:
        return synthetic_folder(root, progress=report)


def _broken(paths: Sequence[Path], skip_bad_images: bool, threads: int, console: Console) -> set[Path]:
    with console.progress("checking files", "files") as report:
        bad = check_images(paths, progress=report)
    if bad and not skip_bad_images:
        (path, reason), others = bad[0], len(bad) - 1
        more = f" and {others} more" if others else ""
        raise UserError(f"{path} is unusable ({reason}){more}: repair or remove it, or pass --skip-bad-images")
    if not skip_bad_images:
        return set()
    broken = {path for path, _ in bad}
    rest = [path for path in paths if path not in broken]
    with console.progress("decoding") as report:
        return broken | undecodable(rest, threads, report)
