"""Images by their place in a list of files, whatever decodes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from reid_fast.data.images.augmentation import Augmentation


class ImageFiles(ABC):
    """N image files, whose images are asked for by index."""

    paths: Sequence[Path]

    @abstractmethod
    def __call__(
        self, indices: np.ndarray, augmentations: Sequence[Augmentation], batch_size: int
    ) -> Iterator[tuple[Tensor, ...]]:
        """Serve images, `batch_size` at a time.

        Args:
            indices: [n] into the files.
            augmentations: the parameters of the n images, by view; none: the images themselves.
            batch_size: B; what is left over comes last.

        Yields:
            One [B, 3, H, W] float32 tensor per view (one in all if there are no views), normalised, channels_last.

        Raises:
            UserError: a file cannot be read or decoded; it is named.
        """

    def plain(self, indices: np.ndarray, batch_size: int) -> Iterator[Tensor]:
        """Serve images without augmentation, [B, 3, H, W] at a time."""
        return (images for (images,) in self(indices, (), batch_size))


class Part(ImageFiles):
    """The files from `start` up to `stop` of a longer list, counted from 0 again."""

    def __init__(self, whole: ImageFiles, start: int, stop: int) -> None:
        self.paths = whole.paths[start:stop]
        self._whole, self._start = whole, start

    def __call__(
        self, indices: np.ndarray, augmentations: Sequence[Augmentation], batch_size: int
    ) -> Iterator[tuple[Tensor, ...]]:
        return self._whole(self._start + indices, augmentations, batch_size)


def batches(n: int, size: int) -> Iterator[slice]:
    """The rows of each batch of `size` out of n."""
    return (slice(start, start + size) for start in range(0, n, size))
