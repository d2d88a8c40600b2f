"""What a run leaves, as it is compared: everything but what was measured."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from attack.attacked import Ended
from inputs import TINY, argv, rows_of

MEASURED = {"seconds", "images_per_second", "peak_memory_mb"}
# The shortest run that has all that longer ones have: checkpoints within epochs, a best encoder.
SHORTEST = TINY | {
    "arch": "tiny",
    "method": "cc",
    "iters": 2,
    "epochs": 2,
    "save_steps": 1,
    "workers": 1,
    "threads": 1,
    "save_best": True,
    "resume": True,
}


KINDS = "plain", "with a file of decoded images and TensorBoard"


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing has disturbed: its folder, and how it ended."""

    run: Path
    ended: Ended


def training(data: Path, run: Path, **more: object) -> list[str]:
    """The command line of the shortest run."""
    return ["train", *argv(**SHORTEST | {"data_dir": data, "logs_dir": run} | more)]


def settings_of(kind: str, cache: Path) -> dict[str, object]:
    """What a kind of run has beside the settings of the shortest one; its cache lies here."""
    return {} if kind == "plain" else {"cache": 0, "cache_dir": cache / "decoded", "tensorboard": True}


def left_by(run: Path) -> dict[str, object]:
    """What a whole run has left: hashes of tensors, numbers, and the names of all its files but TensorBoard's.

    Raises what reading raises, where a file is not whole.
    """
    state = torch.load(run / "last.pt", weights_only=True)
    for name in ("logs_dir", "cache_dir"):
        state["config"].pop(name)
    state["at"].pop("seconds")
    rows = [{name: value for name, value in row.items() if name not in MEASURED} for row in rows_of(run)]
    kept = [file for file in run.rglob("*") if file.is_file() and "tfevents" not in file.name]
    files = {file.relative_to(run).as_posix() for file in kept}
    content = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in files if "model." in name}
    return {"state": hashed(state), "rows": rows, "files": files, **content}


def hashed(value: object) -> object:
    """The same with hashes for tensors."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), hashlib.sha256(value.numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {name: hashed(item) for name, item in value.items()}
    return [hashed(item) for item in value] if isinstance(value, list) else value


def assert_readable(run: Path) -> None:
    """Every file that has its final name is whole."""
    for file in run.rglob("*"):
        if file.name == "last.pt":
            torch.load(file, weights_only=True)
        elif file.name in ("model.json", "config.json"):
            json.loads(file.read_bytes())
        elif file.name == "metrics.jsonl":
            rows_of(run)
        elif file.name == "model.safetensors":
            from safetensors.torch import load

            load(file.read_bytes())
