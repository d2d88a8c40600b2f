"""Images by their place in a list of files, whatever decodes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from reid_fast.data.images.augmentation import Augmentation

# Indices [n] into the files, and one `Augmentation` of n images per view.
Request = tuple[np.ndarray, Sequence[Augmentation]]


class ImageFiles(ABC):
    """N image files, whose images are asked for by index."""

    paths: Sequence[Path]

    @abstractmethod
    def __call__(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, ...]]:
        """Serve one request after the other.

        Yields:
            One [n, 3, H, W] float32 tensor per view (one in all if there are no views), normalised, channels_last.

        Raises:
            UserError: a file cannot be read or decoded; it is named.
        """

    def plain(self, indices: np.ndarray, batch_size: int) -> Iterator[Tensor]:
        """Serve images without augmentation, [n, 3, H, W] at a time."""
        chunks = (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))
        return (images for (images,) in self((chunk, ()) for chunk in chunks))


class Part(ImageFiles):
    """The files from `start` up to `stop` of a longer list, counted from 0 again."""

    def __init__(self, whole: ImageFiles, start: int, stop: int) -> None:
        self.paths = whole.paths[start:stop]
        self._whole, self._start = whole, start

    def __call__(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, ...]]:
        return self._whole((self._start + indices, augmentations) for indices, augmentations in requests)
