"""Images decoded once and held in memory: the op `augment` makes of them what `ImageStream` makes of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from reid_fast.console import Console
from reid_fast.data.images.augmentation import Augmentation
from reid_fast.data.images.image_files import ImageFiles, batches
from reid_fast.data.images.normalisation import ERASE_FILL, MEAN, STD
from reid_fast.data.images.stream import ImageStream
from reid_fast.device import to_device
from reid_fast.ops import augment

_BATCH = 256  # images decoded at once
T = TypeVar("T")


class ImageStore(ImageFiles):
    """Decoded images of one list of files, to be called like an `ImageStream`."""

    def __init__(self, paths: Sequence[Path], pixels: Tensor) -> None:
        """
        Args:
            paths: the N files that indices point to.
            pixels: [N, H, W, 3] uint8, contiguous, as `decode` returns them; images come out on its device.
        """
        self.paths, self._pixels = paths, pixels

    def __call__(
        self, indices: np.ndarray, augmentations: Sequence[Augmentation], batch_size: int
    ) -> Iterator[tuple[Tensor, ...]]:
        """See `ImageFiles`. Indices and parameters go to the device at once: no batch copies anything.

        On the CPU the next batch is made while the caller has the one before.
        """
        index = self._put(np.array(indices, dtype=np.int64))
        views = [self._view(index, aug) for aug in augmentations or [Augmentation.none(len(index))]]
        made = (tuple(view(rows) for view in views) for rows in batches(len(index), batch_size))
        # On CUDA, making a batch only queues its kernels: there is nothing to hide behind the step before.
        return made if self._pixels.is_cuda else ahead(made)

    def _view(self, index: Tensor, aug: Augmentation) -> Callable[[slice], Tensor]:
        """What makes one view of some of the images."""
        flip, crop, erase = (self._put(values) for values in (aug.flip, aug.crop, aug.erase))
        blur = self._put(aug.blur) if aug.blur.any() else None

        def of(rows: slice) -> Tensor:
            return augment(
                self._pixels,
                *(values[rows] for values in (index, flip, crop, erase)),
                mean=MEAN,
                std=STD,
                fill=ERASE_FILL,
                blur=None if blur is None else blur[rows],
                grey=aug.grey,
            )

        return of

    def _put(self, values: np.ndarray) -> Tensor:
        return to_device(values, self._pixels.device)


def decode(
    paths: Sequence[Path], size: tuple[int, int], *, device: torch.device, threads: int, console: Console
) -> Tensor:
    """Decode and resize images, to be held on `device`.

    Args:
        paths: N files.
        size: (H, W) in pixels.
        device: where to hold them.
        threads: CPU threads for decoding.
        console: shows the progress.

    Returns:
        [N, H, W, 3] uint8.

    Raises:
        UserError: a file cannot be read or decoded; it is named.
    """
    pixels = torch.empty(len(paths), *size, 3, dtype=torch.uint8, device=device)
    stream = ImageStream(paths, size, batch_size=_BATCH, device=device, threads=threads, normalised=False)
    done = 0
    with console.progress("decoding") as report:
        for images in stream.plain(np.arange(len(paths)), _BATCH):
            pixels[done : done + len(images)] = images.permute(0, 2, 3, 1)
            done += len(images)
            report(done, len(paths))
    return pixels


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one being made in a second thread while the caller has this one."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
