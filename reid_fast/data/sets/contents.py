"""What the bytes of every file say: which are equal, and how large each image is."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reid_fast.data.sets.in_threads import in_threads
from reid_fast.data.sets.paths import Paths
from reid_fast.data.sets.places import read_image
from reid_fast.errors import UserError

_DIGEST = 16  # bytes: among a billion files, two different ones are alike with a probability of 1e-21


class Contents(NamedTuple):
    """Of N files; both are 0 where a file cannot be read."""

    digest: npt.NDArray[np.uint64]  # [N, 2] a hash of the whole file
    size: npt.NDArray[np.int64]  # [N, 2] (H, W) in pixels by the file's own header, 0 where it has none


def read_contents(paths: Paths, progress: Callable[[int, int], None]) -> Contents:
    """Read every file once.

    Args:
        paths: N images.
        progress: called with (files done, N).
    """
    with warnings.catch_warnings():  # here, for it is not the threads' own
        warnings.filterwarnings("ignore", module="PIL")  # of images that are large or oddly made
        found = list(chain.from_iterable(in_threads(_of_part, paths, progress)))
    digest = np.frombuffer(b"".join(digest for digest, _ in found), dtype="<u8")
    return Contents(
        digest.astype(np.uint64).reshape(-1, 2), np.array([size for _, size in found], dtype=np.int64).reshape(-1, 2)
    )


def _of_part(paths: Paths) -> list[tuple[bytes, tuple[int, int]]]:
    found = []
    for path in paths:
        try:
            content = read_image(path).tobytes()
        except UserError:
            found.append((bytes(_DIGEST), (0, 0)))
        else:
            found.append((hashlib.blake2b(content, digest_size=_DIGEST).digest(), _size(content)))
    return found


def _size(content: bytes) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # whether it decodes is asked elsewhere
        return 0, 0


def equal_files(digest: npt.NDArray[np.uint64]) -> list[npt.NDArray[np.int64]]:
    """The rows of files that have the same content as others, each group ascending, by its first row."""
    rows = np.flatnonzero(digest.any(axis=1))
    content = np.unique(digest[rows], axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(content, kind="stable")
    groups = np.split(rows[order], np.flatnonzero(np.diff(content[order])) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))
