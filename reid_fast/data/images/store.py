"""Images decoded once and held: the op `augment` makes of them what `ImageStream` makes of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from reid_fast.console import Console
from reid_fast.data.images.augmentation import Augmentation
from reid_fast.data.images.image_files import ImageFiles, batches
from reid_fast.data.images.normalisation import ERASE_FILL, IMAGENET, Normalisation
from reid_fast.data.images.stream import ImageStream
from reid_fast.device import pinned, to_device
from reid_fast.ops import augment

_BATCH = 256  # images decoded at once
T = TypeVar("T")


class ImageStore(ImageFiles):
    """Decoded images of one list of files, to be called like an `ImageStream`."""

    def __init__(
        self,
        paths: Sequence[Path],
        pixels: Tensor,
        device: torch.device | None = None,
        norm: Normalisation = IMAGENET,
    ) -> None:
        """
        Args:
            paths: the N files that indices point to.
            pixels: [N, H, W, 3] uint8, contiguous, as `decode` returns them.
            device: where images come out; None: where the pixels lie. Those of the host come to a CUDA device batch by
                batch.
            norm: what normalises.
        """
        self.paths, self._pixels, self._norm = paths, pixels, norm
        self._device = pixels.device if device is None else device

    def __call__(
        self, indices: np.ndarray, augmentations: Sequence[Augmentation], batch_size: int
    ) -> Iterator[tuple[Tensor, ...]]:
        """See `ImageFiles`. Indices and parameters go to the device at once: pixels there are copied by no batch.

        What the CPU does for a batch is done while the caller has the one before.
        """
        index = np.array(indices, dtype=np.int64)
        rows = list(batches(len(index), batch_size))
        views = [self._view(aug) for aug in augmentations or [Augmentation.none(len(index))]]
        there = zip(rows, self._brought(index, rows), strict=True)
        made = (tuple(view(pixels, own, some) for view in views) for some, (pixels, own) in there)
        # On CUDA, making a batch only queues its kernels: there is nothing to hide behind the step before.
        return made if self._device.type == "cuda" else ahead(made)

    def prepare(self, indices: np.ndarray) -> None:
        """What has to be done before the CPU reads these images: in memory, nothing."""

    def _brought(self, index: np.ndarray, rows: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch, pixels on the device and its images' places in them."""
        if self._pixels.device.type == self._device.type:
            places = self._put(index)
            for some in rows:
                self.prepare(index[some])
                yield self._pixels, places[some]
        else:
            own = torch.arange(max((some.stop - some.start for some in rows), default=0), device=self._device)
            for pixels in ahead(self._gathered(index[some]) for some in rows):
                yield pixels.to(self._device, non_blocking=True), own[: len(pixels)]

    def _gathered(self, index: np.ndarray) -> Tensor:
        """[n, H, W, 3] pixels in pinned memory, which torch takes for another batch only when its copy has ended."""
        self.prepare(index)
        pixels = pinned(len(index), *self._pixels.shape[1:])
        torch.index_select(self._pixels, 0, torch.from_numpy(index), out=pixels)
        return pixels

    def _view(self, aug: Augmentation) -> Callable[[Tensor, Tensor, slice], Tensor]:
        """What makes one view of a batch: of pixels, its images' places in them, and its place in the pass."""
        flip, crop, erase = (self._put(values) for values in (aug.flip, aug.crop, aug.erase))
        blur = self._put(aug.blur) if aug.blur.any() else None

        def of(pixels: Tensor, own: Tensor, rows: slice) -> Tensor:
            return augment(
                pixels,
                own,
                *(values[rows] for values in (flip, crop, erase)),
                mean=self._norm.mean,
                std=self._norm.std,
                fill=ERASE_FILL,
                blur=None if blur is None else blur[rows],
                grey=aug.grey,
            )

        return of

    def _put(self, values: np.ndarray) -> Tensor:
        return to_device(values, self._device)


def decode(
    paths: Sequence[Path],
    size: tuple[int, int],
    *,
    device: torch.device,
    memory: torch.device | None = None,
    begin: int = 0,
    end: int | None = None,
    threads: int,
    console: Console,
) -> Tensor:
    """Decode and resize images, to be held in memory; or a share of them, where others do the rest.

    Args:
        paths: N files.
        size: (H, W) in pixels.
        device: what decodes.
        memory: where to hold them; None: on `device`.
        begin, end: the share, from which file up to which; None: to the last one.
        threads: CPU threads for decoding.
        console: shows the progress.

    Returns:
        [N, H, W, 3] uint8, without values outside the share.

    Raises:
        UserError: a file cannot be read or decoded; it is named.
    """
    pixels = torch.empty(len(paths), *size, 3, dtype=torch.uint8, device=device if memory is None else memory)
    share = range(begin, len(paths) if end is None else end)
    for rows, images in decoded(paths, size, share, device=device, threads=threads, console=console):
        pixels[rows] = images
    return pixels


def decoded(
    paths: Sequence[Path],
    size: tuple[int, int],
    share: range,
    *,
    device: torch.device,
    threads: int,
    console: Console,
) -> Iterator[tuple[slice, Tensor]]:
    """The images of a share of N files one after another: their places, and [n, H, W, 3] uint8. See `decode`."""
    stream = ImageStream(paths, size, batch_size=_BATCH, device=device, threads=threads, norm=None)
    with console.progress("decoding") as report:
        done = 0
        for images in stream.plain(np.array(share), _BATCH):
            start, done = share.start + done, done + len(images)
            yield slice(start, share.start + done), images.permute(0, 2, 3, 1)
            report(done, len(share))


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one being made in a second thread while the caller has this one.

    That thread computes alone: OpenMP would give it helpers of its own, which keep cores busy between items.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as thread:
        coming = thread.submit(next, items, None)
        wait([coming])
        torch.set_num_threads(threads)  # of the caller and of threads to come; that one keeps what it was given
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
