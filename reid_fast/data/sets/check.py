"""Are the image files whole? Judged by their first and last bytes, without decoding."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

_CHUNK = 1024  # files per task and per progress report
_TAIL = 4096  # some cameras append metadata after the end marker
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WebP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}
_SCAN = b"\xda"
_FRAMES = {bytes([code]) for code in range(0xC0, 0xD0)} - {b"\xc4", b"\xc8", b"\xcc"}  # SOF0..SOF15
_ENDS = {"JPEG": (b"\xff\xd9", "EOI"), "PNG": (b"IEND", "IEND")}


def check_images(
    paths: Sequence[Path], workers: int = 8, *, progress: Callable[[int, int], None] | None = None
) -> list[tuple[Path, str]]:
    """Find files that cannot be the images they claim to be.

    Reads the head and the last 4 KiB of each file: it sees an empty file, a content that is not its
    extension's, a damaged JPEG header, damaged PNG chunks, a JPEG without EOI and a PNG without IEND, but no damage
    of the pixels. Damaged headers and chunks have to be caught here, since DALI 2.4 may crash on them instead of
    reporting them.

    Args:
        paths: the files.
        workers: threads; reading waits on the disk, so more than there are cores helps.
        progress: called with (files checked, files in all) as the check proceeds.

    Returns:
        (path, reason) of each bad file, in the order of `paths`.
    """
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    bad: list[tuple[Path, str]] = []
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        for chunk, reasons in zip(chunks, pool.map(_reasons, chunks), strict=True):
            bad += [(path, reason) for path, reason in zip(chunk, reasons, strict=True) if reason]
            done += len(chunk)
            if progress is not None:
                progress(done, len(paths))
    return bad


def _reasons(paths: Sequence[Path]) -> list[str | None]:
    return [_reason(path) for path in paths]


def _reason(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return _fault(file, path.suffix.lower())
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _fault(file: BinaryIO, suffix: str) -> str | None:
    head = file.read(16)
    if not head:
        return "empty file"
    kind = _kind(head)
    if kind is None:
        return "not an image"
    if suffix not in _SUFFIXES[kind]:
        return f"a {kind} named {suffix}"
    if kind == "JPEG" and not _has_jpeg_header(file):
        return "a JPEG with a damaged header"
    marker, name = _ENDS.get(kind, (b"", ""))
    file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
    if marker not in file.read(_TAIL):
        return f"truncated {kind}: no {name} marker at its end"
    return "a PNG with damaged chunks" if kind == "PNG" and not _has_png_chunks(file) else None


def _has_jpeg_header(file: BinaryIO) -> bool:
    """Whether the segments from SOI follow one another up to the first scan, with a frame among them."""
    file.seek(2)
    framed = False
    while True:
        mark, code = file.read(1), file.read(1)
        while code == b"\xff":  # fill bytes
            code = file.read(1)
        if mark != b"\xff" or not code:
            return False
        if code == _SCAN:
            return framed
        framed |= code in _FRAMES
        length = int.from_bytes(file.read(2), "big")
        if length < 2:
            return False
        file.seek(length - 2, os.SEEK_CUR)


def _has_png_chunks(file: BinaryIO) -> bool:
    """Whether a header with its true checksum comes first, and the chunks follow one another up to IEND."""
    file.seek(8)
    header = file.read(25)  # length, name, 13 bytes, checksum
    if header[:8] != b"\0\0\0\rIHDR" or zlib.crc32(header[4:21]) != int.from_bytes(header[21:], "big"):
        return False
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)  # the data and their checksum
    return head[4:] == b"IEND"


def _kind(head: bytes) -> str | None:
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    signatures = {
        b"\xff\xd8\xff": "JPEG",
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"BM": "BMP",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
    }
    return next((kind for signature, kind in signatures.items() if head.startswith(signature)), None)
