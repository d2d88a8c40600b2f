"""The batches of a run: drawn, augmented and put together in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reid_fast.console import Console
from reid_fast.data.images.augmentation import View, draw, draw_keys
from reid_fast.data.images.held import Held
from reid_fast.data.images.image_files import ImageFiles, Part, batches
from reid_fast.data.images.normalisation import IMAGENET, Normalisation
from reid_fast.data.images.open import open_files
from reid_fast.data.images.stream import ImageStream
from reid_fast.data.sets import TrainingSet
from reid_fast.device import to_device
from reid_fast.errors import UserError
from reid_fast.ranks import ALONE, Ranks, Split


@dataclass(frozen=True)
class Batch:
    """B images and what is known of them, on the training device; of the images themselves, a rank has its b.

    What is computed of the images passes through `gather`: from there on, every rank has the whole step.
    """

    views: tuple[Tensor, ...]  # one [b, 3, H, W] per view that the method asks for
    labels: Tensor  # [B] int64 classes: source identities, then pseudo labels
    index: Tensor  # [B] int64, the images' places in the training set, source first
    cams: Tensor  # [B] int64, -1 = unknown
    epoch: int = 0  # finished epochs of the run
    step: int = 0  # finished steps of the run, over all epochs
    drawn: Tensor | None = None  # what the method draws for this step
    keys: Tensor | None = None  # [b] int64 in [0, 2³²), what networks draw from: see `StochasticDepth`
    split: Split | None = None  # the ranks' parts; None: there is one, and b = B

    def gather(self, x: Tensor) -> Tensor:
        """[b, ...] computed of this rank's images -> [B, ...], see `Split.gather`."""
        return x if self.split is None else self.split.gather(x)

    def own(self, x: Tensor) -> Tensor:
        """[B, ...] -> [b, ...] of this rank's images."""
        return x if self.split is None else self.split.own(x)

    @property
    def tensors(self) -> list[Tensor]:
        """All that lies on the device."""
        known = self.labels, self.index, self.cams, *self.views
        return [*known, *(tensor for tensor in (self.drawn, self.keys) if tensor is not None)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Batch:
        """The same step with others in the place of `tensors`."""
        labels, index, cams, *views = tensors
        keys = None if self.keys is None else views.pop()
        drawn = None if self.drawn is None else views.pop()
        return replace(self, labels=labels, index=index, cams=cams, views=tuple(views), drawn=drawn, keys=keys)


@dataclass(frozen=True)
class Loader:
    """Serves a training set: whole for extraction, in augmented batches for training.

    Attributes:
        images: the training set.
        held: whether its images are held decoded.
        whole: all images without augmentation, source first.
        augmented: the same images by `views`.
        size: (H, W) in pixels.
        views: what a training image is turned into.
        seed: what augmentation is drawn from.
        device: where batches are wanted.
    """

    images: TrainingSet
    held: Held
    whole: ImageFiles
    augmented: ImageFiles
    size: tuple[int, int]
    views: tuple[View, ...]
    seed: int
    device: torch.device

    @property
    def paths(self) -> Sequence[Path]:
        """The files of all images, source first."""
        return self.whole.paths

    @property
    def target(self) -> ImageFiles:
        """The N target images, to extract features from."""
        return Part(self.whole, self.images.first, len(self.paths))

    @property
    def source(self) -> ImageFiles | None:
        """The source's images; None without one."""
        return Part(self.whole, 0, self.images.first) if self.images.source is not None else None

    def batches(
        self,
        plan: np.ndarray,
        labels: np.ndarray,
        *,
        epoch: int,
        first_step: int = 0,
        steps_before: int = 0,
        split: Split | None = None,
    ) -> Iterator[Batch]:
        """Serve the steps of one epoch. A batch depends on the arguments and the seed alone: resumption repeats it.

        Args:
            plan: [iters, B] int64 indices into the training set, source first.
            labels: [N] int64 pseudo labels of the target.
            epoch: finished epochs of the run.
            first_step: finished steps of this epoch.
            steps_before: steps of the finished epochs.
            split: which part of each batch is decoded here; None: all of it.

        Raises:
            UserError: a file cannot be read or decoded; it is named.
        """
        width = plan.shape[1]
        rows = np.arange(width) if split is None else split.rows
        images, own = plan[first_step:].ravel(), plan[first_step:, rows].ravel()
        # An image's place in the epoch, whenever it resumes and wherever it is decoded.
        positions = (width * np.arange(first_step, len(plan))[:, None] + rows).ravel()
        drawn = [
            draw(view, self.size, positions, seed=self.seed, epoch=epoch, number=number)
            for number, view in enumerate(self.views)
        ]
        known = images, self.images.classes(labels)[images], self.images.images.cams[images]
        keys = draw_keys(positions, seed=self.seed, epoch=epoch)
        index, classes, cams, keys_of_own = (to_device(values, self.device) for values in (*known, keys))
        parts = batches(len(images), width), batches(len(own), len(rows)), self.augmented(own, drawn, len(rows))
        for step, (those, part, views) in enumerate(zip(*parts, strict=True), steps_before + first_step):
            known_of_step = classes[those], index[those], cams[those]
            yield Batch(views, *known_of_step, epoch, step, keys=keys_of_own[part], split=split)


def open_loader(
    images: TrainingSet,
    *,
    size: tuple[int, int],
    views: Sequence[View],
    batch_size: int,
    norm: Normalisation = IMAGENET,
    cache: float,
    cache_dir: Path | None = None,
    ranks: Ranks = ALONE,
    seed: int,
    device: torch.device,
    threads: int,
    console: Console,
) -> Loader:
    """Decode the images of a run and hold them where they fit, or else stream them from their files.

    Args:
        images: what is trained on.
        views: what a training image is turned into.
        batch_size: images of a step, of both domains together.
        seed: what augmentation is drawn from.
        size, norm, cache, cache_dir, ranks, device, threads, console: see `open_files`.

    Raises:
        UserError: a file cannot be read or decoded, and is named; or images are too small for the blur of a view.
    """
    radius = max((math.ceil(3 * view.blur_sigma[1]) for view in views if view.blur), default=0)
    if radius >= min(size):
        raise UserError(
            f"--height and --width must be more than {radius}, not {size[0]} and {size[1]}: the method blurs so many "
            "pixels on each side"
        )
    paths = images.images.paths
    whole, held = open_files(
        paths,
        size,
        norm=norm,
        cache=cache,
        cache_dir=cache_dir,
        ranks=ranks,
        device=device,
        threads=threads,
        console=console,
    )
    augmented = whole
    if not held:
        augmented = ImageStream(
            paths, size, views=views, batch_size=batch_size, norm=norm, device=device, threads=threads
        )
    return Loader(images, held, whole, augmented, size, tuple(views), seed, device)
