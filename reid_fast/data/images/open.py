"""Open a list of images: decoded and held where they fit, or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from reid_fast.console import Console
from reid_fast.data.images.held import Held
from reid_fast.data.images.image_files import ImageFiles
from reid_fast.data.images.store import ImageStore, decode
from reid_fast.data.images.store_file import open_store_file
from reid_fast.data.images.stream import ImageStream


def open_files(
    paths: Sequence[Path],
    size: tuple[int, int],
    *,
    cache: float,
    cache_dir: Path | None = None,
    beside: float = 0.0,
    ranks: int = 1,
    device: torch.device,
    threads: int,
    console: Console,
) -> tuple[ImageFiles, Held]:
    """Decode images and hold them in what takes them first: memory of the device, of its host, a file; or stream them.

    Args:
        paths: N files.
        size: (H, W) in pixels.
        cache: GiB of memory that held images may take; they also leave half of it.
        cache_dir: where files of decoded images are kept; None: nowhere.
        beside: GiB that other images are held in already.
        ranks: processes of this machine that hold copies of their own in its memory.
        device: where images are wanted.
        threads: CPU threads for decoding.
        console: shows the progress.

    Returns:
        The images, and where they are held. A stream is one without views.

    Raises:
        UserError: a file cannot be read or decoded; it is named.
    """
    held = Held.judge(len(paths), size, cache, device, folder=cache_dir, beside=beside, ranks=ranks)
    if held.tier == "file":
        assert cache_dir is not None
        try:
            file = open_store_file(cache_dir, paths, size, device=device, threads=threads, console=console)
            return file, held
        except OSError as error:
            held = held.without_file(error)
    if held:
        memory = torch.device("cpu") if held.tier == "host" else device
        pixels = decode(paths, size, device=device, memory=memory, threads=threads, console=console)
        return ImageStore(paths, pixels, device), held
    return ImageStream(paths, size, device=device, threads=threads), held
