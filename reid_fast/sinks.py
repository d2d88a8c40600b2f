"""Where the rows of metrics.jsonl go beside it: TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from reid_fast import run_folder
from reid_fast.config import Config, to_json
from reid_fast.errors import UserError
from reid_fast.whole_file import not_written


class Sink(Protocol):
    """Takes a row an epoch; what cannot be written is an OSError."""

    def add(self, epoch: int, values: Mapping[str, float]) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def open_sinks(config: Config, folder: Path) -> list[Sink]:
    """Those that a run's settings ask for.

    Raises:
        UserError: a package is missing, the folder cannot be written, or Weights & Biases takes no run.
    """
    sinks: list[Sink] = []
    try:
        if config.tensorboard:
            sinks.append(TensorBoard(folder))
        if config.wandb is not None:
            sinks.append(WeightsAndBiases(folder, config.wandb, to_json(config)))
    except OSError as error:
        raise not_written(folder, error) from None
    return sinks


class TensorBoard:
    """Events in the run folder.

    TensorBoard's own `SummaryWriter` writes from a thread of its own, in which a full disk ends without a word.
    """

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: of the run.

        Raises:
            UserError: the package is missing.
            OSError: the folder takes no file.
        """
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            raise UserError("--tensorboard needs the extra: pip install 'reid-fast[tensorboard]'") from None
        name = f"events.out.tfevents.{int(time.time())}.{platform.node()}.{os.getpid()}"
        self._event: Any = Event
        self._records: Any = RecordWriter((folder / name).open("ab"))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write an epoch's numbers."""
        content = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self._write(self._event(wall_time=time.time(), step=epoch, summary={"value": content}))

    def close(self, *, failed: bool) -> None:
        """End the file."""
        self._records.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()


class WeightsAndBiases:
    """A run there, whose id the run folder keeps: a resumed run goes on under it.

    Whether it is sent or kept for `wandb sync`, and to whom, is decided by Weights & Biases' own variables, such as
    WANDB_MODE=offline.
    """

    def __init__(self, folder: Path, project: str, settings: dict[str, Any]) -> None:
        """
        Args:
            folder: of the run.
            project: its name there.
            settings: what is shown as the run's.
        """
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs the extra: pip install 'reid-fast[wandb]'") from None
        path = folder / "wandb.json"
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError):  # there is none yet, or it is damaged
            known = None
        if not isinstance(known, dict) or known.get("project") != project:
            known = {"project": project, "id": secrets.token_hex(4)}
            run_folder.write_json(path, known)
        try:
            self._run: Any = wandb.init(
                **known, name=folder.name, dir=str(folder), config=settings, resume="allow", job_type="train"
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--wandb {project}: Weights & Biases takes no run ({reason}): "
                "log in with `wandb login`, or set WANDB_MODE=offline and send it later with `wandb sync`"
            ) from None

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Log an epoch's numbers."""
        self._run.log(dict(values), step=epoch)

    def close(self, *, failed: bool) -> None:
        """End the run there, as finished or as failed."""
        self._run.finish(exit_code=int(failed))
