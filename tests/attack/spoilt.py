"""Bytes of files, spoilt as disks, networks, editors and enemies spoil them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

# What numbers in headers are set to.
_EXTREMES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff" * 8)


def spoilt(content: bytes, chance: random.Random, inserted: tuple[bytes, ...] = ()) -> bytes:
    """Some bits turned, bytes lost, added, moved or set to extremes, most of them near the start; or the end cut off.

    Args:
        content: of a whole file.
        chance: draws.
        inserted: pieces that mean something in files of this kind.
    """
    made = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(max(1, len(made) if chance.random() < 0.5 else min(len(made), 256)))
        match chance.randrange(7):
            case 0 if made:
                made[at] ^= 1 << chance.randrange(8)
            case 1:
                piece = chance.choice(_EXTREMES)
                made[at : at + len(piece)] = piece
            case 2 if chance.random() < 0.3:
                del made[at:]
            case 3:
                del made[at : at + chance.randrange(1, 24)]
            case 4:
                made[at:at] = chance.randbytes(chance.randrange(1, 12))
            case 5:
                made[at:at] = made[at // 2 : at // 2 + chance.randrange(64)]
            case 6 if inserted:
                made[at:at] = chance.choice(inserted)
    return bytes(made)


def person() -> Image.Image:
    """RGB, 40×24 pixels of a few colours."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    return Image.fromarray(coarse.repeat(8, 0).repeat(8, 1))


def as_file(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture in a format of Pillow's."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    """EXIF that says how the camera was held, 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png(height: int, width: int, pixels: bytes) -> bytes:
    """A PNG of true checksums that claims a size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def jpeg(height: int, width: int) -> bytes:
    """A JPEG that claims a size."""
    content = bytearray(as_file(person(), "JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)
