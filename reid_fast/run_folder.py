"""The run folder: which one, and whether it may be continued."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from pathlib import Path
from typing import Any

from reid_fast import checkpoint
from reid_fast.config import Config, flag_of, to_json
from reid_fast.errors import UserError

# A continued run may change these: they decide where and how long it runs, not what it computes.
_FREE = {
    "data_dir", "source_dir", "logs_dir", "recipe", "resume", "show_config", "workers", "cache", "threads", "device",
    "deterministic", "epochs", "eval_step", "save_steps", "tensorboard", "skip_bad_images",
}  # fmt: skip


def choose(config: Config) -> Path:
    """The folder of a run, made if it is not there.

    Without `--logs-dir`: the newest logs/METHOD-DATASET-NUMBER with `--resume`, else the next number.

    Raises:
        UserError: it already holds a run and `--resume` is not given, or it cannot be made.
    """
    path = config.logs_dir or _numbered(Path("logs"), f"{config.method}-{config.dataset}", config.resume)
    if (path / "config.json").exists() and not config.resume:
        raise UserError(f"{path} already holds a run: continue it with --resume, or choose another --logs-dir")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--logs-dir {path} cannot be made ({error.strerror})") from None
    return path


def _numbered(parent: Path, stem: str, newest: bool) -> Path:
    numbers = [
        int(match[1])
        for folder in (parent.iterdir() if parent.is_dir() else ())
        if (match := re.fullmatch(re.escape(stem) + r"-(\d+)", folder.name))
    ]
    last = max(numbers, default=0)
    return parent / f"{stem}-{last if newest and last else last + 1:03d}"


def describe(path: Path, config: Config) -> None:
    """Write config.json: every setting, and the versions that a repetition needs."""
    packages = ("reid-fast", "torch", "triton", "numpy", "scipy", "scikit-learn", "nvidia-dali-cuda120")
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    machine = {"system": platform.platform(), "processor": platform.machine()}
    content = {"config": to_json(config), "versions": versions, "machine": machine, "command": sys.argv[1:]}
    checkpoint.write_json(path / "config.json", content)


def check_same(state: dict[str, Any], config: Config, state_format: int, path: Path) -> None:
    """Raise a `UserError` unless a checkpoint was made with these settings, apart from those that may change."""
    saved = state["config"]
    wanted = {name: value for name, value in to_json(config).items() if name not in _FREE}
    if state["format"] != state_format or wanted.keys() - saved.keys():
        raise UserError(
            f"{path / 'last.pt'} was written by another version of reid-fast: use that one, or another --logs-dir"
        )
    changed = [name for name in wanted if saved[name] != wanted[name]]
    if changed:
        differences = ", ".join(f"{flag_of(name)} {saved[name]} (now {wanted[name]})" for name in changed)
        raise UserError(f"the run in {path} has {differences}: use its settings, or another --logs-dir")
