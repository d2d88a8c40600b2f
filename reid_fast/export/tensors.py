"""The weights of an encoder under the names of other code, or as one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as tensors_to_bytes

from reid_fast.errors import UserError
from reid_fast.models.encoder import Encoder
from reid_fast.whole_file import write_whole

TORCHVISION = "resnet18", "resnet34", "resnet50", "resnet101"  # that torchvision has, too


def write_safetensors(path: Path, encoder: Encoder, description: Mapping[str, Any]) -> None:
    """All tensors of an encoder under this engine's names, and model.json's description in the file's metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    content = tensors_to_bytes(tensors, {"encoder": json.dumps(description)})
    write_whole(path, lambda file: file.write(content))


def write_torchvision(path: Path, encoder: Encoder, description: Mapping[str, Any]) -> None:
    """The backbone of a ResNet as torchvision's state dict, without the classifier `fc`.

    Raises:
        UserError: torchvision has no such network.
    """
    arch = description["arch"]
    if arch not in TORCHVISION:
        raise UserError(
            f"torchvision has no {arch}, only {', '.join(TORCHVISION)} of these encoders: export with --to onnx"
        )
    _write_state(path, encoder)


def write_torchreid(path: Path, encoder: Encoder, description: Mapping[str, Any]) -> None:
    """The backbone of an OSNet as torchreid's checkpoint, without the classifier.

    Raises:
        UserError: torchreid's network of that name computes something else, or there is none.
    """
    arch = description["arch"]
    if arch.startswith("resnet"):
        raise UserError(
            f"torchreid's ResNets have stride 2 in the last stage where this {arch} has 1, and no BNNeck: they would "
            "make other features of its weights: export with --to onnx"
        )
    if not arch.startswith("osnet"):
        raise UserError(f"torchreid has no {arch}: export with --to onnx")
    _write_state(path, encoder)


def _write_state(path: Path, encoder: Encoder) -> None:
    state = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    write_whole(path, lambda file: torch.save(state, file))
