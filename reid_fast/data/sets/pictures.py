"""Images for people to look at."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

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
