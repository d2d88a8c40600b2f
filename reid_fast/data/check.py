"""Are the image files whole? Judged by their first and last bytes, without decoding."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_CHUNK = 1024  # files per task and per progress report
_TAIL = 4096  # some cameras append metadata after the end marker
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WebP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}
_ENDS = {"JPEG": (b"\xff\xd9", "EOI"), "PNG": (b"IEND", "IEND")}


def check_images(
    paths: Sequence[Path], workers: int = 8, *, progress: Callable[[int, int], None] | None = None
) -> list[tuple[Path, str]]:
    """Find files that cannot be the images they claim to be.

    Reads at most the first 16 bytes and the last 4 KiB of each file: it sees an empty file, a content that is
    not its extension's, a JPEG without EOI and a PNG without IEND, but no damage in between.

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
        head, tail = _ends(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    if not head:
        return "empty file"
    kind = _kind(head)
    if kind is None:
        return "not an image"
    if path.suffix.lower() not in _SUFFIXES[kind]:
        return f"a {kind} named {path.suffix}"
    marker, name = _ENDS.get(kind, (b"", ""))
    return None if marker in tail else f"truncated {kind}: no {name} marker at its end"


def _ends(path: Path) -> tuple[bytes, bytes]:
    with open(path, "rb", buffering=0) as file:
        head = file.read(16)
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return head, file.read(_TAIL)


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
