"""Where what can be made again is kept between runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from reid_fast.errors import UserError
from reid_fast.whole_file import replace_file

_KEPT = 64  # files about trees: those used last
_writes = ContextVar("writes", default=True)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/reid-fast` or `~/.cache/reid-fast`; it may not be there yet.

    Raises:
        UserError: the user has no home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reid-fast"
    except RuntimeError:
        raise UserError("this user has no home folder: set XDG_CACHE_HOME to a folder that can be written") from None


def file_about(tree: Path, kind: str) -> Path:
    """The file in the cache for what is known of a folder or file, by its real path; it may not be there yet."""
    real = os.fsencode(os.path.realpath(tree))
    try:
        folder = cache_folder()
    except UserError:
        folder = Path(os.devnull)  # neither read nor written
    return folder / "manifests" / f"{hashlib.blake2b(real, digest_size=16).hexdigest()}.{kind}"


def keep(file: Path, write: Callable[[IO[bytes]], object] | None) -> None:
    """Write a file about a tree whole, whatever else reads or writes it, or, with None, only mark it as used.

    What cannot be written is not. Files about trees that nobody reads any more go, and what a killed writer has left.
    """
    if not _writes.get():
        return
    with suppress(OSError):
        if write is None:
            os.utime(file)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, write)
            with os.scandir(file.parent) as entries:
                by_age = sorted(entries, key=lambda entry: entry.stat().st_mtime_ns)
            for entry in by_age[:-_KEPT]:
                os.unlink(entry)


@contextmanager
def only_read() -> Iterator[None]:
    """Inside, `keep` keeps nothing."""
    token = _writes.set(False)
    try:
        yield
    finally:
        _writes.reset(token)
