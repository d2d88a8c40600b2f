"""The run folder: which one, what lies in it, and whether it may be continued.

Everything is written to a temporary name, flushed and renamed, so a kill at any instant leaves whole files. The run
that lives in it keeps its file `lock`, which ends with its process.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from reid_fast.config import Config, fixed, to_json
from reid_fast.errors import UserError
from reid_fast.marks import flag_of
from reid_fast.whole_file import locked, not_written, write_whole

FORMAT = 4  # of last.pt: raise it when what a method or the driver saves changes
_CHECKSUM = "crc32"  # of a model's values, in the header of their file


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 16


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) and isfinite(v) for v in value)


# What model.json says, as far as it must be of a kind.
_DESCRIBED: Mapping[str, Callable[[Any], bool]] = {
    "arch": lambda value: isinstance(value, str),
    "pooling_type": lambda value: isinstance(value, str),
    "stem_relu": lambda value: isinstance(value, bool),
    "height": _is_side,
    "width": _is_side,
    "mean": _is_colour,
    "std": lambda value: _is_colour(value) and min(value) > 0,
}


def choose(config: Config) -> Path:
    """The folder of a run, made if it is not there.

    Without `--logs-dir`: the newest logs/METHOD-DATASET-NUMBER with `--resume`, else the next number, which no run that
    starts at the same time gets.

    Raises:
        UserError: it cannot be made.
    """
    path = config.logs_dir
    try:
        if path is None:
            return _numbered(Path("logs"), f"{config.method}-{config.dataset}", config.resume)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--logs-dir {path or 'logs'} cannot be made ({error.strerror})") from None
    return path


def _numbered(parent: Path, stem: str, newest: bool) -> Path:
    parent.mkdir(exist_ok=True)
    numbers = [
        int(match[1])
        for folder in parent.iterdir()
        if (match := re.fullmatch(re.escape(stem) + r"-(\d+)", folder.name))
    ]
    last = max(numbers, default=0)
    if newest and last:
        return parent / f"{stem}-{last:03d}"
    for number in count(last + 1):
        path = parent / f"{stem}-{number:03d}"
        with suppress(FileExistsError):
            path.mkdir()
            break
    return path


@contextmanager
def held(path: Path, resume: bool) -> Iterator[None]:
    """Inside, the run folder is this run's alone.

    Raises:
        UserError: another run lives there, or one has and `resume` is not given; or it cannot be written.
    """
    try:
        file = (path / "lock").open("ab")
    except OSError as error:
        raise not_written(path, error) from None
    with file:
        if not locked(file):
            raise UserError(f"another run goes on in {path}: wait for its end, or choose another --logs-dir")
        if (path / "config.json").exists() and not resume:
            raise UserError(f"{path} already holds a run: continue it with --resume, or choose another --logs-dir")
        yield


def describe(path: Path, config: Config) -> None:
    """Write config.json: every setting, and the versions that a repetition needs."""
    packages = ("reid-fast", "torch", "triton", "numpy", "scipy", "scikit-learn", "nvidia-dali-cuda120")
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    machine = {"system": platform.platform(), "processor": platform.machine()}
    content = {"config": to_json(config), "versions": versions, "machine": machine, "command": sys.argv[1:]}
    write_json(path / "config.json", content)


def check_output(path: Path) -> None:
    """
    Raises:
        UserError: a file cannot be written there: it is a folder, or the folder that it is to lie in is not there.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: name a file to write")
    if not os.path.isdir(path.parent):
        raise UserError(f"there is no folder {path.parent} to write {path.name} into: make it, or choose another file")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole."""
    write_whole(path, lambda file: file.write(json.dumps(content, indent=2).encode() + b"\n"))


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write last.pt: tensors, numbers, strings and containers of them."""
    write_whole(folder / "last.pt", lambda file: torch.save({"format": FORMAT, **state}, file))


def load(folder: Path) -> dict[str, Any]:
    """Read last.pt onto the CPU.

    Raises:
        UserError: it is not a checkpoint, is cut short or damaged anywhere.
    """
    path = folder / "last.pt"
    try:
        with zipfile.ZipFile(path) as parts:  # torch compares no checksums
            if damaged := parts.testzip():
                raise ValueError(f"the checksum of {damaged} is another")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "format" not in state:
            raise ValueError("no reid-fast state in it")
    except Exception as error:  # both readers have their own zoo of exceptions
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path} is damaged or not a checkpoint of reid-fast ({reason}): "
            "restore it from a copy, or start again with another --logs-dir"
        ) from None
    return state


def check_same(state: dict[str, Any], config: Config, images: Mapping[str, tuple[int, str]], path: Path) -> None:
    """Raise a `UserError` unless a checkpoint is of these images and settings, but for settings that may change.

    Args:
        state: of the checkpoint.
        config: as the run is to continue.
        images: its training images, as `TrainingSet.fingerprints` has them.
        path: the run folder.
    """
    saved, wanted = state["config"], fixed(config)
    if state["format"] == FORMAT and saved.get("method") != config.method:
        wanted = {"method": config.method}  # another one has other settings
    if state["format"] != FORMAT or wanted.keys() - saved.keys():
        raise UserError(
            f"{path / 'last.pt'} was written by another version of reid-fast: use that one, or another --logs-dir"
        )
    changed = [name for name in wanted if saved[name] != wanted[name]]
    if changed:
        differences = ", ".join(f"{flag_of(name)} {saved[name]} (now {wanted[name]})" for name in changed)
        raise UserError(f"the run in {path} has {differences}: use its settings, or another --logs-dir")
    for name, (number, names) in images.items():
        before, names_before = state["images"][name]
        if (number, names) != (before, names_before):
            found = f"{number} training images" if number != before else "training images of other names"
            raise UserError(
                f"--{name} has {found}, and {before} when the run in {path} began, whose labels are theirs: restore "
                f"them, or start a run in another --logs-dir, from its encoder with --weights {path}"
            )


def export(folder: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write model.safetensors and model.json: what inference needs. The folder is made if it is not there."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise not_written(folder, error) from None
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    known = {_CHECKSUM: _checksum(tensors_to_bytes(whole))}
    write_whole(folder / "model.safetensors", lambda file: file.write(tensors_to_bytes(whole, known)))
    write_json(folder / "model.json", description)


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    """Of a .safetensors file, and where its values begin."""
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), start


def _checksum(content: bytes) -> str:
    return f"{zlib.crc32(memoryview(content)[_header(content)[1] :]):08x}"


def load_export(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `export` wrote.

    Raises:
        UserError: not a run folder, or a damaged file.
    """
    if not os.path.isdir(folder):
        raise UserError(f"there is no run folder {folder}")
    try:
        description = json.loads((folder / "model.json").read_text())
        if not isinstance(description, dict):
            raise ValueError("model.json holds no names")
        if odd := [name for name, fits in _DESCRIBED.items() if name in description and not fits(description[name])]:
            raise ValueError(f"model.json has no such {odd[0]}")
        content = (folder / "model.safetensors").read_bytes()
        tensors = tensors_from_bytes(content)
        known = _header(content)[0].get("__metadata__") or {}
        if known.get(_CHECKSUM, _checksum(content)) != _checksum(content):
            raise ValueError("the values of model.safetensors have another checksum")
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no finished epoch: {Path(error.filename).name} is missing") from None
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        raise UserError(f"the model in {folder} is damaged ({error}): restore it from a copy or train again") from None
    return tensors, description
