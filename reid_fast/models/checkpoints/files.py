"""Files of tensors by name: nothing that a file holds is run, and nothing but tensors comes back."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from reid_fast.errors import UserError

# What training scripts put the tensors under, DINO its slow network's: one may lie in another.
_WRAPPINGS = ("model", "state_dict", "teacher")
_DEEPEST = 8  # wrappings in one another: a file may hold a dict that holds itself
# What wrappers put before every name: (Distributed)DataParallel, torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
# SpCL and its successors keep their best mAP as a NumPy number beside the tensors, DINO its command line's settings.
# None of these runs code of a file.
_SCALAR = np.float64(0).__reduce__()[0]  # NumPy's own maker of numbers
_LET_IN: list[Any] = [
    argparse.Namespace,
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as NumPy 1 calls it
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of one by `torch.save`, on the CPU, by name.

    What they are wrapped in is taken off: dicts that keep an epoch or an optimiser beside them, prefixes of all names.

    Raises:
        UserError: no such file, one that holds no tensors by name, or one that holds objects of code.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file")
    content = _content(path)
    if isinstance(content, dict) and {"format", "method", "at"} <= content.keys():
        raise UserError(f"{path} is the state of a run, not its weights: give its folder, {path.parent}")
    for _ in range(_DEEPEST):
        content = _unwrapped(content)
    if not isinstance(content, Mapping):
        raise _not_weights(path, f"it holds no tensors by name but a {type(content).__name__}")
    if not content:
        raise _not_weights(path, "it holds nothing")
    odd = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise _not_weights(path, f"its {odd} is not a tensor but a {type(content[odd]).__name__}")
    if (odd := next((name for name, tensor in content.items() if not _is_plain(tensor)), None)) is not None:
        raise _not_weights(path, f"its {odd} is a sparse, quantised, nested or complex tensor, or one without values")
    tensors = {str(name): tensor.detach() for name, tensor in content.items()}
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_LET_IN):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error))
        if match is None:
            raise _not_weights(path, str(error)) from None
        raise UserError(
            f"{path} holds more than tensors, {match[1]} to begin with, and what a file brings along is not run here: "
            "if you trust it, save its tensors alone with "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW), or whatever name they have in it"
        ) from None
    except Exception as error:  # each of the readers has its own zoo of exceptions
        raise _not_weights(path, str(error)) from None


def _unwrapped(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return next((content[key] for key in _WRAPPINGS if isinstance(content.get(key), Mapping)), content)


def _is_plain(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_complex())
    return plain and not tensor.is_meta


def _not_weights(path: Path, reason: str) -> UserError:
    first = reason.partition("\n")[0]
    return UserError(f"{path} is not a file of PyTorch or safetensors weights ({first})")
