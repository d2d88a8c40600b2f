"""Images from files to tensors through DALI: decode, resize, and the augmentation that was drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch import Tensor

from reid_fast.data.images.augmentation import Augmentation, View
from reid_fast.data.images.image_files import ImageFiles, batches
from reid_fast.data.images.normalisation import IMAGENET, Normalisation
from reid_fast.data.sets import ends_early, read_image
from reid_fast.errors import UserError

if TYPE_CHECKING:
    from reid_fast.data.images.dali import Inputs

PLAIN: tuple[View, ...] = ()  # resize and normalise only: what features are extracted from


class ImageStream(ImageFiles):
    """A DALI pipeline over one list of files; images come out in the order that is asked for.

    One stream holds its threads and buffers as long as it lives. Without a GPU all its stages run on the CPU.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: tuple[int, int],
        *,
        views: Sequence[View] = PLAIN,
        batch_size: int = 256,
        device: torch.device | str = "cpu",
        threads: int = 2,
        norm: Normalisation | None = IMAGENET,
    ) -> None:
        """
        Args:
            paths: the files that indices point to.
            size: (H, W) in pixels; the aspect ratio is not kept.
            views: what each image is turned into; none: the image itself.
            batch_size: the largest number of images at once.
            device: where the tensors are wanted; on CUDA, decoding and augmentation run there too. "cuda" is the
                current device.
            threads: CPU threads for decoding.
            norm: what normalises; None leaves the images uint8, 0..255, and there are no views.
        """
        from reid_fast.data.images import dali

        self.paths, self.size = paths, size
        self._device = torch.device(device)
        self._views = tuple(views)
        self._requests: Iterator[tuple[np.ndarray, list[Augmentation]]] = iter(())
        self._recent: list[np.ndarray] = []
        self._new_pipeline = partial(
            dali.build,
            self._next_inputs,
            size,
            self._views,
            batch_size=batch_size,
            threads=threads,
            gpu=_number(self._device),
            norm=norm,
        )
        self._pipeline = self._new_pipeline()

    def __call__(
        self, indices: np.ndarray, augmentations: Sequence[Augmentation], batch_size: int
    ) -> Iterator[tuple[Tensor, ...]]:
        """See `ImageFiles`; a stream without a `norm` yields uint8."""
        if self._recent:  # an unfinished pass has left its prefetched images, or its error, in the pipeline
            self._recent.clear()
            self._pipeline = self._new_pipeline()
        rows = batches(len(indices), batch_size)
        self._requests = ((indices[some], [aug[some] for aug in augmentations]) for some in rows)
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        self._pipeline.reset()
        while True:
            try:
                outputs = self._pipeline.run(stream)
            except StopIteration:
                return
            except RuntimeError as error:
                self._name_unreadable(error)
            self._recent.pop(0)
            # The executor gives each output its own buffer, which the tensor below keeps alive.
            yield tuple(torch.from_dlpack(out.as_tensor()).permute(0, 3, 1, 2) for out in outputs)

    def _next_inputs(self) -> Inputs:
        """The next batch as the graph is fed with it: the files' bytes, then the parameters of each view."""
        from reid_fast.data.images import dali

        indices, augmentations = next(self._requests)
        self._recent.append(indices)
        inputs: Inputs = [[_read(self.paths[i]) for i in indices]]
        for view, aug in zip(self._views, augmentations, strict=True):
            inputs += dali.parameters(view, aug)
        return inputs

    def _name_unreadable(self, error: RuntimeError) -> NoReturn:
        for path in (self.paths[i] for indices in self._recent for i in indices):
            if not _decodes([path], 1):
                raise UserError(f"{path} cannot be decoded: repair or remove it, or pass --skip-bad-images") from None
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"a batch could not be decoded ({reason}), though its images can now: start again, with --resume"
        )


def _read(path: Path) -> np.ndarray:
    """`read_image` of an image that is whole, as far as its end tells."""
    content = read_image(path)
    if ends_early(content):
        raise UserError(f"{path} cannot be decoded, it is cut short: repair or remove it, or pass --skip-bad-images")
    return content


def _number(device: torch.device) -> int | None:
    """Of a CUDA device; None for the CPU."""
    if device.type == "cpu":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def undecodable(paths: Sequence[Path], threads: int, progress: Callable[[int, int], None]) -> set[Path]:
    """The files among `paths` that DALI cannot decode.

    Args:
        paths: the files; decoded 256 at a time, and one by one where that fails.
        threads: CPU threads.
        progress: called with (files done, files in all).
    """
    broken: set[Path] = set()
    for start in range(0, len(paths), 256):
        chunk = paths[start : start + 256]
        if not _decodes(chunk, threads):
            broken |= {path for path in chunk if not _decodes([path], 1)}
        progress(start + len(chunk), len(paths))
    return broken


def _decodes(paths: Sequence[Path], threads: int) -> bool:
    from reid_fast.data.images import dali

    try:
        data = [_read(path) for path in paths]
    except UserError:
        return False
    try:
        dali.build(lambda: [data], (8, 8), (), batch_size=len(paths), threads=threads, gpu=None).run()
    except RuntimeError:
        return False
    return True
