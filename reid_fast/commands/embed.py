"""Write the features that an encoder makes of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from reid_fast.command_line import read
from reid_fast.config import InferenceSettings
from reid_fast.console import Console
from reid_fast.device import pick_threads, threads
from reid_fast.errors import exit_on_user_error
from reid_fast.marks import Positional, Short, check_ranges
from reid_fast.pages import visible
from reid_fast.retrieval import check_features_file, configured_encoder, write_features


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(InferenceSettings):
    """Write the features of images, with their names, for use elsewhere."""

    encoder: Annotated[Path, Positional]
    """what makes features: a run folder, or a file of weights"""
    images: Annotated[tuple[Path, ...], Positional]
    """image files, and folders, .csv, .parquet or .tar files of images"""
    output: Annotated[Path, Short("-o")]
    """the file to write: .safetensors, or .npy with the names in a .json beside it"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0, or 2 with one sentence on bad input."""
    with exit_on_user_error():
        config = read(EmbedConfig, argv)
        check_ranges(config)
        check_features_file(config.output)
        with threads(pick_threads(config.threads)):
            embed(config)


def embed(config: EmbedConfig) -> None:
    """Encode the images and write the file."""
    console = Console()
    encoder = configured_encoder(config.encoder, config)
    found = encoder.embed(config.images, skip_bad_images=config.skip_bad_images, console=console)
    if found.left_out:
        console.say(f"left out {len(found.left_out)} unreadable images, the first one {visible(found.left_out[0])}")
    write_features(config.output, found, encoder)
    console.say(f"{len(found.paths):,} features of {encoder.width} numbers written to {config.output}")
