"""What a run records: a row an epoch in metrics.jsonl, and in what else takes rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.table import Table

from reid_fast.console import clock_time
from reid_fast.errors import UserError
from reid_fast.sinks import Sink
from reid_fast.whole_file import not_written, write_whole

_SMALLEST = 1e-60  # of a number other than 0
SCORES = ("mAP", "rank1", "rank5", "rank10", "mINP")


def score_key(encoder: str, name: str) -> str:
    """A score's key in metrics.jsonl: its name for the method's model (""), `teacher_mAP` for its teacher."""
    return f"{encoder}_{name}" if encoder else name


class MetricsLog:
    """The rows of one run folder."""

    def __init__(self, folder: Path, *, last_epoch: int = 0, writes: bool = True, sinks: Sequence[Sink] = ()) -> None:
        """
        Args:
            folder: of the run.
            last_epoch: rows of later epochs are dropped from metrics.jsonl: a resumed run writes them again.
            writes: whether this process is the one that records.
            sinks: get the rows too; they are closed behind this as a context.
        """
        self._path, self._writes, self._sinks = folder / "metrics.jsonl", writes, sinks
        self._added: list[dict[str, Any]] = []
        self._rows = [row for row in self.rows() if row["epoch"] <= last_epoch] if writes else []
        if writes:
            self._write()

    def add(self, row: dict[str, Any]) -> None:
        """Record an epoch.

        Raises:
            UserError: the disk is full.
        """
        self._added.append(row)
        if not self._writes:
            return
        self._rows.append(row)
        self._write()
        for sink in self._sinks:
            try:
                sink.add(row["epoch"], dict(_flat(row)))
            except OSError as error:
                raise not_written(self._path.parent, error) from None

    def _write(self) -> None:
        text = "".join(json.dumps(row) + "\n" for row in self._rows)
        write_whole(self._path, lambda file: file.write(text.encode()))

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        for sink in self._sinks:
            try:
                sink.close(failed=error is not None)
            except OSError as fault:
                if error is None:  # else that is told
                    raise not_written(self._path.parent, fault) from None

    def rows(self) -> list[dict[str, Any]]:
        """The rows so far; a last line cut short by a kill is left out.

        Raises:
            UserError: the file cannot be read, or another line is no row of numbers; it is named.
        """
        rows: list[dict[str, Any]] = []
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return rows
        except OSError as error:
            raise UserError(f"{self._path} cannot be read ({error.strerror}): check its permissions") from None
        for number, line in enumerate(lines, start=1):
            row = _row(line)
            if row is not None:
                rows.append(row)
            elif line.endswith(b"\n"):
                raise UserError(f"{self._path}:{number} is damaged: restore the file from a copy, or remove the line")
        return rows

    def seconds_left(self, epochs: int, eval_step: int) -> float | None:
        """What the rest of a run takes, judged by what this process has added; None before its first epoch.

        An epoch takes as long as the last three did on average; an evaluation, as the last one. One that is due and
        has not been timed yet is left out.

        Args:
            epochs: of the whole run.
            eval_step: epochs between evaluations, beside that of the last epoch.
        """
        trained = [row for row in self._added if row["epoch"] > 0]
        if not trained:
            return None
        done, last = trained[-1]["epoch"], trained[-3:]
        epoch = sum(sum(row["seconds"].values()) - row["seconds"].get("evaluate", 0.0) for row in last) / len(last)
        evaluation = next((row["seconds"]["evaluate"] for row in reversed(self._added) if "mAP" in row), 0.0)
        due = sum(is_due(later, epochs, eval_step) for later in range(done + 1, epochs + 1))
        return (epochs - done) * epoch + due * evaluation


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of the file; None where it is no epoch with its seconds and numbers that a chart can hold."""
    try:
        row = json.loads(line)
        epoch, seconds, numbers = row["epoch"], row["seconds"].values(), [row[key] for key in row if key != "seconds"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    whole = type(epoch) is int and 0 <= epoch < 2**31 and all(map(_is_number, (*numbers, *seconds)))
    return row if whole and all(0 <= spent < math.inf for spent in seconds) else None


def _is_number(value: Any) -> bool:
    """Of a usual size, or not finite, as a loss may become."""
    usual = type(value) in (int, float) and (value == 0 or _SMALLEST < abs(value) < 1 / _SMALLEST)
    return usual or (type(value) is float and not math.isfinite(value))


def is_due(epoch: int, epochs: int, eval_step: int) -> bool:
    """Whether an epoch, of so many, ends with an evaluation."""
    return epoch % eval_step == 0 or epoch == epochs


def epoch_line(row: dict[str, Any], epochs: int, seconds_left: float | None = None) -> str | None:
    """One line for one row of metrics.jsonl, and the time that the run still takes; None if there is nothing to say."""
    if not row.keys() - {"epoch", "seconds"}:
        return None
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"]
    if "clusters" in row:
        parts += [
            f"{row['clusters']:>4} clusters",
            f"{row['outliers']:>4} outliers",
            f"silhouette {row['silhouette']:.3f}",
            f"loss {row['loss']:.3f}",
            f"{row['images_per_second']:,.0f} images/s",
        ]
    if "mAP" in row:
        parts += [f"mAP {row['mAP']:.1%}", f"rank-1 {row['rank1']:.1%}"]
    parts += [f"{key.replace('_', ' ')} {value:.1%}" for key, value in row.items() if key.endswith("_mAP")]
    parts.append(", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row["seconds"].items()) + " s")
    if seconds_left:
        parts.append(f"{clock_time(seconds_left)} left")
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


def summary(
    rows: list[dict[str, Any]], encoders: Sequence[str], chosen: dict[str, dict[str, float]] | None = None
) -> Table | None:
    """The scores before training, at the end, and of the best epoch of each encoder; None if nothing was scored.

    Args:
        rows: of metrics.jsonl.
        encoders: as `score_key` has them.
        chosen: further scores, by name: those of an encoder that was chosen without looking at scores.
    """
    scored = {row["epoch"]: row for row in rows if "mAP" in row}
    table: dict[str, dict[str, float]] = {}
    for encoder in encoders if scored else ():
        best = max(scored, key=lambda epoch: scored[epoch][score_key(encoder, "mAP")])
        last = "last epoch" if max(scored) == rows[-1]["epoch"] else "last epoch evaluated"
        named = {"untrained": min(scored), f"{last} ({max(scored)})": max(scored)}
        for name, epoch in (named | {f"best on the test set (epoch {best})": best}).items():
            scores = {key: scored[epoch][score_key(encoder, key)] for key in SCORES}
            table[f"{name}, {encoder}" if encoder else name] = scores
    return score_table(table | (chosen or {})) if table or chosen else None


def _flat(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", inner) for key, inner in value.items())
        elif name != "epoch":
            yield name, value
