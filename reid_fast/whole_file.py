"""Files as other processes see them: replaced whole, or kept for one process alone."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import IO

from reid_fast.errors import UserError

_WAYS_OUT = dict.fromkeys((EACCES, EPERM, EROFS), "make it writable")
_WAYS_OUT |= dict.fromkeys((ENOSPC, EDQUOT), "free some space")


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a kill at any instant leaves the old one or the new one.

    The content goes to a hidden file beside it, is flushed, and gets the name. Processes that write the same file take
    turns. What a killed one has left, the next one writes over.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is still there.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with own(part) as file, _gone_on_error(part):
            file.truncate(0)
            write(file)
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
    except RuntimeError as error:  # PyTorch and faiss make one of a full disk, which tells less
        raise error.__context__ if isinstance(error.__context__, OSError) else OSError(str(error)) from None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """`replace_file` for what a user waits for.

    Raises:
        UserError: the disk is full or the folder cannot be written; the old file is still there.
    """
    try:
        replace_file(path, write)
    except OSError as error:
        raise not_written(path, error) from None


def not_written(path: Path, error: OSError) -> UserError:
    """What is said of a file or folder that cannot be written."""
    way_out = _WAYS_OUT.get(error.errno or 0, "see to its disk")
    reason = error.strerror or error
    return UserError(f"could not write {path} ({reason}): {way_out} and start again, training with --resume")


def locked(file: IO[bytes], *, wait: bool = False) -> bool:
    """Whether this process has the file for itself, until it closes it or ends, however it ends.

    Args:
        file: open.
        wait: until it has.

    Returns:
        False where another process has it. Where the file system has no locks, nobody is kept out.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def is_called(file: IO[bytes], path: Path) -> bool:
    """Whether this is still the name of an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _gone_on_error(part: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def own(path: Path) -> IO[bytes]:
    """The file of this name, made if it is not there and open for writing, once no other process has it."""
    while True:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb")
        locked(file, wait=True)
        if is_called(file, path):
            return file
        file.close()  # it was renamed or removed meanwhile
