"""The images of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from reid_fast.console import Console
from reid_fast.data.images.augmentation import Augmentation, View, draw
from reid_fast.data.images.batch import Batch
from reid_fast.data.images.dali import ImageStream
from reid_fast.data.images.store import ImageStore, decoded
from reid_fast.data.sets.records import TrainingSet

Source = ImageStream | ImageStore


@dataclass
class Loader:
    images: TrainingSet
    size: tuple[int, int]
    views: Sequence[View]
    seed: int
    device: torch.device
    held: bool
    target: Source
    source: Source | None
    training: Source

    @property
    def paths(self) -> Sequence[Path]:
        return self.images.images.paths

    def batches(
        self, plan: np.ndarray, labels: np.ndarray, *, epoch: int, first_step: int = 0, steps_before: int = 0
    ) -> Iterator[Batch]:
        width = plan.shape[1]
        classes = torch.from_numpy(self.images.classes(labels)).to(self.device)
        cams = torch.from_numpy(self.images.images.cams).to(self.device)

        def wanted() -> Iterator[tuple[np.ndarray, list[Augmentation]]]:
            for step in range(first_step, len(plan)):
                positions = np.arange(step * width, (step + 1) * width)
                drawn = partial(draw, size=self.size, positions=positions, seed=self.seed, epoch=epoch)
                yield plan[step], [drawn(view, number=number) for number, view in enumerate(self.views)]

        for step, views in enumerate(self.training(wanted()), first_step):
            index = torch.from_numpy(plan[step]).to(self.device, non_blocking=True)
            yield Batch(views, classes[index], index, cams[index], epoch, steps_before + step)


def open_loader(
    images: TrainingSet,
    *,
    size: tuple[int, int],
    views: Sequence[View],
    batch_size: int,
    cache: float,
    seed: int,
    device: torch.device,
    threads: int,
    console: Console,
) -> Loader:
    first, paths = images.first, images.images.paths
    pixels = decoded(paths, size, cache, device=device, threads=threads, console=console)
    if pixels is not None:
        make = lambda part: ImageStore(paths[part], pixels[part])  # noqa: E731
        training = ImageStore(paths, pixels)
    else:
        make = lambda part: ImageStream(paths[part], size, device=device, threads=threads)  # noqa: E731
        training = ImageStream(paths, size, views=views, batch_size=batch_size, device=device, threads=threads)
    source = make(slice(0, first)) if first else None
    return Loader(images, size, views, seed, device, pixels is not None, make(slice(first, None)), source, training)
