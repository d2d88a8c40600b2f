"""`reid-fast export RUN --to FORMAT`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from reid_fast.command_line import read
from reid_fast.console import Console
from reid_fast.errors import UserError, exit_on_user_error
from reid_fast.evaluate import load_encoder
from reid_fast.export.boxmot import default_name, write_boxmot
from reid_fast.export.onnx_file import PLAIN_PIXELS, Pixels, write_onnx
from reid_fast.export.tensors import write_safetensors, write_torchreid, write_torchvision
from reid_fast.marks import Positional, Short
from reid_fast.run_folder import check_output


@dataclass(frozen=True)
class ExportConfig:
    """Write the encoder of a run folder, or of its folder best, for other programs."""

    run_folder: Annotated[Path, Positional]
    """what `--logs-dir` was, or was chosen, in training; or its folder best"""
    to: Literal["onnx", "safetensors", "torchvision", "boxmot", "torchreid"] = "onnx"
    """onnx: images to features, everything in the file. boxmot: the same, as BoxMOT takes it. safetensors: all tensors
    in one file. torchvision, torchreid: the backbone's weights under their names"""
    output: Annotated[Path | None, Short("-o")] = None
    """the file to write; by default in the run folder"""
    normalise: Literal["inside", "outside"] = "outside"
    """onnx: who normalises the pixels: the file, which then takes RGB in 0..1, or, as trackers do, the one who calls
    it"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0, or 2 with one sentence on bad input."""
    with exit_on_user_error():
        export(read(ExportConfig, argv))


def export(config: ExportConfig) -> Path:
    """Write an encoder in the format asked for, say what the file takes and makes, and return its path.

    Raises:
        UserError: no run folder, a format that cannot have this encoder, a missing package, a file that cannot be
            written.
    """
    encoder, description = load_encoder(config.run_folder)
    path = config.output or config.run_folder / _name(config.to, description["arch"])
    check_output(path)
    if config.normalise == "inside" and config.to != "onnx":
        raise UserError(f"--normalise inside is for --to onnx: --to {config.to} leaves it to the one who calls it")
    say = Console().say
    size = f"{description['height']}×{description['width']}"
    if config.to in ("onnx", "boxmot"):
        say(f"exporting {description['arch']}, which takes a minute with large encoders")
    if config.to == "onnx":
        trained = Pixels(tuple(description["mean"]), tuple(description["std"]))
        given = PLAIN_PIXELS if config.normalise == "inside" else trained
        difference = write_onnx(path, encoder, description, given)
        pixels = "RGB in 0..1"
        if given != PLAIN_PIXELS:
            pixels += f", less {list(given.mean)}, divided by {list(given.std)}"
        say(f"images [B, 3, {size.replace('×', ', ')}] float32 ({pixels}) to features [B, {encoder.width}], of norm 1")
        say(f"checked under onnxruntime: features differ by at most {difference:.1e}")
    elif config.to == "boxmot":
        difference = write_boxmot(path, encoder, description)
        say(f"BoxMOT gives it what it expects; checked under onnxruntime: features differ by at most {difference:.1e}")
    elif config.to == "safetensors":
        write_safetensors(path, encoder, description)
    elif config.to == "torchvision":
        write_torchvision(path, encoder, description)
        say("the backbone alone, without fc: its last stage has stride 1 here and 2 in torchvision's network")
        if not description["stem_relu"]:
            say("this encoder was trained without the ReLU behind bn1, which torchvision's network has")
    else:
        write_torchreid(path, encoder, description)
        say("torchreid has no BNNeck: it makes the features before it, which rank a little differently")
    say(f"written to {path}")
    return path


def _name(to: str, arch: str) -> str:
    """Of the file, where none is given; model.safetensors is the run's own."""
    names = {"onnx": "model.onnx", "safetensors": f"{arch}.safetensors", "boxmot": default_name(arch)}
    return names.get(to, f"{arch}-{to}.pth")
