"""Pictures from files to tensors through DALI: decode, resize, and the augmentation that `data.augment` drew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from reid_fast.data.images.augmentation import Augmentation, View
from reid_fast.errors import UserError

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, for RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
# The published code erases after normalising but with the raw mean, so rectangles are slightly bright, not mean grey.
ERASE_FILL = MEAN

PLAIN: tuple[View, ...] = ()  # resize and normalise only: what features are extracted from


class ImageStream:
    """A DALI pipeline over one list of files; pictures come out in the order that is asked for.

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
        normalised: bool = True,
    ) -> None:
        """
        Args:
            paths: the files that indices point to.
            size: (H, W) in pixels; the aspect ratio is not kept.
            views: what each picture is turned into; none: the picture itself.
            batch_size: the largest number of pictures at once.
            device: where the tensors are wanted; on CUDA, decoding and augmentation run there too.
            threads: CPU threads for decoding.
            normalised: False, where there are no views, leaves the pictures uint8, 0..255.
        """
        self.paths, self.size = paths, size
        self._device = torch.device(device)
        self._views = tuple(views)
        self._batches: Iterator[tuple[np.ndarray, Sequence[Augmentation]]] = iter(())
        self._recent: list[np.ndarray] = []
        self._new_pipeline = partial(
            _build,
            self._next_inputs,
            size,
            self._views,
            normalised=normalised,
            batch_size=batch_size,
            num_threads=threads,
            device_id=None if self._device.type == "cpu" else (self._device.index or 0),
            prefetch_queue_depth=2,
        )
        self._pipeline = self._new_pipeline()

    def __call__(self, batches: Iterable[tuple[np.ndarray, Sequence[Augmentation]]]) -> Iterator[tuple[Tensor, ...]]:
        """Stream batches of (indices [n], one `Augmentation` of n pictures per view).

        Yields:
            One [n, 3, H, W] float32 tensor per view (one in all if there are no views), normalised, channels_last;
            uint8 from a stream that is not `normalised`.

        Raises:
            UserError: a file cannot be read or decoded; it is named.
        """
        if self._recent:  # an unfinished pass has left its prefetched pictures, or its error, in the pipeline
            self._recent.clear()
            self._pipeline = self._new_pipeline()
        self._batches = iter(batches)
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

    def plain(self, indices: np.ndarray, batch_size: int) -> Iterator[Tensor]:
        """Stream pictures without augmentation, [n, 3, H, W] at a time."""
        chunks = (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))
        return (images for (images,) in self((chunk, ()) for chunk in chunks))

    def _next_inputs(self) -> list:
        """One batch of DALI's inputs: the files' bytes, then the parameters that each view uses."""
        indices, augmentations = next(self._batches)
        self._recent.append(indices)
        inputs: list = [[_read(self.paths[i]) for i in indices]]
        for view, aug in zip(self._views, augmentations, strict=True):
            values = {"flip": aug.flip.astype(np.int32), "crop": aug.crop, "blur": aug.blur,
                      "window": (aug.blur == 0).astype(np.int32),
                      "erase_at": aug.erase[:, :2].astype(np.float32),
                      "erase_shape": aug.erase[:, 2:].astype(np.float32)}  # fmt: skip
            inputs += [values[name] for name in _parameters(view)]
        return inputs

    def _name_unreadable(self, error: RuntimeError) -> NoReturn:
        for path in (self.paths[i] for indices in self._recent for i in indices):
            if not _decodes([path], 1):
                raise UserError(f"{path} cannot be decoded: repair or remove it, or pass --skip-bad-images") from None
        raise error


def _parameters(view: View) -> list[str]:
    """The per-picture parameters that a view's pipeline takes."""
    blur = ["blur", "window"] if view.blur > 0 else []
    erase = ["erase_at", "erase_shape"] if view.erase > 0 else []
    return ["flip", "crop", *blur, *erase]


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
    try:
        data = [_read(path) for path in paths]
    except UserError:
        return False
    if any(len(file) == 0 for file in data):
        return False
    try:
        _build(lambda: [data], (8, 8), (), batch_size=len(paths), num_threads=threads, device_id=None).run()
    except RuntimeError:
        return False
    return True


def _read(path: Path) -> np.ndarray:
    try:
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): restore it, or pass --skip-bad-images") from None


def _build(
    source: Callable[[], list],
    size: tuple[int, int],
    views: Sequence[View],
    *,
    normalised: bool = True,
    **options: object,
) -> object:
    """A pipeline whose outputs are [H, W, 3] normalised float32 pictures, one per view, or the uint8 pictures."""
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError as error:
        raise UserError(f"pictures are decoded by DALI, which cannot be imported ({error}): pip install "
                        "nvidia-dali-cuda120") from None  # fmt: skip

    gpu = options["device_id"] is not None
    height, width = size

    def normalise(image):  # noqa: ANN001, ANN202 - DALI's graph nodes have no public type
        scale = [255 * s for s in STD]
        mean = [255 * m for m in MEAN]
        return fn.crop_mirror_normalize(image, dtype=types.FLOAT, output_layout="HWC", mean=mean, std=scale)

    def augmented(image, view, given):  # noqa: ANN001, ANN202
        if view.grey:
            grey = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)
            image = fn.cat(grey, grey, grey, axis=2)
        image = fn.flip(image, horizontal=given["flip"])
        image = fn.slice(image, given["crop"], size, axes=(0, 1), normalized_anchor=False, normalized_shape=False,
                         out_of_bounds_policy="pad", fill_values=0)  # fmt: skip
        if view.blur > 0:
            # DALI takes the window of size 0 from sigma; a window of one pixel leaves a picture as it is.
            image = fn.gaussian_blur(image, sigma=given["blur"], window_size=given["window"])
        image = normalise(image)
        if view.erase > 0:
            image = fn.erase(image, anchor=given["erase_at"], shape=given["erase_shape"], axis_names="HW",
                             fill_value=ERASE_FILL)  # fmt: skip
        return image

    names = [(i, name) for i, view in enumerate(views) for name in _parameters(view)]

    @pipeline_def(**options)
    def pipeline():  # noqa: ANN202
        encoded, *values = fn.external_source(source=source, num_outputs=1 + len(names), batch=True)
        image = fn.decoders.image(encoded, device="mixed" if gpu else "cpu", output_type=types.RGB)
        image = fn.resize(image, size=(height, width), interp_type=types.INTERP_CUBIC, antialias=True)
        if not views:
            return normalise(image) if normalised else image
        given = dict(zip(names, values, strict=True))
        return tuple(
            augmented(image, view, {name: given[i, name] for name in _parameters(view)}) for i, view in enumerate(views)
        )

    graph = pipeline()
    graph.build()
    return graph
