"""Say of each image of a folder what becomes of it, on every way that it may take: `decode_each.py FOLDER`.

In a process of its own, for decoders may take it with them. A line is begun before a file is touched.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from reid_fast.data.images import ImageStream, undecodable
from reid_fast.data.sets import Paths, check_images, picture
from reid_fast.errors import UserError

T = TypeVar("T")


def said(path: Path, act: Callable[[], T]) -> T | None:
    """What comes of it; None where one sentence with the file's name refuses it."""
    try:
        return act()
    except UserError as error:
        if str(path) not in str(error):
            raise
        return None


def fate(path: Path) -> str:
    """What becomes of an image."""
    paths = Paths.of([path])
    if check_images(paths):
        return "refused"
    fails = bool(undecodable(paths, 1, lambda done, total: None))
    stream = ImageStream(paths, (8, 8), threads=1, norm=None)
    decoded = said(path, lambda: next(stream.plain(np.array([0]), 1)))
    assert fails == (decoded is None)
    if decoded is None:
        return "undecodable"
    assert tuple(decoded.shape) == (1, 3, 8, 8)
    shown = said(path, lambda: picture(path))
    assert shown is None or shown.mode == "RGB"
    return "decoded, and not shown" if shown is None else "decoded"


for file in sorted(Path(sys.argv[1]).iterdir()):
    print(file.name, end=" ", flush=True)
    print(fate(file), flush=True)
