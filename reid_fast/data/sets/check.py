"""Are the image files whole? Judged by their first and last bytes, without decoding."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

from reid_fast.data.sets.in_threads import in_threads
from reid_fast.data.sets.paths import Paths
from reid_fast.data.sets.places import Opened, Place

_TAIL = 4096  # some cameras append metadata after the end marker
_LARGEST = 178_956_970  # pixels: of more, Pillow refuses to show an image, and a batch fills a machine's memory
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WebP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}
_CLAIMED = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
_SCAN = 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0..SOF15
_ENDS = {"JPEG": (b"\xff\xd9", "EOI"), "PNG": (b"IEND", "IEND")}


def check_images(paths: Paths, *, progress: Callable[[int, int], None] | None = None) -> list[tuple[int, str]]:
    """Find files that cannot be the images they claim to be.

    Reads the head and the last 4 KiB of each file: it sees an empty file, a content that is not its
    extension's (a name without one of an image claims nothing), a damaged JPEG header, damaged PNG chunks, a JPEG
    without EOI and a PNG without IEND, and either of more than 178,956,970 pixels, but no damage of the pixels. Damaged
    headers and chunks have to be caught here, since DALI 2.4 may crash on them instead of reporting them.

    Args:
        paths: the files.
        progress: called with (files checked, files in all) as the check proceeds.

    Returns:
        (row of `paths`, reason) of each bad file, in order.
    """
    reasons = (reason for part in in_threads(_reasons, paths, progress) for reason in part)
    return [(row, reason) for row, reason in enumerate(reasons) if reason]


def _reasons(paths: Paths) -> list[str | None]:
    return [_reason(text, place) for text, place in zip(paths.texts(), paths.places(), strict=True)]


def _reason(text: str, place: Place) -> str | None:
    try:
        with Opened(place) as image:
            return _fault(image, f".{text.rpartition('.')[2]}".lower())
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _fault(image: Opened, suffix: str) -> str | None:
    head = image.read(0, 16)
    if not head:
        return "empty file"
    kind = _kind(head)
    if kind is None:
        return "not an image"
    if _CLAIMED.get(suffix, kind) != kind:
        return f"a {kind} named {suffix}"
    pixels = 1  # of other kinds unknown
    if kind == "JPEG" and not (pixels := _jpeg_pixels(image)):
        return "a JPEG with a damaged header"
    marker, name = _ENDS.get(kind, (b"", ""))
    if marker not in image.read(max(0, image.size - _TAIL), _TAIL):
        return f"truncated {kind}: no {name} marker at its end"
    if kind == "PNG" and not (pixels := _png_pixels(image)):
        return "a PNG with damaged chunks"
    return f"{pixels:,} pixels, more than {_LARGEST:,}" if pixels > _LARGEST else None


def _jpeg_pixels(image: Opened) -> int:
    """H·W by its frame; 0 unless the segments from SOI follow one another up to the first scan."""
    at = 2
    pixels = 0
    while True:
        segment = image.read(at, 4)
        if len(segment) < 4:
            return 0
        mark, code, high, low = segment
        if mark != 0xFF:
            return 0
        if code == 0xFF:  # a fill byte
            at += 1
            continue
        if code == _SCAN:
            return pixels
        if code in _FRAMES:
            pixels = max(pixels, _product(image.read(at + 5, 4), 2))  # behind the bits of a sample
        length = high << 8 | low
        if length < 2:
            return 0
        at += 2 + length


def _product(sides: bytes, size: int) -> int:
    """Of two numbers of `size` bytes each."""
    return math.prod(int.from_bytes(side, "big") for side in (sides[:size], sides[size:]))


def _png_pixels(image: Opened) -> int:
    """H·W; 0 unless a header with its true checksum comes first, and the chunks follow one another up to IEND."""
    header = image.read(8, 25)  # length, name, 13 bytes, checksum
    if header[:8] != b"\0\0\0\rIHDR" or zlib.crc32(header[4:21]) != int.from_bytes(header[21:], "big"):
        return 0
    at = 33
    while len(head := image.read(at, 8)) == 8 and head[4:] != b"IEND":
        at += 12 + int.from_bytes(head[:4], "big")  # length, name, the data, their checksum
    return _product(header[8:16], 4) if head[4:] == b"IEND" else 0


def _kind(head: bytes) -> str | None:
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    return next((kind for signature, kind in _SIGNATURES if head.startswith(signature)), None)
