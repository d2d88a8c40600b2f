"""What a run says: the console, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from reid_fast.errors import UserError

SCORES = ("mAP", "rank1", "rank5", "rank10", "mINP")
_QUIET_SECONDS = 10.0  # between plain progress lines


def score_key(encoder: str, name: str) -> str:
    """A score's key in metrics.jsonl: its name for the method's model (""), `teacher_mAP` for its teacher."""
    return f"{encoder}_{name}" if encoder else name


class Log:
    """The console, and the files of one run folder."""

    def __init__(self, folder: Path | None = None, *, last_epoch: int = 0, tensorboard: bool = False) -> None:
        """
        Args:
            folder: of the run; None writes no files.
            last_epoch: rows of later epochs are dropped from metrics.jsonl: a resumed run writes them again.
            tensorboard: write events too.
        """
        self.console = Console()
        self._metrics = folder / "metrics.jsonl" if folder else None
        if self._metrics and self._metrics.exists():
            kept = [row for row in read_metrics(self._metrics) if row["epoch"] <= last_epoch]
            self._metrics.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._events = _tensorboard(folder) if folder and tensorboard else None

    def say(self, text: object = "") -> None:
        """Print a line or a table; without a terminal, lines are left unwrapped."""
        if isinstance(text, str):
            self.console.print(text, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)
        else:
            self.console.print(text)

    @contextmanager
    def progress(self, title: str, unit: str = "images") -> Iterator[Callable[..., None]]:
        """A bar with rate and time left, or a plain line every ten seconds; yields `report(done, total, note="")`."""
        if not self.console.is_terminal:
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
        with Progress(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task(title, total=None, rate="", note="")

            def report(done: int, total: int, note: str = "") -> None:
                speed = bars.tasks[0].speed
                rate = f"{speed:,.0f} {unit}/s" if speed else ""
                bars.update(task, completed=done, total=total, note=note, rate=rate)

            yield report

    def _plain_progress(self, title: str, unit: str) -> Callable[..., None]:
        start = spoken = time.monotonic()
        first: int | None = None

        def report(done: int, total: int, note: str = "") -> None:
            nonlocal first, spoken
            now = time.monotonic()
            if first is None:  # a resumed epoch does not begin at 0
                first = done
            if now - spoken >= _QUIET_SECONDS and first < done < total:
                spoken = now
                rate = (done - first) / (now - start)
                left = _clock((total - done) / rate)
                self.say(f"  {title} {done:,}/{total:,}, {rate:,.0f} {unit}/s, {left} left{note and ', ' + note}")

        return report

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Record an epoch: one line on the console, one row in metrics.jsonl."""
        if self._metrics:
            with self._metrics.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self._events:
            for name, value in _flat(row):
                self._events.add_scalar(name, value, row["epoch"])
            self._events.flush()
        self.say(epoch_line(row, epochs))


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One line for one row of metrics.jsonl."""
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"]
    if "clusters" in row:
        parts += [
            f"{row['clusters']:>4} clusters",
            f"{row['outliers']:>4} outliers",
            f"loss {row['loss']:.3f}",
            f"{row['images_per_second']:,.0f} images/s",
        ]
    if "mAP" in row:
        parts += [f"mAP {row['mAP']:.1%}", f"rank-1 {row['rank1']:.1%}"]
    parts += [f"{key.replace('_', ' ')} {value:.1%}" for key, value in row.items() if key.endswith("_mAP")]
    parts.append(", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row["seconds"].items()) + " s")
    return " | ".join(parts)


def score_table(rows: dict[str, dict[str, float]]) -> Table:
    """A table of scores, one named row each."""
    table = Table()
    table.add_column("")
    for title in ("mAP", "rank-1", "rank-5", "rank-10", "mINP"):
        table.add_column(title, justify="right")
    for name, scores in rows.items():
        table.add_row(name, *(f"{100 * scores[key]:.1f} %" for key in SCORES))
    return table


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def _flat(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", inner) for key, inner in value.items())
        elif name != "epoch":
            yield name, value


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs the extra: pip install 'reid-fast[tensorboard]'") from None
    return SummaryWriter(str(folder))
