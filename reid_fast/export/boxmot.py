"""An encoder as BoxMOT takes it: an ONNX file with the name, the size and the pixels that BoxMOT expects.

BoxMOT (github.com/mikel-brostrom/boxmot, boxmot/reid/backends/base_backend.py and boxmot/reid/core/registry.py) finds
the architecture in the file's name and builds it before it opens the file, cuts boxes to 256×128, gives the network
RGB in 0..1 normalised by ImageNet's mean and standard deviation, and L2-normalises what comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reid_fast.errors import UserError
from reid_fast.export.onnx_file import IMAGENET, write_onnx
from reid_fast.models.encoder import Encoder

SIZE = 256, 128
# Names that it knows, of networks that take this size and these pixels.
NAMES = (
    "resnet50",
    "resnet101",
    "osnet_x1_0",
    "osnet_x0_75",
    "osnet_x0_5",
    "osnet_x0_25",
    "osnet_ibn_x1_0",
    "osnet_ain_x1_0",
)
SMALLEST = "osnet_x0_25"  # of what it builds for nothing, for an architecture that it does not know
OTHERWISE = "vehicleid", "veri", "lmbn", "hacnn", "clip"  # in a name, they mean another size or other pixels


def write_boxmot(path: Path, encoder: Encoder, description: Mapping[str, Any]) -> float:
    """Write an encoder, any, as ONNX for BoxMOT; see `write_onnx` for what it returns and refuses.

    Raises:
        UserError: the encoder takes images of another size, or BoxMOT would not take a file of this name.
    """
    height, width = description["height"], description["width"]
    if (height, width) != SIZE:
        raise UserError(
            f"BoxMOT cuts boxes to 256×128 and this encoder takes {height}×{width}: export with --to onnx, "
            "or train with --height 256 --width 128"
        )
    name = path.name.lower()
    if path.suffix != ".onnx" or not any(known in name for known in NAMES) or any(word in name for word in OTHERWISE):
        raise UserError(
            f"BoxMOT tells by a file's name how to use it, and would not take {path.name}: "
            f"name it such as {default_name(description['arch'])}"
        )
    return write_onnx(path, encoder, description, IMAGENET)


def default_name(arch: str) -> str:
    """A name that BoxMOT takes."""
    return f"{arch if arch in NAMES else SMALLEST}_reid_fast.onnx"
