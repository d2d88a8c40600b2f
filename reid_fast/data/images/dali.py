"""The graph of DALI's that decodes, resizes and augments: to be imported only where it is built, for DALI is large."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np

from reid_fast.data.images.augmentation import Augmentation, View
from reid_fast.data.images.normalisation import ERASE_FILL, IMAGENET, Normalisation
from reid_fast.errors import UserError

try:
    from nvidia.dali import __version__, fn, types
    from nvidia.dali.pipeline import DataNode, Pipeline
except ImportError as error:
    raise UserError(
        f"images are decoded by DALI, which cannot be imported ({error}): pip install nvidia-dali-cuda120"
    ) from None

# What decoded pixels depend on beside the file, the size and the device.
DECODING = f"DALI {__version__}, RGB, bicubic, antialiased"

# What a graph is fed with at once: the bytes of n files, then [n, ...] numbers for each parameter of each view.
Inputs = list[list[np.ndarray] | np.ndarray]


def parameters(view: View, aug: Augmentation) -> list[np.ndarray]:
    """What a view's part of the graph is fed with, in the order in which `_augmented` takes it."""
    # DALI takes the window of size 0 from sigma; a window of one pixel leaves an image as it is.
    blur = [aug.blur, (aug.blur == 0).astype(np.int32)] if view.blur > 0 else []
    erase = [aug.erase[:, :2].astype(np.float32), aug.erase[:, 2:].astype(np.float32)] if view.erase > 0 else []
    return [aug.flip.astype(np.int32), aug.crop, *blur, *erase]


def build(
    source: Callable[[], Inputs],
    size: tuple[int, int],
    views: Sequence[View],
    *,
    batch_size: int,
    threads: int,
    gpu: int | None,
    norm: Normalisation | None = IMAGENET,
) -> Pipeline:
    """A pipeline whose outputs are [H, W, 3] normalised float32 images, one per view, or the uint8 images.

    Args:
        source: called for each batch; ends a pass by raising `StopIteration`.
        size: (H, W) in pixels.
        views: what each image is turned into; none: the image itself.
        batch_size: the most images at once.
        threads: CPU threads.
        gpu: the CUDA device that decodes and augments; None: the CPU does.
        norm: what normalises; None leaves the images uint8, and there are no views.
    """
    pipeline = Pipeline(batch_size=batch_size, num_threads=threads, device_id=gpu, prefetch_queue_depth=2)
    count = sum(len(parameters(view, Augmentation.none(0))) for view in views)
    with pipeline:
        encoded, *values = fn.external_source(source=source, num_outputs=1 + count, batch=True)
        image = fn.decoders.image(
            encoded, device="cpu" if gpu is None else "mixed", output_type=types.DALIImageType.RGB
        )
        resized = fn.resize(image, size=size, interp_type=types.DALIInterpType.INTERP_CUBIC, antialias=True)
        image = cast(DataNode, resized)  # other types are for other arguments
        given = iter(values)
        if norm is None:
            pipeline.set_outputs(image)
        else:
            outputs = [_augmented(image, view, size, norm, given) for view in views]
            pipeline.set_outputs(*outputs or [_normalise(image, norm)])
    pipeline.build()
    return pipeline


def _augmented(
    image: DataNode, view: View, size: tuple[int, int], norm: Normalisation, given: Iterator[DataNode]
) -> DataNode:
    """One view of the image by the parameters that are `given`."""
    if view.grey:
        rgb, grey = types.DALIImageType.RGB, types.DALIImageType.GRAY
        luminance = fn.color_space_conversion(image, image_type=rgb, output_type=grey)
        image = fn.cat(luminance, luminance, luminance, axis=2)
    image = fn.flip(image, horizontal=next(given))
    image = fn.slice(
        image,
        next(given),
        size,
        axes=(0, 1),
        normalized_anchor=False,
        normalized_shape=False,
        out_of_bounds_policy="pad",
        fill_values=0,
    )
    if view.blur > 0:
        image = fn.gaussian_blur(image, sigma=next(given), window_size=next(given))
    image = _normalise(image, norm)
    if view.erase > 0:
        image = fn.erase(image, anchor=next(given), shape=next(given), axis_names="HW", fill_value=ERASE_FILL)
    return image


def _normalise(image: DataNode, norm: Normalisation) -> DataNode:
    mean, scale = ([255 * number for number in numbers] for numbers in (norm.mean, norm.std))
    return fn.crop_mirror_normalize(image, dtype=types.DALIDataType.FLOAT, output_layout="HWC", mean=mean, std=scale)
