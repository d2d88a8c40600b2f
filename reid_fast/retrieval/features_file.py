"""Features and the names of their images as files that other programs read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch

from reid_fast.errors import UserError
from reid_fast.retrieval.loaded import Embedded, LoadedEncoder
from reid_fast.run_folder import check_output, write_json
from reid_fast.whole_file import write_whole

_SUFFIXES = (".safetensors", ".npy")


def check_features_file(path: Path) -> None:
    """
    Raises:
        UserError: `write_features` knows no such kind of file, or its folder is not there.
    """
    if path.suffix not in _SUFFIXES:
        raise UserError(f"-o {path} must end in {' or '.join(_SUFFIXES)}")
    check_output(path)
    if path.suffix == ".npy":
        _check_names_file(path.with_suffix(".json"))


def _check_names_file(path: Path) -> None:
    """Refuse to write the names over a file that holds none, such as a run's model.json."""
    if not path.exists():
        return
    try:
        written = json.loads(path.read_text())
    except (OSError, ValueError):
        written = None
    if not isinstance(written, dict) or "names" not in written:
        raise UserError(f"{path}, where the names would be written, is another file: choose another -o")


def write_features(path: Path, found: Embedded, encoder: LoadedEncoder) -> None:
    """Write the features of images, with their names.

    A .safetensors file has two tensors: `features` [N, D] float32, and `names`, the N paths in UTF-8, as uint8, with a
    zero byte between one and the next (the header of such a file, where texts would stand, holds 100 MB at most).
    A .npy file has the features, and a .json beside it the names: `{"names": [...]}`. Both say by which encoder.

    Raises:
        UserError: the file cannot be written; an older one is still there.
    """
    check_features_file(path)
    features = found.features.cpu()
    said = {"encoder": encoder.fingerprint, "arch": str(encoder.description["arch"])}
    if path.suffix == ".npy":
        # The names last: what they say of an older array is whose features it has, and they are little.
        write_whole(path, lambda file: np.save(file, features.numpy()))
        write_json(path.with_suffix(".json"), {**said, "names": list(found.paths.texts())})
        return
    from safetensors.torch import save

    names = np.frombuffer(b"\0".join(map(os.fsencode, found.paths.texts())), np.uint8)
    tensors = {"features": features, "names": torch.from_numpy(names.copy())}
    said["names"] = "paths in UTF-8, a zero byte between two"
    write_whole(path, lambda file: file.write(save(tensors, said)))
