"""Finding image files, past what archives and file managers leave beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from reid_fast.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_LITTER = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is known litter: `.DS_Store`, `._*`, `Thumbs.db`, notes."""
    name = name.lower()
    note = name.endswith((".txt", ".mat")) or (name.startswith("readme") and not is_image(name))
    return note or name.startswith(".") or name in _LITTER


def is_image(name: str) -> bool:
    """Whether the name carries an image's extension, in any case."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Everything in `folder` but litter, sorted by name."""
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if not is_litter(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"cannot read {folder} ({error.strerror}): check its path and permissions") from None


def flat_images(folder: Path) -> list[Path]:
    """The images directly in `folder`; anything there that is neither image nor litter is a `UserError`."""
    found = entries(folder)
    for entry in found:
        if not is_image(entry.name) or entry.is_dir():
            raise UserError(f"{entry.path} is not an image: move it out of the set's folder")
    if not found:
        raise UserError(f"{folder} holds no images: extract the data set again or check --data-dir")
    return [folder / entry.name for entry in found]


def nested_images(folder: Path, _above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The images in `folder` and, through links too, in the folders below it; other files are passed over."""
    real = os.path.realpath(folder)
    if real in _above:
        raise UserError(f"{folder} links back to a folder that contains it: remove the link")
    for entry in entries(folder):
        if entry.is_dir():
            yield from nested_images(folder / entry.name, _above | {real})
        elif is_image(entry.name):
            yield folder / entry.name
