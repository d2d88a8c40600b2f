"""An encoder as ONNX, checked under onnxruntime before the file is there."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import reid_fast
from reid_fast.errors import UserError
from reid_fast.models.encoder import Encoder
from reid_fast.models.fold import folded
from reid_fast.whole_file import write_whole

TOLERANCE = 1e-4  # of a feature's elements; features have norm 1
PACKAGES = "onnx", "onnxscript", "onnxruntime"


@dataclass(frozen=True)
class Pixels:
    """How the images that a file is given have been normalised: (RGB in 0..1 - mean) / std, channel by channel."""

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


PLAIN_PIXELS = Pixels()  # RGB in 0..1 as they are
IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Exported(nn.Module):
    """Images as a file is given them to features, in operators that ONNX has."""

    scale: Tensor
    shift: Tensor

    def __init__(self, encoder: Encoder, given: Pixels, wanted: Pixels) -> None:
        """
        Args:
            encoder: its BatchNorms are folded into its convolutions.
            given: how the images come.
            wanted: how the encoder has been trained on them.
        """
        super().__init__()
        self.encoder = folded(encoder)
        scale = torch.tensor(given.std) / torch.tensor(wanted.std)
        shift = (torch.tensor(given.mean) - torch.tensor(wanted.mean)) / torch.tensor(wanted.std)
        self.changes = given != wanted
        self.register_buffer("scale", scale.view(1, 3, 1, 1))
        self.register_buffer("shift", shift.view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] float32 -> [B, D] float32, L2-normalised."""
        return self.encoder(images * self.scale + self.shift if self.changes else images)


def write_onnx(path: Path, encoder: Encoder, description: Mapping[str, Any], given: Pixels) -> float:
    """Write an encoder as ONNX: `images` [B, 3, H, W] float32 to `features` [B, D] float32, L2-normalised; any B.

    Pooling, neck and L2 norm are in the file, so is what remains of the normalisation, and the description in its
    metadata. BatchNorms of the backbone lie in the weights of its convolutions.

    Args:
        path: of the file.
        encoder: on the CPU, in eval mode.
        description: of it, as model.json has it.
        given: how the file's images have been normalised.

    Returns:
        The largest difference between an element of the file's features and of the encoder's.

    Raises:
        UserError: a package is missing; or the file would hold for one number of images, or onnxruntime makes other
            features of it: then it is not written.
    """
    onnxruntime = _require_packages()
    size = description["height"], description["width"]
    wanted = Pixels(tuple(description["mean"]), tuple(description["std"]))
    example = _images(2, size, given)
    with _quiet():
        program = torch.onnx.export(
            Exported(encoder, given, wanted).eval(),
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise UserError(
            f"{description['arch']} was exported for {len(example)} images at a time alone, so {path} was not written: "
            "its forward must not make a Python number of the batch, as len(x) and chunk do"
        )
    for key, value in metadata(description, given).items():
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    difference = _difference(onnxruntime, content, encoder, size, given, wanted)
    if not difference <= TOLERANCE:
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} makes other features of the exported file (they differ by up to "
            f"{difference:.1e}), so {path} was not written: try other versions of torch, onnx and onnxruntime"
        )
    write_whole(path, lambda file: file.write(content))
    return difference


def metadata(description: Mapping[str, Any], given: Pixels) -> dict[str, str]:
    """What the file says of itself."""
    expects = {
        "images": "[B, 3, H, W] float32, RGB in 0..1, then (x - mean) / std",
        "mean": given.mean,
        "std": given.std,
        "height": description["height"],
        "width": description["width"],
        "resize": description["resize"],
    }
    made = {"reid_fast": reid_fast.__version__, "encoder": description, "expects": expects}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in made.items()}


def _images(count: int, size: tuple[int, int], given: Pixels) -> Tensor:
    """Noise as images of a kind."""
    plain = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(count))
    return (plain - torch.tensor(given.mean).view(3, 1, 1)) / torch.tensor(given.std).view(3, 1, 1)


@torch.no_grad()
def _difference(
    onnxruntime: Any, content: bytes, encoder: Encoder, size: tuple[int, int], given: Pixels, wanted: Pixels
) -> float:
    """Between what the file and the encoder, unfolded, make of the same pixels, in batches of several sizes."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest = 0.0
    for count in (1, 2, 5):
        (found,) = session.run(["features"], {"images": _images(count, size, given).numpy()})
        expected = encoder(_images(count, size, wanted)).numpy()
        largest = max(largest, float(np.abs(found - expected).max()))
    return largest


def _require_packages() -> Any:
    from importlib import import_module

    for name in PACKAGES:
        try:
            module = import_module(name)
        except ImportError:
            raise UserError(f"ONNX files need {name}: pip install 'reid-fast[onnx]'") from None
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its own steps, which nobody has asked for."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
