"""Something asked of every file of a set, by threads: files wait on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from reid_fast.data.sets.paths import Paths

_CHUNK = 1024  # files per task and per progress report
_THREADS = 8  # more than there are cores
T = TypeVar("T")


def in_threads(
    task: Callable[[Paths], T], paths: Paths, progress: Callable[[int, int], None] | None = None
) -> Iterator[T]:
    """What `task` returns for one part of `paths` after the other.

    Args:
        task: called with a part.
        paths: N files.
        progress: called with (files done, N).
    """
    starts = range(0, len(paths), _CHUNK)
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for start, result in zip(starts, pool.map(lambda at: task(paths[at : at + _CHUNK]), starts), strict=True):
                if progress is not None:
                    progress(min(start + _CHUNK, len(paths)), len(paths))
                yield result
        finally:  # Ctrl-C does not wait for the parts that have not begun
            pool.shutdown(wait=False, cancel_futures=True)
