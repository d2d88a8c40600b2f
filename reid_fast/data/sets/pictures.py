"""Images for people to look at."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reid_fast.data.sets.places import read_image
from reid_fast.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


def picture(path: Path) -> Image.Image:
    """An image in RGB, the right side up, as training sees it.

    Raises:
        UserError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read_image(path).tobytes())) as image:
            return upright(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be shown ({error}): repair or remove it, or ask for no pictures") from None


def upright(image: Image.Image) -> Image.Image:
    """An image of Pillow's in RGB, turned as its EXIF orientation says: DALI's decoder does so, Pillow's does not."""
    from PIL import Image, ImageOps

    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16"):  # of 16 bits a pixel DALI takes the upper ones, Pillow would clip
        turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    return turned.convert("RGB")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The content of an image file.

    Pillow writes into the descriptor of a file that it is given, and does not notice where a disk takes a part alone.

    Args:
        image: of Pillow's.
        kind: of file, as Pillow calls it: "PNG".
        options: of Pillow's `save`.
    """
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82"}  # of JPEG and PNG, by how they begin
_TAIL = 64  # bytes in which the end is looked for; some writers fill up with zeros


def ends_early(content: np.ndarray) -> bool:
    """Whether a JPEG or PNG stops before its picture does, as a copy that was interrupted: DALI may crash on it.

    Args:
        content: [n] uint8, of a file.
    """
    begins, tail = content[:4].tobytes(), content[-_TAIL:].tobytes().rstrip(b"\0")
    end = next((end for start, end in _ENDS.items() if begins.startswith(start)), b"")
    if tail.endswith(end):
        return False
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content.tobytes())) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True
    return False
