"""What a run folder says of its run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid_fast.errors import UserError, printable
from reid_fast.metrics_log import MetricsLog


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder has it.

    Attributes:
        name: what it is called beside the others, in printable characters.
        folder: where it lies.
        settings: by name, as JSON's types.
        versions: of Python and the packages.
        rows: of metrics.jsonl, an epoch each.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    versions: dict[str, str | None]
    rows: list[dict[str, Any]]

    @property
    def trained(self) -> list[dict[str, Any]]:
        """The rows of epochs that were trained: all but the scores of the untrained network."""
        return [row for row in self.rows if row["epoch"] > 0]

    def last(self, key: str) -> Any:
        """The value of the last row that has it; None where none has."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Runs, each called by its folder's name, or by its whole path where several share that.

    Raises:
        UserError: a folder holds no run, a damaged one, or one without an epoch; or it is given twice.
    """
    real = [folder.resolve() for folder in folders]
    if len(set(real)) < len(real):
        raise UserError(f"{next(f for f, n in Counter(real).items() if n > 1)} is given twice: name each run once")
    shared = Counter(folder.name for folder in real)
    names = [folder.name if shared[folder.name] == 1 else str(folder) for folder in real]
    return [_read(printable(name), folder) for name, folder in zip(names, folders, strict=True)]


def _read(name: str, folder: Path) -> RunRecord:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text())
        settings, versions = dict(content["config"]), dict(content.get("versions", {}))
    except FileNotFoundError:
        raise UserError(f"{folder} is no run folder: there is no config.json in it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it from a copy") from None
    rows = MetricsLog(folder, writes=False).rows()
    if not rows:
        raise UserError(f"{folder} has no epoch yet: report on it when metrics.jsonl has a line")
    return RunRecord(name, folder, settings, versions, rows)
