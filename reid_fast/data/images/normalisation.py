"""The numbers by which pixels become what a network sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Numbers = tuple[float, float, float]


@dataclass(frozen=True)
class Normalisation:
    """What is taken off RGB in [0, 1], and what the rest is divided by."""

    mean: Numbers
    std: Numbers

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Normalisation:
        """That of an exported encoder, by its model.json.

        Raises:
            KeyError: it has no mean or std.
        """
        return cls(tuple(description["mean"]), tuple(description["std"]))


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# What `--image-norm` takes.
NORMALISATIONS = {"imagenet": IMAGENET, "half": Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
# The published code erases after normalising but with ImageNet's raw mean, so rectangles are slightly bright, not mean
# grey; TransReID-SSL's does so with either normalisation.
ERASE_FILL = IMAGENET.mean
