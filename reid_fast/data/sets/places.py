"""Where an image's bytes lie, and how they are read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path, PosixPath
from typing import Any, NamedTuple

import numpy as np

from reid_fast.errors import UserError

_HEAD = 4096  # bytes read at once from the start of an image


class Place(NamedTuple):
    """A file, or some bytes of one."""

    file: str
    offset: int = 0
    size: int | None = None  # None: all


class Member(PosixPath):
    """The path of an image inside a tar file, shown as `shard.tar/key.jpg`."""

    place: Place

    def __reduce__(self) -> Any:
        return member, (str(self), self.place)


def member(text: str, place: Place) -> Member:
    """The path of the image that lies there."""
    path = Member(text)
    path.place = place
    return path


def as_path(path: Path | str) -> Path:
    """A path as it is, an image inside a tar file too, or a text as a path, `~` resolved."""
    return path if isinstance(path, Member) else Path(path).expanduser()


def is_readable(path: Path) -> bool:
    """Whether there is such a file, or such an image inside a tar file."""
    return os.path.isfile(place_of(path).file)


def place_of(path: Path | str) -> Place:
    """Where the bytes of the image at `path` lie."""
    return getattr(path, "place", None) or Place(str(path))


def read_image(path: Path) -> np.ndarray:
    """The bytes of an image, [n] uint8, n > 0; several threads may read at once.

    Raises:
        UserError: it cannot be read, or there are none; it is named.
    """
    place = place_of(path)
    try:
        with open(place.file, "rb", buffering=0, opener=open_file) as file:
            read = np.fromfile(file, np.uint8, -1 if place.size is None else place.size, offset=place.offset)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): restore it, or pass --skip-bad-images") from None
    if not len(read):  # DALI crashes on it
        raise UserError(f"{path} is empty: restore it, or pass --skip-bad-images")
    return read


def open_file(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """The descriptor of a regular file: a pipe would be waited for, a device may have no end.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file")
    return descriptor


class Opened:
    """An image that is open as long as the context lasts, to read bytes here and there without the others."""

    def __init__(self, place: Place) -> None:
        self._offset = place.offset
        self._file = open_file(place.file)
        try:
            self.size = os.fstat(self._file).st_size if place.size is None else place.size
            self._head = os.pread(self._file, min(_HEAD, self.size), place.offset)
        except OSError:
            os.close(self._file)
            raise

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read(self, at: int, count: int) -> bytes:
        """The bytes from `at` on: `count`, or those that there are."""
        if at + count <= len(self._head):
            return self._head[at : at + count]
        return os.pread(self._file, max(0, min(count, self.size - at)), self._offset + at)
