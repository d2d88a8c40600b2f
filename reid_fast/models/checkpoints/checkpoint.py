"""A checkpoint as an encoder would name it, with every tensor of the file accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from reid_fast.errors import UserError
from reid_fast.models.checkpoints import fast_reid, osnets, own, reid_wrappers, resnets, transformers
from reid_fast.models.checkpoints.domains import without_domains
from reid_fast.models.checkpoints.files import read_tensors
from reid_fast.models.checkpoints.layout import BACKBONE, Layout
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
    size: tuple[int, int] | None = None  # (H, W) of its images, where the file says so

    def __str__(self) -> str:
        """What was recognised, in one line."""
        counts = Counter(self.left_out.values())
        left_out = ", ".join(f"{what} ({count})" for what, count in counts.items())
        parts = [f"{self.layout.name}, {len(self.tensors)} tensors used"]
        parts += [f"left out: {left_out}"] if left_out else []
        return "; ".join(parts + ([self.layout.note] if self.layout.note else []))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file of weights, or a run folder of this project, and recognise its layout by its names.

    Raises:
        UserError: it cannot be read, or two of its tensors are the same one of an encoder.
    """
    tensors, size = _read(path)
    plain = without_domains(tensors)
    layout = next(layout for layout in _LAYOUTS if layout.recognises(filter(None, plain.values())))
    kept: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name, tensor in tensors.items():
        known = plain[name]
        reason = "BatchNorm of other domains" if known is None else layout.reason(known)
        if known is None or reason is not None:
            left_out[name] = reason or ""
            continue
        ours = layout.in_encoder(known)
        if ours in kept:
            raise UserError(f"{path} holds both {names[ours]} and {name}, which are one tensor of a {layout.name}")
        kept[ours], names[ours] = tensor, name
    if POSITIONS in kept and "distillation token" in left_out.values():
        kept[POSITIONS] = without_distillation(kept[POSITIONS])
    return Checkpoint(path, layout, kept, names, left_out, size)


def _read(path: Path) -> tuple[dict[str, Tensor], tuple[int, int] | None]:
    """The tensors, and the size of the images, which a run folder knows."""
    exported = path.name == "model.safetensors" and path.with_name("model.json").is_file()
    if not exported and not path.is_dir():
        return read_tensors(path), None
    tensors, description = load_export(path.parent if exported else path)
    try:
        return tensors, (description["height"], description["width"])
    except KeyError as error:
        raise UserError(f"{path} is damaged: its model.json lacks {error}; restore it from a copy") from None
