"""How far a long stage of the extension is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from reid_fast import _C

_report: ContextVar[Callable[[int, int], None] | None] = ContextVar("report", default=None)


@contextmanager
def reporting(report: Callable[[int, int], None]) -> Iterator[None]:
    """Inside, the compiled stages that this thread runs say how far they are, a few times a second.

    Args:
        report: called with (parts done, parts in all) of the stage under way; what it raises ends the stage.
    """
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def _told(done: int, total: int) -> None:
    report = _report.get()
    if report is not None:
        report(done, total)


_C.watch(_told)
