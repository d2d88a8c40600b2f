"""Pictures decoded once and held in memory: the op `augment` makes of them what `ImageStream` makes of files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from reid_fast.console import Console
from reid_fast.data.images.augmentation import Augmentation
from reid_fast.data.images.dali import ERASE_FILL, MEAN, STD, ImageStream
from reid_fast.ops import augment

_GIB = 2**30
_BATCH = 256  # pictures decoded at once
_NORMALISED = {"mean": MEAN, "std": STD, "fill": ERASE_FILL}
T = TypeVar("T")


class ImageStore:
    """Decoded pictures of one list of files, to be called like an `ImageStream`.

    Stores may be made over parts of one array; none copies it.
    """

    def __init__(self, paths: Sequence[Path], pixels: Tensor) -> None:
        """
        Args:
            paths: the N files that indices point to.
            pixels: [N, H, W, 3] uint8, contiguous, as `decoded` returns them; pictures come out on its device.
        """
        self.paths, self._pixels = paths, pixels

    def __call__(self, batches: Iterable[tuple[np.ndarray, Sequence[Augmentation]]]) -> Iterator[tuple[Tensor, ...]]:
        """Serve batches of (indices [n], one `Augmentation` of n pictures per view).

        Yields:
            One [n, 3, H, W] float32 tensor per view (one in all if there are no views), normalised, channels_last.
        """
        made = (self._views(*batch) for batch in batches)
        # On CUDA, making a batch only queues its kernels: there is nothing to hide behind the step before.
        return made if self._pixels.is_cuda else _ahead(made)

    def plain(self, indices: np.ndarray, batch_size: int) -> Iterator[Tensor]:
        """Serve pictures without augmentation, [n, 3, H, W] at a time."""
        chunks = (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))
        return (images for (images,) in self((chunk, ()) for chunk in chunks))

    def _views(self, indices: np.ndarray, augmentations: Sequence[Augmentation]) -> tuple[Tensor, ...]:
        index = self._put(np.array(indices, dtype=np.int64))
        return tuple(self._view(index, aug) for aug in augmentations or [Augmentation.none(len(index))])

    def _view(self, index: Tensor, aug: Augmentation) -> Tensor:
        flip, crop, erase = (self._put(values) for values in (aug.flip, aug.crop, aug.erase))
        blur = self._put(aug.blur) if aug.blur.any() else None
        return augment(self._pixels, index, flip, crop, erase, blur=blur, grey=aug.grey, **_NORMALISED)

    def _put(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._pixels.device, non_blocking=True)


def decoded(
    paths: Sequence[Path],
    size: tuple[int, int],
    limit: float,
    *,
    device: torch.device,
    threads: int,
    console: Console,
) -> Tensor | None:
    """Decode and resize pictures, to be held on `device`.

    Args:
        paths: N files.
        size: (H, W) in pixels.
        limit: GiB that they may take.
        device: where to hold them; there they may take at most half of the memory that is left (on CUDA) or that
            the machine has, for training has yet to take its own.
        threads: CPU threads for decoding.
        console: gets the progress, or the line that says why the pictures are not held.

    Returns:
        [N, H, W, 3] uint8; None if they do not fit.

    Raises:
        UserError: a file cannot be read or decoded; it is named.
    """
    needed, room = len(paths) * 3 * math.prod(size) / _GIB, _memory(device) / 2
    if needed > min(limit, room):
        bound = f"--cache {limit:g}" if needed > limit else f"the {room:.2f} GiB that {device} can spare"
        console.say(
            f"pictures are decoded at every use: {len(paths):,} of them take {needed:.2f} GiB, more than {bound}"
        )
        return None
    pixels = torch.empty(len(paths), *size, 3, dtype=torch.uint8, device=device)
    stream = ImageStream(paths, size, batch_size=_BATCH, device=device, threads=threads, normalised=False)
    done = 0
    with console.progress("decoding") as report:
        for images in stream.plain(np.arange(len(paths)), _BATCH):
            pixels[done : done + len(images)] = images.permute(0, 2, 3, 1)
            done += len(images)
            report(done, len(paths))
    return pixels


def _memory(device: torch.device) -> float:
    """GiB that are free on a CUDA device, or that the machine has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / _GIB
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one being made in a second thread while the caller has this one."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
