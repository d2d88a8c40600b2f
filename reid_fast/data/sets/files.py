"""Finding image files, past what archives and file managers leave beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, groupby
from pathlib import Path

from reid_fast.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_REPORTED = 1024  # images between reports
_LITTER = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is known litter: `.DS_Store`, `._*`, `Thumbs.db`, notes."""
    name = name.lower()
    note = name.endswith((".txt", ".mat")) or (name.startswith("readme") and not is_image(name))
    return note or name.startswith(".") or name in _LITTER


def is_image(name: str) -> bool:
    """Whether the name carries an image's extension, in any case."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; what cannot be looked at, as a link to itself, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Everything in `folder` but litter, sorted by name."""
    with scanned(folder) as found:
        return sorted((e for e in found if not is_litter(e.name)), key=lambda e: e.name)


def flat_images(folder: Path) -> list[Path]:
    """The images directly in `folder`; anything there that is neither image nor litter is a `UserError`."""
    found = entries(folder)
    for entry in found:
        if not is_image(entry.name) or is_folder(entry):
            raise UserError(f"{entry.path} is not an image: move it out of the set's folder")
    if not found:
        raise UserError(f"{folder} holds no images: extract the data set again or check --data-dir")
    return [folder / entry.name for entry in found]


def nested_images(folder: Path) -> Iterator[Path]:
    """The images in `folder` and, through links too, in the folders below it; other files are passed over."""
    return (Path(prefix + name) for prefix, names in nested_names(folder) for name in names)


def nested_names(
    folder: Path, progress: Callable[[int, None], None] | None = None
) -> Iterator[tuple[str, Sequence[str]]]:
    """The same as base names behind what stands before them, in the order of `str` of the whole paths.

    Args:
        folder: where to look.
        progress: called with (images found so far, None).
    """
    found = count(1)

    def report() -> None:
        done = next(found)
        if progress is not None and done % _REPORTED == 0:
            progress(done, None)

    return _nested_names(folder, report, frozenset())


def _nested_names(
    folder: Path, found: Callable[[], None], above: frozenset[str]
) -> Iterator[tuple[str, Sequence[str]]]:
    real = os.path.realpath(folder)
    if real in above:
        raise UserError(f"{folder} links back to a folder that contains it: remove the link")
    names = []
    with scanned(folder) as entries:
        for entry in entries:
            if is_folder(entry):
                if not is_litter(entry.name):
                    names.append(entry.name + os.sep)
            elif is_image(entry.name) and not entry.name.startswith("."):
                names.append(entry.name)
                found()
    names.sort()  # with its separator behind it, a folder stands where its files' paths do
    prefix = str(folder / "_")[:-1]
    for below, group in groupby(names, lambda name: name.endswith(os.sep)):
        if below:
            for name in group:
                yield from _nested_names(folder / name, found, above | {real})
        else:
            yield prefix, list(group)


@contextmanager
def scanned(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """Everything in `folder`, in no order."""
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise UserError(f"cannot read {folder} ({error.strerror}): check its path and permissions") from None
