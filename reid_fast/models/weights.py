"""Pretrained weights: from a checkpoint, or ImageNet's from torch.hub's cache."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from reid_fast.errors import UserError
from reid_fast.models.archs import ARCHS
from reid_fast.models.checkpoints import POSITIONS, Checkpoint, architecture_of, grid_of, read_checkpoint, resized
from reid_fast.models.download import download
from reid_fast.models.encoder import Encoder


def load_weights(encoder: Encoder, arch: str, weights: str) -> None:
    """Initialise the backbone of `encoder` in place, and what else the weights have of it: its neck, its pooling.

    What they are is said in `encoder.origin`.

    Args:
        encoder: of architecture `arch`.
        weights: "none" leaves it random, "imagenet" takes torchvision's first ImageNet weights (downloaded once into
            torch.hub's cache), anything else is the path of a checkpoint: a file of any layout that
            `read_checkpoint` knows, or a run folder.

    Raises:
        UserError: no such file, no weights published, no network, or a file whose tensors do not fit (named).
    """
    if weights == "none":
        return
    source = _imagenet_file(arch) if weights == "imagenet" else Path(weights)
    if not os.path.exists(source):  # Path.exists raises where a name is too long
        raise UserError(f"--weights {weights}: there is no such file or run folder")
    checkpoint = read_checkpoint(source)
    checkpoint, resizing = _at_size_of(encoder, checkpoint)
    _check_fits(encoder, arch, checkpoint)
    encoder.load_state_dict(checkpoint.tensors, strict=False)
    encoder.origin = f"{checkpoint}{resizing}"


def _imagenet_file(arch: str) -> Path:
    url = ARCHS[arch].weights
    if url is None:
        raise UserError(f"no ImageNet weights are published for --arch {arch}: use --weights none or a file")
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not os.path.isfile(path):
        download(url, path)
    return path


def _at_size_of(encoder: Encoder, checkpoint: Checkpoint) -> tuple[Checkpoint, str]:
    """The checkpoint with its positions for the encoder's images, and what was done to them."""
    positions, new = checkpoint.tensors.get(POSITIONS), encoder.backbone.grid
    if positions is None or positions.ndim != 3 or new is None:
        return checkpoint, ""
    n = positions.shape[1] - 1
    old = grid_of(n, checkpoint.size)
    if n == new[0] * new[1] and (checkpoint.size is None or old in (None, new)):  # as many may lie otherwise
        return checkpoint, ""
    if old is None:
        raise UserError(
            f"--weights {checkpoint.path} has {n} positions, whose grid cannot be told: it is neither square nor twice "
            "as high as wide; take the --height and --width that it was trained with"
        )
    tensors = checkpoint.tensors | {POSITIONS: resized(positions, old, new)}
    sides = (f"{h}×{w}" for h, w in (old, new))
    return replace(checkpoint, tensors=tensors), "; position grid {} resized to {}".format(*sides)


def _check_fits(encoder: Encoder, arch: str, checkpoint: Checkpoint) -> None:
    """
    Raises:
        UserError: a tensor that the encoder needs is missing, or one is there that it does not have in this shape.
    """
    own, tensors, layout = encoder.state_dict(), checkpoint.tensors, checkpoint.layout
    # A neck or a pooling need not be there, but must be whole. Batch counters are missing from files older than
    # PyTorch 0.4.1.
    parts = {"backbone", *(name.partition(".")[0] for name in tensors)}
    missing = [
        layout.in_file(name)
        for name in own
        if name not in tensors and name.partition(".")[0] in parts and not name.endswith("num_batches_tracked")
    ]
    unknown = [checkpoint.names[name] for name in tensors if name not in own]
    reshaped = [checkpoint.names[name] for name in own if name in tensors and own[name].shape != tensors[name].shape]
    fitting = [name for name in own if name in tensors and own[name].shape == tensors[name].shape]
    broken = [checkpoint.names[name] for name in fitting if not tensors[name].float().isfinite().all()]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": reshaped, "not finite": broken}
    problems = [
        f"{kind}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for kind, names in kinds.items()
        if names
    ]
    if not problems:
        return
    if unknown == [checkpoint.names.get("pool.p")] and len(problems) == 1:
        raise UserError(f"--weights {checkpoint.path} was trained with GeM pooling: add --pooling-type gem")
    other = architecture_of(tensors)
    way_out = f": take --arch {other}" if other not in (None, arch) else ""
    raise UserError(
        f"--weights {checkpoint.path} ({layout.name}) does not fit --arch {arch} ({'; '.join(problems)}){way_out}"
    )
