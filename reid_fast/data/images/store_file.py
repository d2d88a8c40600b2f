"""Decoded images in a file of the cache folder, mapped into memory: for sets that no memory holds.

One file holds one list of images in one size. The processes of a machine share it, and later runs do:

    16 bytes     a mark
    32 bytes     fingerprint: SHA-256 of the files' names, sizes and times, the images' size and what decodes them
    32 bytes     SHA-256 of what comes next
    4·N bytes    CRC-32 of each image
    ...          zeros, up to a whole page
    N·H·W·3      pixels

It gets its name when it is whole. Before that it has another one and is locked, which ends with the process that makes
it. Each image is compared with its checksum when a run first uses it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import time
import warnings
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from reid_fast import whole_file
from reid_fast.console import Console
from reid_fast.data.images.normalisation import IMAGENET, Normalisation
from reid_fast.data.images.store import ImageStore, decoded
from reid_fast.errors import UserError

_MARK = b"reid-fast images"
_SAMPLE = 64  # images that are compared with their checksums before a file is taken
_REPORTED = 4096  # files between two reports of progress
_PATIENCE = 0.2  # seconds between looks at what another process makes


class StoreFile(ImageStore):
    """The images of a file that is whole."""

    def __init__(
        self,
        path: Path,
        mapped: mmap.mmap,
        start: int,
        sums: np.ndarray,
        paths: Sequence[Path],
        size: tuple[int, int],
        device: torch.device,
        norm: Normalisation,
    ) -> None:
        """
        Args:
            path: the file.
            mapped: all of it.
            start: where pixels start in it.
            sums: [N] uint32, the images' checksums.
            paths: the N files that indices point to.
            size: (H, W) in pixels.
            device: where images come out.
            norm: what normalises.
        """
        self._path, self._mapped, self._start, self._sums = path, mapped, start, sums
        self._images = np.frombuffer(mapped, np.uint8, offset=start).reshape(len(paths), *size, 3)
        self._unknown = np.ones(len(paths), bool)  # which have not been compared yet
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # nobody writes to them
            super().__init__(paths, torch.from_numpy(self._images), device, norm)

    def prepare(self, indices: np.ndarray) -> None:
        """Let the disk read a batch at once, not page by page, and see whether it is what was written.

        Raises:
            UserError: it is not. The file is removed, for the next start might not see it.
        """
        size = self._images[0].nbytes
        for place in (self._start + indices * size).tolist():
            page = place // mmap.PAGESIZE * mmap.PAGESIZE
            self._mapped.madvise(mmap.MADV_WILLNEED, page, place + size - page)
        if not self.intact(indices):
            with suppress(OSError):
                self._path.unlink()
            raise UserError(f"{self._path} is damaged: remove it if it is still there, then continue with --resume")

    def intact(self, indices: np.ndarray) -> bool:
        """Whether these images are those that were written."""
        for i in np.unique(indices[self._unknown[indices]]).tolist():
            if zlib.crc32(self._images[i].data) != self._sums[i]:
                return False
            self._unknown[i] = False
        return True


def open_store_file(
    folder: Path,
    paths: Sequence[Path],
    size: tuple[int, int],
    *,
    norm: Normalisation = IMAGENET,
    device: torch.device,
    threads: int,
    console: Console,
) -> StoreFile:
    """Take the file of these images from a folder, or make it; while another process makes it, wait.

    Args:
        folder: where such files are kept.
        paths: N images.
        size: (H, W) in pixels.
        norm: what normalises, when they are asked for: the file is the same for all.
        device: what decodes, and where images come out.
        threads: CPU threads for decoding.
        console: shows the progress.

    Raises:
        OSError: the folder is not there, cannot be written or has no room; nothing is left in it.
        UserError: an image cannot be read or decoded; it is named.
    """
    file = _File.of(folder, paths, size, device, console)
    waiting = False
    while (store := file.read(paths, device, norm)) is None:
        with file.locked() as part:
            if part is None:
                if not waiting:
                    console.say(f"another process decodes these images into {folder}: waiting for it")
                waiting = True
                time.sleep(_PATIENCE)
            elif file.read(paths, device, norm) is None:  # nobody has made it since
                file.sweep()
                share = range(len(paths))
                file.write(part, decoded(paths, size, share, device=device, threads=threads, console=console))
                if file.read(paths, device, norm) is None:
                    raise OSError(f"{file.path} does not read as it was written")
    return store


@dataclass(frozen=True)
class _File:
    """Where a list of images is kept, decoded, and by what that is known.

    Attributes:
        folder: the cache folder.
        stem: what the names of all its files start with, whenever its images have changed.
        fingerprint: 32 bytes.
        images: N.
        size: (H, W) in pixels.
    """

    folder: Path
    stem: str
    fingerprint: bytes
    images: int
    size: tuple[int, int]

    @classmethod
    def of(
        cls, folder: Path, paths: Sequence[Path], size: tuple[int, int], device: torch.device, console: Console
    ) -> _File:
        """Of these images as they are now; CPU and GPU decode to different bits."""
        from reid_fast.data.images.dali import DECODING

        here, names, states = os.getcwd(), sha256(f"{size} {device.type}".encode()), array("q")
        with console.progress("looking for changes", "files") as report:
            for i, path in enumerate(paths):
                names.update(os.fsencode(os.path.join(here, path)) + b"\0")
                states.extend(_state(os.fspath(path)))
                if i % _REPORTED == 0:
                    report(i, len(paths))
        fingerprint = sha256(names.digest() + DECODING.encode() + states.tobytes()).digest()
        stem = f"reid-fast-{size[0]}x{size[1]}-{names.hexdigest()[:16]}-"
        return cls(folder, stem, fingerprint, len(paths), size)

    @property
    def path(self) -> Path:
        """The whole file."""
        return self.folder / f"{self.stem}{self.fingerprint.hex()[:16]}.store"

    @property
    def part(self) -> Path:
        """The file while it is made."""
        return self.path.with_suffix(".part")

    @property
    def start(self) -> int:
        """Where pixels start in it."""
        return -(-(len(_MARK) + 64 + 4 * self.images) // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def length(self) -> int:
        """How large it is."""
        return self.start + self.images * self.size[0] * self.size[1] * 3

    def read(self, paths: Sequence[Path], device: torch.device, norm: Normalisation) -> StoreFile | None:
        """The file; None where there is none, or one that is not of these images or not as it was written."""
        try:
            with self.path.open("rb") as file:
                with suppress(OSError):  # where there are no locks, all goes well without
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # see `sweep`; it lasts as long as the mapping
                if os.fstat(file.fileno()).st_size != self.length:
                    return None
                head, sums = file.read(len(_MARK) + 64), np.frombuffer(file.read(4 * self.images), np.uint32)
                if head != self._head(sums) or file.read(self.start - file.tell()).strip(b"\0"):
                    return None
                # Read-only: what might be written counts as memory, and the system may refuse as much.
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError:
            return None
        store = StoreFile(self.path, mapped, self.start, sums, paths, self.size, device, norm)
        return store if store.intact(np.linspace(0, self.images - 1, _SAMPLE).astype(np.int64)) else None

    @contextmanager
    def locked(self) -> Iterator[BinaryIO | None]:
        """The file to be made, while no other process makes it; None where one does."""
        try:
            opened = self._open_part()
        except PermissionError:
            if not self._disown_part():
                yield None
                return
            opened = self._open_part()
        with opened as file:
            if not whole_file.locked(file):
                yield None
                return
            if not whole_file.is_called(file, self.part):  # it was renamed or removed before it was locked
                yield None
                return
            try:
                yield file
            finally:
                if whole_file.is_called(file, self.part):
                    self.part.unlink()

    def _open_part(self) -> BinaryIO:
        return open(os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666), "r+b")

    def _disown_part(self) -> bool:
        """Remove what a killed process of another user has left; False while such a process makes it."""
        if not os.path.exists(self.part):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with self.part.open("rb") as file:
            free = whole_file.locked(file)
            if free:
                self.part.unlink()
        return free

    def write(self, part: BinaryIO, images: Iterable[tuple[slice, Tensor]]) -> None:
        """Make the file of what `decoded` yields, and give it its name."""
        os.ftruncate(part.fileno(), 0)  # something may have been left in it
        os.posix_fallocate(part.fileno(), 0, self.length)  # a full disk is known before anything is decoded
        sums = np.empty(self.images, np.uint32)
        part.seek(self.start)
        for rows, pixels in images:
            values = np.ascontiguousarray(pixels.cpu().numpy())
            sums[rows] = [zlib.crc32(image.data) for image in values]
            part.write(values.data)
        part.seek(0)
        part.write(self._head(sums) + sums.tobytes())
        part.flush()
        os.fsync(part.fileno())
        self.part.rename(self.path)

    def sweep(self) -> None:
        """Remove what killed processes have left, and the files of these images from before they changed."""
        for pattern in ("reid-fast-*.part", f"{self.stem}*.store"):
            for path in self.folder.glob(pattern):
                if path not in (self.part, self.path):
                    with suppress(OSError), path.open("rb") as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not while another process has a use for it
                        path.unlink()

    def _head(self, sums: np.ndarray) -> bytes:
        return _MARK + self.fingerprint + sha256(sums.tobytes()).digest()


def _state(path: str) -> tuple[int, int]:
    """Bytes and time of change of a file, or of the archive that it lies in; (-1, -1) where there is none."""
    try:
        found = os.stat(path)
    except NotADirectoryError:
        return _state(os.path.dirname(path))
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
