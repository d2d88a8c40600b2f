"""Augmentation parameters as data.

Every number is a hash of (seed, epoch, view, position in the epoch, use), so it depends neither on workers, ranks,
batches or resumption, nor on what else is drawn. Whatever applies the parameters draws nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_TRIES = 100
_KEYS = -1  # in place of a view's number


@dataclass(frozen=True)
class View:
    """What may happen to an image. The default is the training transform of Cluster Contrast, SpCL, CACL and DCCC."""

    flip: float = 0.5  # probability
    pad: int = 10  # black pixels on each side before the random crop
    erase: float = 0.5  # probability
    erase_area: tuple[float, float] = (0.02, 0.4)  # share of the image
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)  # height over width
    erase_across: bool = False  # whether the rectangle may be as high or as wide as the image
    blur: float = 0.0  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    grey: bool = False


@dataclass(frozen=True)
class Augmentation:
    """Parameters for n images of H×W pixels, in the order in which they are applied."""

    grey: bool
    flip: np.ndarray  # [n] bool
    crop: np.ndarray  # [n, 2] int32: top and left of the crop, relative to the image: -pad..pad
    blur: np.ndarray  # [n] float32: sigma in pixels, 0 = none
    erase: np.ndarray  # [n, 4] int32: top, left, height, width; height 0 = none

    @classmethod
    def none(cls, n: int) -> Augmentation:
        """What leaves n images as they are."""
        pairs, rectangles = np.zeros((n, 2), np.int32), np.zeros((n, 4), np.int32)
        return cls(False, np.zeros(n, bool), pairs, np.zeros(n, np.float32), rectangles)

    def __getitem__(self, rows: slice) -> Augmentation:
        """The parameters of some of the images."""
        return Augmentation(self.grey, self.flip[rows], self.crop[rows], self.blur[rows], self.erase[rows])


def draw(
    view: View, size: tuple[int, int], positions: np.ndarray, *, seed: int, epoch: int, number: int = 0
) -> Augmentation:
    """Draw the parameters of one view.

    Args:
        view: what may happen.
        size: (H, W) in pixels.
        positions: [n] int, each image's place in the epoch.
        seed, epoch: the source of randomness.
        number: which view of the image this is; different numbers draw independently.
    """
    uniform = _Uniform.of(positions, seed, epoch, number)
    crop = np.stack([uniform.integer(1, 2 * view.pad), uniform.integer(2, 2 * view.pad)], axis=1) - view.pad
    low, high = view.blur_sigma
    sigma = np.where(uniform(3) < view.blur, low + (high - low) * uniform(4), 0.0)
    return Augmentation(
        grey=view.grey,
        flip=uniform(0) < view.flip,
        crop=crop.astype(np.int32),
        blur=sigma.astype(np.float32),
        erase=_rectangles(view, size, uniform),
    )


def draw_keys(positions: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """[n] int64 in [0, 2³²), one for each position: what a network draws from on the device."""
    return _Uniform.of(positions, seed, epoch, _KEYS).integer(0, 2**32 - 1)


def _rectangles(view: View, size: tuple[int, int], uniform: _Uniform) -> np.ndarray:
    """Random erasing (Zhong et al., AAAI 2020): up to 100 tries until the rectangle fits inside the image."""
    height, width = size
    shape = np.zeros((len(uniform), 2), dtype=np.int64)
    waiting = np.flatnonzero(uniform(5) < view.erase)
    for attempt in range(_TRIES):
        if len(waiting) == 0:
            break
        some = uniform[waiting]
        area = _between(view.erase_area, some(8 + 2 * attempt)) * height * width
        aspect = _between(view.erase_aspect, some(9 + 2 * attempt))
        h, w = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (h < height + view.erase_across) & (w < width + view.erase_across)
        shape[waiting[fits]] = np.stack([h, w], axis=1)[fits]
        waiting = waiting[~fits]
    place = np.stack([uniform.integer(6, height - shape[:, 0]), uniform.integer(7, width - shape[:, 1])], axis=1)
    return np.where(shape[:, :1] > 0, np.concatenate([place, shape], axis=1), 0).astype(np.int32)


def _between(bounds: tuple[float, float], u: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * u


class _Uniform:
    """Uniform numbers in [0, 1), one per position, for each use: SplitMix64's finaliser (Steele et al., 2014)."""

    def __init__(self, keys: np.ndarray) -> None:
        self._keys = keys

    @classmethod
    def of(cls, positions: np.ndarray, seed: int, epoch: int, number: int) -> _Uniform:
        key = np.zeros(1, np.uint64)
        for part in (seed, epoch, number):
            key = _mix(key + np.uint64(part & (2**64 - 1)))
        return cls(_mix(key + np.asarray(positions).astype(np.uint64)))

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, rows: np.ndarray) -> _Uniform:
        """The numbers of some positions."""
        return _Uniform(self._keys[rows])

    def __call__(self, use: int) -> np.ndarray:
        """[n] float64 in [0, 1)."""
        return (_mix(self._keys + np.uint64(use)) >> np.uint64(11)) * 2.0**-53

    def integer(self, use: int, most: int | np.ndarray) -> np.ndarray:
        """[n] int64 in 0..most, both included."""
        return np.floor(self(use) * (np.asarray(most) + 1)).astype(np.int64)


def _mix(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
