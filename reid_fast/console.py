"""What a run says on the console: lines, tables, progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_QUIET_SECONDS = 10.0  # between plain progress lines
_COUNTED_SECONDS = 1.0  # before which a rate says little


class Console:
    """The terminal, or the file that stdout goes to."""

    def __init__(self, *, quiet: bool = False) -> None:
        """
        Args:
            quiet: say nothing, as all but the first of several processes do.
        """
        self._terminal = Terminal(quiet=quiet)

    def say(self, text: object = "") -> None:
        """Print a line or a table; without a terminal, lines are left unwrapped."""
        if isinstance(text, str):
            text = text.encode(errors="backslashreplace").decode()  # a file name may be no UTF-8
            self._terminal.print(text, highlight=False, markup=False, soft_wrap=not self._terminal.is_terminal)
        else:
            self._terminal.print(text)

    @contextmanager
    def progress(self, title: str, unit: str = "images") -> Iterator[Callable[..., None]]:
        """A bar with rate and time left, or a plain line every ten seconds; yields `report(done, total, note="")`.

        The total is None as long as nobody knows it.
        """
        if not self._terminal.is_terminal:
            yield self._plain_progress(title, unit)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._terminal, transient=True) as bars:
            task = bars.add_task(title, total=None, rate="", note="")

            def report(done: int, total: int | None, note: str = "") -> None:
                speed = bars.tasks[0].speed
                rate = f"{speed:,.0f} {unit}/s" if speed else ""
                bars.update(task, completed=done, total=total, note=note, rate=rate)

            yield report

    def _plain_progress(self, title: str, unit: str) -> Callable[..., None]:
        start = spoken = time.monotonic()
        first = last = -1

        def report(done: int, total: int | None, note: str = "") -> None:
            nonlocal start, spoken, first, last
            now = time.monotonic()
            # What comes before the first report is not counted; nor does a resumed epoch begin at 0. A stage of several
            # passes begins anew with each.
            if first < 0 or done < last:
                start, first = now, done
            last = done
            told = now - spoken < _QUIET_SECONDS or now - start < _COUNTED_SECONDS
            if not told and first < done and done != total:
                spoken = now
                rate = (done - first) / (now - start)
                of, left = "", ""
                if total is not None:
                    of, left = f"/{total:,}", f", {clock_time((total - done) / rate)} left"
                self.say(f"  {title} {done:,}{of}, {rate:,.0f} {unit}/s{left}{note and ', ' + note}")

        return report


def clock_time(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
