"""What an image goes through: torchvision's transforms, and the erasing of a rectangle."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import Compose, Normalize, Pad, RandomCrop, RandomHorizontalFlip, Resize, ToTensor

__all__ = [
    "Compose",
    "Normalize",
    "Pad",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "Resize",
    "ToTensor",
]


class RandomErasing:
    """Random erasing (Zhong et al., AAAI 2020)."""

    def __init__(self, probability: float = 0.5, mean: Sequence[float] = (0.5, 0.5, 0.5)) -> None:
        self.probability, self.mean = probability, torch.tensor(mean)[:, None, None]

    def __call__(self, image: Tensor) -> Tensor:
        _, height, width = image.shape
        tries = range(100 if random.random() < self.probability else 0)
        for _ in tries:
            area, aspect = random.uniform(0.02, 0.4) * height * width, random.uniform(0.3, 1 / 0.3)
            tall, wide = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if tall < height and wide < width:
                top, left = random.randint(0, height - tall), random.randint(0, width - wide)
                image[:, top : top + tall, left : left + wide] = self.mean
                break
        return image
