"""A checkpoint as an encoder would name it, with every tensor of the file accounted for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from reid_fast.errors import UserError
from reid_fast.models.checkpoints import fast_reid, osnets, own, reid_wrappers, resnets, transformers
from reid_fast.models.checkpoints.domains import without_domains
from reid_fast.models.checkpoints.files import read_tensors
from reid_fast.models.checkpoints.layout import BACKBONE, WITHOUT_STEM_RELU, Layout
from reid_fast.models.checkpoints.positions import without_distillation
from reid_fast.run_folder import load_export

# The first that recognises a file has it: wrappers go before what they wrap.
_LAYOUTS: tuple[Layout, ...] = (
    *fast_reid.LAYOUTS,
    *reid_wrappers.LAYOUTS,
    *transformers.LAYOUTS,
    *osnets.LAYOUTS,
    *resnets.LAYOUTS,
    *own.LAYOUTS,
    own.BARE,
)
POSITIONS = f"{BACKBONE}pos_embed"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds."""

    path: Path
    layout: Layout
    tensors: dict[str, Tensor]  # by their names in an `Encoder`; what the layout does not know, by its own
    names: Mapping[str, str]  # what the file calls each of these
    left_out: Mapping[str, str]  # what no encoder has a place for: the name in the file -> what that is
    description: Mapping[str, Any] | None = None  # a run folder's model.json

    def __str__(self) -> str:
        """What was recognised, in one line."""
        counts = Counter(self.left_out.values())
        left_out = ", ".join(f"{what} ({count})" for what, count in counts.items())
        parts = [f"{self.layout.name}, {len(self.tensors)} tensors used"]
        parts += [f"left out: {left_out}"] if left_out else []
        parts += [self.layout.note] if self.layout.note else []
        if (run := self.description) is not None:
            mean = ", ".join(f"{value:g}" for value in run["mean"])
            parts += [f"made for images of {run['height']}×{run['width']} with mean {mean}"]
            parts += [] if run["stem_relu"] else [WITHOUT_STEM_RELU]
        return "; ".join(parts)

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the images that it was made for, where that is known."""
        return None if self.description is None else (self.description["height"], self.description["width"])


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file of weights, or a run folder of this project, and recognise its layout by its names.

    Raises:
        UserError: it cannot be read, or two of its tensors are the same one of an encoder.
    """
    tensors, description = _read(path)
    plain = without_domains(tensors)
    layout = next(layout for layout in _LAYOUTS if layout.recognises(filter(None, plain.values())))
    kept: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name, tensor in tensors.items():
        known = plain[name]
        if known is None:
            left_out[name] = "BatchNorm of other domains"
        elif (reason := layout.reason(known)) is not None:
            left_out[name] = reason
        elif (ours := layout.in_encoder(known)) in kept:
            raise UserError(f"{path} holds both {names[ours]} and {name}, which are one tensor of a {layout.name}")
        else:
            kept[ours], names[ours] = tensor, name
    if POSITIONS in kept and any(name.endswith("dist_token") for name in left_out):
        kept[POSITIONS] = without_distillation(kept[POSITIONS])
    return Checkpoint(path, layout, kept, names, left_out, description)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors, and what a run folder says of them."""
    exported = path.name == "model.safetensors" and os.path.isfile(path.with_name("model.json"))
    if not exported and not os.path.isdir(path):
        return read_tensors(path), None
    tensors, description = load_export(path.parent if exported else path)
    if lacking := [key for key in ("height", "width", "mean", "stem_relu") if key not in description]:
        raise UserError(f"{path} is damaged: its model.json lacks {', '.join(lacking)}; restore it from a copy")
    return tensors, description
