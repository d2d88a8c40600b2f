"""Where the rows of metrics.jsonl go beside it: TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from reid_fast import run_folder
from reid_fast.config import Config, to_json
from reid_fast.errors import UserError


class Sink(Protocol):
    """Takes a row an epoch."""

    def add(self, epoch: int, values: Mapping[str, float]) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def open_sinks(config: Config, folder: Path) -> list[Sink]:
    """Those that a run's settings ask for.

    Raises:
        UserError: a package is missing, or Weights & Biases takes no run.
    """
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoard(folder))
    if config.wandb is not None:
        sinks.append(WeightsAndBiases(folder, config.wandb, to_json(config)))
    return sinks


class TensorBoard:
    """Events in the run folder."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs the extra: pip install 'reid-fast[tensorboard]'") from None
        self._writer: Any = SummaryWriter(str(folder))

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write an epoch's numbers."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """End the file."""
        self._writer.close()


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
