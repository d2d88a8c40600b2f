"""Cameras and identities by a regular expression on names."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import islice
from operator import add
from pathlib import Path
from types import FrameType

import numpy as np

from reid_fast.data.sets.numbering import Numbering
from reid_fast.data.sets.paths import Paths
from reid_fast.data.sets.records import ImageSet, Int64, Unparsed
from reid_fast.errors import UserError

_NAMES, _SECONDS = 4096, 10  # to search so many names, a sound expression takes some milliseconds


def compiled(pattern: str | None) -> re.Pattern[str] | None:
    """The expression, once it is clear that it is one.

    Raises:
        UserError: it is none, or has neither a group `cam` nor a group `pid`.
    """
    if pattern is None:
        return None
    try:
        expression = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:  # the latter: repetitions or depth beyond all bounds
        raise UserError(f"--pattern {pattern!r} is not a regular expression: {error}") from None
    if not {"cam", "pid"} & set(expression.groupindex):
        raise UserError(f"--pattern {pattern!r} names no group: write (?P<cam>...) around the camera's part")
    return expression


def identified(pattern: str | None, *lists: Paths) -> list[ImageSet]:
    """Several lists of images with their cameras and identities, which are numbered together.

    Args:
        pattern: regular expression with a group `cam`, `pid` or both, searched in the base name, or, when it contains a
            `/` itself, in the path as it was given. None: nothing is known.
        lists: the images of each.

    Raises:
        UserError: a pattern that is no such expression, an image that does not match it.
    """
    paths = reduce(add, lists)
    unknown = np.full(len(paths), -1, dtype=np.int64)
    known = {"pid": unknown, "cam": unknown, **captured(compiled(pattern), paths)}
    ends = np.cumsum([len(some) for some in lists])[:-1]
    columns = (np.split(known[group], ends) for group in ("pid", "cam"))
    return [ImageSet(*columns) for columns in zip(lists, *columns, strict=True)]


def captured(
    pattern: re.Pattern[str] | None, paths: Paths, root: Path | None = None, unparsed: Unparsed | None = None
) -> dict[str, Int64]:
    """[N] numbers of each of the groups `cam` and `pid`, in the sorted order of the texts that they find.

    Args:
        pattern: searched in the base name, or, if it contains a `/` itself, in what follows `root` in the path.
        paths: N images below `root`.
        root: a folder; None: a path is searched as a whole.
        unparsed: is told of images that it does not match; their numbers are -1.

    Raises:
        UserError: an image that it does not match, unless `unparsed` is told; an expression that takes forever.
    """
    if pattern is None:
        return {}
    above = 0 if root is None else len(str(root / "_")) - 1
    searched = (text[above:] for text in paths.texts()) if "/" in pattern.pattern else paths.names()
    found = {group: Numbering() for group in {"cam", "pid"} & set(pattern.groupindex)}
    for row, match in enumerate(_matches(pattern, searched)):
        if match is None or None in match.group(*found, 0):
            reason = f"{paths[row]} does not match --pattern {pattern.pattern!r}: correct one or the other"
            if unparsed is None:
                raise UserError(reason)
            unparsed(paths[row], reason)
            match = None
        for group, numbering in found.items():
            numbering.add(match and match[group])
    return {group: numbering.numbers() for group, numbering in found.items()}


def _matches(pattern: re.Pattern[str], texts: Iterable[str]) -> Iterator[re.Match[str] | None]:
    """What the expression finds in each text.

    Expressions such as `(a+)+$` try all ways to divide a name, and there are millions of years of them. A search heeds
    signals, which Python hands to the main thread: on another one it is not bounded.

    Raises:
        UserError: it takes too long.
    """
    texts = iter(texts)
    while part := list(islice(texts, _NAMES)):
        if threading.current_thread() is not threading.main_thread():
            yield from map(pattern.search, part)
            continue
        before = signal.signal(signal.SIGALRM, _time_is_up)
        signal.setitimer(signal.ITIMER_REAL, _SECONDS)
        try:
            found = list(map(pattern.search, part))
        except TimeoutError:
            raise UserError(
                f"--pattern {pattern.pattern!r} takes more than {_SECONDS} s for {len(part)} names, such as {part[0]}: "
                "write it without repetitions inside of repetitions"
            ) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        yield from found


def _time_is_up(number: int, frame: FrameType | None) -> None:
    raise TimeoutError
