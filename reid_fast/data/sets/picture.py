"""Images for people to look at."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

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
    from PIL import ImageOps

    return ImageOps.exif_transpose(image).convert("RGB")
