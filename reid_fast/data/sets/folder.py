"""The `folder` set: any tree of unlabelled crops."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from reid_fast.data.sets.files import IMAGE_SUFFIXES, nested_names
from reid_fast.data.sets.numbering import Numbering
from reid_fast.data.sets.paths import Paths
from reid_fast.data.sets.records import ImageSet, Int64, ReidSet
from reid_fast.errors import UserError


def load_folder(
    root: Path, pattern: str | None = None, *, progress: Callable[[int, None], None] | None = None
) -> ReidSet:
    """Every image below `root`, at any depth, as a training split; there is no query or gallery.

    Args:
        root: an existing folder.
        pattern: regular expression with a group `cam`, `pid` or both, searched in the base name, or, when it
            contains a `/` itself, in the path relative to `root`. Cameras and identities are numbered from 0
            in the sorted order of the captured text; without their group they are all -1.
        progress: called with (images found so far, None).

    Raises:
        UserError: no images, a pattern that is no such expression, a file that does not match it.
    """
    expression = None if pattern is None else _compiled(pattern)
    paths = Paths.grouped(nested_names(root, progress))
    if not paths:
        raise UserError(f"{root} holds no images: point --data-dir at files ending in {' '.join(IMAGE_SUFFIXES)}")
    unknown = np.full(len(paths), -1, dtype=np.int64)
    captured = {} if expression is None else _captured(paths, root, expression)
    train = ImageSet(paths, captured.get("pid", unknown), captured.get("cam", unknown))
    return ReidSet("folder", train, None, None, "folder of images")


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--pattern {pattern!r} is not a regular expression: {error}") from None
    if not {"cam", "pid"} & set(expression.groupindex):
        raise UserError(f"--pattern {pattern!r} names no group: write (?P<cam>...) around the camera's part")
    return expression


def _captured(paths: Paths, root: Path, pattern: re.Pattern[str]) -> dict[str, Int64]:
    """[N] numbers of each group of `pattern`, in the sorted order of its texts."""
    above = len(str(root / "_")) - 1
    searched = (text[above:] for text in paths.texts()) if "/" in pattern.pattern else paths.names()
    found = {group: Numbering() for group in {"cam", "pid"} & set(pattern.groupindex)}
    for row, text in enumerate(searched):
        match = pattern.search(text)
        if match is None or None in match.group(*found, 0):
            raise UserError(f"{paths[row]} does not match --pattern {pattern.pattern!r}: correct one or the other")
        for group, numbering in found.items():
            numbering.add(match[group])
    return {group: numbering.numbers() for group, numbering in found.items()}
