"""Open a list of images: decoded and held where they fit, or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from reid_fast.console import Console
from reid_fast.data.images.held import Held
from reid_fast.data.images.image_files import ImageFiles
from reid_fast.data.images.normalisation import IMAGENET, Normalisation
from reid_fast.data.images.store import ImageStore, decode
from reid_fast.data.images.store_file import open_store_file
from reid_fast.data.images.stream import ImageStream
from reid_fast.ranks import ALONE, Ranks


def open_files(
    paths: Sequence[Path],
    size: tuple[int, int],
    *,
    norm: Normalisation = IMAGENET,
    cache: float,
    cache_dir: Path | None = None,
    beside: float = 0.0,
    ranks: Ranks = ALONE,
    device: torch.device,
    threads: int,
    console: Console,
) -> tuple[ImageFiles, Held]:
    """Decode images and hold them in what takes them first: memory of the device, of its host, a file; or stream them.

    Args:
        paths: N files.
        size: (H, W) in pixels.
        norm: what normalises, when they are asked for: what is held is not.
        cache: GiB of memory that held images may take; they also leave half of it.
        cache_dir: where files of decoded images are kept; None: nowhere.
        beside: GiB that other images are held in already.
        ranks: each holds a copy of its own in memory, for which it decodes a share; of one machine, they share a file.
        device: where images are wanted.
        threads: CPU threads for decoding.
        console: shows the progress.

    Returns:
        The images, and where they are held. A stream is one without views.

    Raises:
        UserError: a file cannot be read or decoded; it is named.
    """
    held = ranks.from_first(
        lambda: Held.judge(len(paths), size, cache, device, folder=cache_dir, beside=beside, ranks=ranks.local_size)
    )
    if held.tier == "file":
        assert cache_dir is not None
        try:
            whole = threads * ranks.local_size  # one builds it, and the others wait
            file = open_store_file(cache_dir, paths, size, norm=norm, device=device, threads=whole, console=console)
            return file, held
        except OSError as error:
            held = held.without_file(error)
    if held:
        memory = torch.device("cpu") if held.tier == "host" else device
        shares = ranks.shares(len(paths))
        own = shares[ranks.rank]
        with ranks.agreed():
            pixels = decode(
                paths,
                size,
                device=device,
                memory=memory,
                begin=own.start,
                end=own.stop,
                threads=threads,
                console=console,
            )
        ranks.complete(pixels, shares)
        return ImageStore(paths, pixels, device, norm), held
    return ImageStream(paths, size, norm=norm, device=device, threads=threads), held
