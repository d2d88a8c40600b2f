"""Pictures from files to tensors through DALI: decode, resize, and the augmentation that `data.augment` drew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reid_fast.data.augment import Augmentation, View
from reid_fast.errors import UserError

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, for RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
# The published code erases after normalising but with the raw mean, so rectangles are slightly bright, not mean grey.
ERASE_FILL = MEAN

PLAIN: tuple[View, ...] = ()  # resize and normalise only: what features are extracted from


class ImageStream:
    """A DALI pipeline over one list of files; pictures come out in the order that is asked for.

    One stream holds its threads and buffers as long as it lives. It works without a GPU: then all stages run on the CPU.
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
    ) -> None:
        """
        Args:
            paths: the files that indices point to.
            size: (H, W) in pixels; the aspect ratio is not kept.
            views: what each picture is turned into; none: the picture itself.
            batch_size: the largest number of pictures at once.
            device: where the tensors are wanted; on CUDA, decoding and augmentation run there too.
            threads: CPU threads for decoding.
        """
        self.paths, self.size = paths, size
        self._device = torch.device(device)
        self._views = tuple(views)
        self._batches: Iterator[tuple[np.ndarray, Sequence[Augmentation]]] = iter(())
        self._recent: list[np.ndarray] = []
        self._pipeline = _build(
            self._next_inputs,
            size,
            self._views,
            batch_size=batch_size,
            num_threads=threads,
            device_id=None if self._device.type == "cpu" else (self._device.index or 0),
            prefetch_queue_depth=2,
        )

    def __call__(
        self, batches: Iterable[tuple[np.ndarray, Sequence[Augmentation]]]
    ) -> Iterator[tuple[Tensor, ...]]:
        """Stream batches of (indices [n], one `Augmentation` of n pictures per view).

        Yields:
            One [n, 3, H, W] float32 tensor per view (one in all if there are no views), normalised, channels_last.

        Raises:
            UserError: a file cannot be decoded; it is named.
        """
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
        """One batch of DALI's inputs: the files' bytes, then flip, crop, blur and erasing per view."""
        indices, augmentations = next(self._batches)
        self._recent.append(indices)
        inputs: list = [[np.fromfile(self.paths[i], dtype=np.uint8) for i in indices]]
        for aug in augmentations:
            inputs += [
                aug.flip.astype(np.int32),
                aug.crop,
                aug.blur,
                aug.erase[:, :2].astype(np.float32),
                aug.erase[:, 2:].astype(np.float32),
            ]
        return inputs

    def _name_unreadable(self, error: RuntimeError) -> None:
        for path in (self.paths[i] for indices in self._recent for i in indices):
            reason = decoding_error(path)
            if reason:
                raise UserError(
                    f"{path} cannot be decoded ({reason}): repair or remove it, or pass --skip-bad-images"
                ) from None
        raise error


def decoding_error(path: Path) -> str | None:
    """Why DALI cannot decode a file, or None if it can."""
    data = np.fromfile(path, dtype=np.uint8)
    if len(data) == 0:
        return "the file is empty"
    try:
        pipeline = _build(lambda: [[data]], (8, 8), (), batch_size=1, num_threads=1, device_id=None)
        pipeline.run()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return next((line for line in lines if "rror" in line or "ailed" in line), lines[0])
    return None


def _build(source: Callable[[], list], size: tuple[int, int], views: Sequence[View], **options: object) -> object:
    """A pipeline whose outputs are [H, W, 3] normalised float32 pictures, one per view."""
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

    def augmented(image, view, flip, crop, blur, erase_at, erase_shape):  # noqa: ANN001, ANN202
        if view.grey:
            grey = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)
            image = fn.cat(grey, grey, grey, axis=2)
        image = fn.flip(image, horizontal=flip)
        image = fn.slice(image, crop, size, axes=(0, 1), normalized_anchor=False, normalized_shape=False,
                         out_of_bounds_policy="pad", fill_values=0)  # fmt: skip
        if view.blur > 0:
            image = fn.gaussian_blur(image, sigma=blur)
        image = normalise(image)
        if view.erase > 0:
            image = fn.erase(image, anchor=erase_at, shape=erase_shape, axis_names="HW", fill_value=ERASE_FILL)
        return image

    @pipeline_def(**options)
    def pipeline():  # noqa: ANN202
        encoded, *parameters = fn.external_source(source=source, num_outputs=1 + 5 * len(views), batch=True)
        image = fn.decoders.image(encoded, device="mixed" if gpu else "cpu", output_type=types.RGB)
        image = fn.resize(image, size=(height, width), interp_type=types.INTERP_CUBIC, antialias=True)
        if not views:
            return normalise(image)
        return tuple(augmented(image, view, *parameters[5 * i : 5 * i + 5]) for i, view in enumerate(views))

    graph = pipeline()
    graph.build()
    return graph
