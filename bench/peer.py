"""A checkout of Cluster Contrast's published code, in a process of its own, to be timed beside the engine.

Nothing of it is copied: its parts are imported from the user's folder, by the names and signatures it was published
with. On a machine without CUDA its `.cuda()` leaves tensors where they are; where torchvision is missing, or does not
fit this torch, the few transforms it asks for come from `stand_in/`. All of that happens in the other process alone.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import sys
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from reid_fast.errors import UserError

PACKAGE = "clustercontrast"
REFERENCE = Path(__file__).parent / "reference"
STAND_IN = Path(__file__).parent / "stand_in"
# What is called, by module, with the parameters it is called by.
PARTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "models.cm": {"ClusterMemory": ("num_features", "num_samples", "temp", "momentum")},
    "utils.faiss_rerank": {"compute_jaccard_distance": ("target_features", "k1", "k2", "print_flag", "search_option")},
    "evaluators": {
        "extract_features": ("model", "data_loader", "print_freq"),
        "Evaluator": ("model",),
        "Evaluator.evaluate": ("data_loader", "query", "gallery", "cmc_flag"),
    },
    "trainers": {
        "ClusterContrastTrainer": ("encoder", "memory"),
        "ClusterContrastTrainer.train": ("epoch", "data_loader", "optimizer", "print_freq", "train_iters"),
    },
    "utils.data": {"IterLoader": ("loader", "length")},
    "utils.data.preprocessor": {"Preprocessor": ("dataset", "root", "transform")},
    "utils.data.sampler": {"RandomMultipleGallerySampler": ("data_source", "num_instances")},
    "utils.data.transforms": {
        "Compose": ("transforms",),
        "Resize": ("size", "interpolation"),
        "RandomHorizontalFlip": ("p",),
        "Pad": ("padding",),
        "RandomCrop": ("size",),
        "ToTensor": (),
        "Normalize": ("mean", "std"),
        "RandomErasing": ("probability", "mean"),
    },
}


class Peer:
    """The other process; `with` ends it."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: a checkout of the published code, or `REFERENCE`, the same in this project's own words.

        Raises:
            UserError: it is none, or this machine cannot import it.
        """
        self.name = "reference" if folder == REFERENCE else "peer"
        check_files(folder)
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        try:
            self._process.submit(_load, folder.resolve()).result()
        except BaseException:
            self.close()
            raise

    def __call__(self, operation: str, *arguments: Any) -> Any:
        """What a method of `peer_side.Side` returns there; the first one is "start"."""
        try:
            return self._process.submit(_operate, operation, *arguments).result()
        except BrokenProcessPool:
            raise SystemExit(f"the process of the {self.name} ended in {operation}: is the memory full?") from None

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.shutdown(cancel_futures=True)


def check_files(folder: Path) -> None:
    """
    Raises:
        UserError: the folder, or a file in it, is missing.
    """
    if not folder.is_dir():
        raise UserError(f"--peer {folder} is no folder: give a checkout of Cluster Contrast's published code")
    for module in PARTS:
        path = folder.joinpath(PACKAGE, *module.split("."))
        if not path.with_suffix(".py").is_file() and not (path / "__init__.py").is_file():
            lacking = path.with_suffix(".py").relative_to(folder)
            raise UserError(
                f"--peer {folder} has no {lacking}: give a whole checkout of Cluster Contrast's published code"
            )


# In the other process: the parts of the checkout by the last part of their name, and what runs them.
_parts: dict[str, Any] = {}
_side: Any = None


def _load(folder: Path) -> None:
    warnings.simplefilter("ignore")  # what older code asks of newer libraries
    _stand_in()
    sys.path.insert(0, str(folder))
    for module, names in PARTS.items():
        try:
            found = importlib.import_module(f"{PACKAGE}.{module}")
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"--peer {folder}: {PACKAGE}.{module} cannot be imported here ({reason})") from None
        for name, parameters in names.items():
            _parts[name] = _part(folder, found, name, parameters)


def _part(folder: Path, module: Any, name: str, parameters: tuple[str, ...]) -> Any:
    try:
        part = attrgetter(name)(module)
    except AttributeError:
        raise UserError(f"--peer {folder}: {module.__name__} has no {name}, which the published code has") from None
    taken = inspect.signature(part).parameters
    if lacking := [parameter for parameter in parameters if parameter not in taken]:
        raise UserError(
            f"--peer {folder}: {name} of {module.__name__} takes ({', '.join(taken)}), and no {lacking[0]}, "
            "which the published code has"
        )
    return part


def _stand_in() -> None:
    """Neutralise CUDA where there is none, stand in for torchvision, take what torch took when the code was written."""
    if not torch.cuda.is_available():
        for kind in (torch.Tensor, torch.nn.Module):
            kind.cuda = lambda self, *_, **__: self
        torch.cuda.synchronize = lambda *_: None
    torch.utils.data.Sampler.__init__ = lambda self, *_: None
    try:
        importlib.import_module("torchvision")
    except Exception:  # missing, or built for another torch
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.path.insert(0, str(STAND_IN))


def _operate(operation: str, *arguments: Any) -> Any:
    global _side
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        if operation != "start":
            return getattr(_side, operation)(*arguments)
        from peer_side import Side

        _side = Side(_parts, *arguments)
        return None
