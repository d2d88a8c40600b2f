"""Pictures inside a page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def thumbnail(image: Image.Image, height: int) -> str:
    """An image as the value of `src`: a JPEG in a data URI, which holds nothing but pixels.

    Args:
        image: of any mode.
        height: of the thumbnail, in pixels; a smaller image stays as it is, and the aspect ratio is kept.
    """
    from PIL import Image

    picture = image.convert("RGB")
    if picture.height > height:
        width = max(1, round(picture.width * height / picture.height))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    picture.info.clear()  # Pillow would write the comment and the profile of the original again
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
