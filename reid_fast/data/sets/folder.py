"""The `folder` set: any tree of unlabelled crops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from reid_fast.data.sets.files import IMAGE_SUFFIXES, nested_names
from reid_fast.data.sets.paths import Paths
from reid_fast.data.sets.pattern import captured, compiled
from reid_fast.data.sets.records import ImageSet, ReidSet, Unparsed
from reid_fast.errors import UserError


def load_folder(
    root: Path,
    pattern: str | None = None,
    *,
    progress: Callable[[int, None], None] | None = None,
    unparsed: Unparsed | None = None,
) -> ReidSet:
    """Every image below `root`, at any depth, as a training split; there is no query or gallery.

    Args:
        root: an existing folder.
        pattern: regular expression with a group `cam`, `pid` or both, searched in the base name, or, when it
            contains a `/` itself, in the path relative to `root`. Cameras and identities are numbered from 0
            in the sorted order of the captured text; without their group they are all -1.
        progress: called with (images found so far, None).
        unparsed: see `captured`.

    Raises:
        UserError: no images, a pattern that is no such expression, a file that does not match it.
    """
    expression = compiled(pattern)
    paths = Paths.grouped(nested_names(root, progress))
    if not paths:
        raise UserError(f"{root} holds no images: their files must end in one of {' '.join(IMAGE_SUFFIXES)}")
    unknown = np.full(len(paths), -1, dtype=np.int64)
    known = {"pid": unknown, "cam": unknown, **captured(expression, paths, root, unparsed)}
    return ReidSet("folder", ImageSet(paths, known["pid"], known["cam"]), None, None, "folder of images", root)
