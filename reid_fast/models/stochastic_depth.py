"""Stochastic depth: in training an image skips some residual branches (Huang et al., ECCV 2016).

Which ones is a hash of (seed, epoch, the image's position in the epoch, the network, the branch) and of nothing else,
as augmentation is: a run that is resumed, or has other ranks, skips the same branches, and no generator has a state to
save. The hash is taken where the images are, of keys that come with the batch: a captured step that is replayed with
the keys of other images skips what those skip.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # 2³² / φ: multiples of it are spread evenly


class StochasticDepth(nn.Module):
    """What a backbone multiplies its residual branches by."""

    def __init__(self, rate: float, blocks: int) -> None:
        """
        Args:
            rate: the share of images that skip a branch of the last block, in [0, 1); it grows linearly from 0 in the
                first one.
            blocks: with two branches each.
        """
        super().__init__()
        self.rate = rate
        self.keys: Tensor | None = None
        self.network = 0
        rates = torch.linspace(0, rate, blocks).repeat_interleave(2)
        self.salts: Tensor
        self.limits: Tensor
        self.scale: Tensor
        # Not saved: they are settings.
        self.register_buffer("salts", (torch.arange(2 * blocks) * _GOLDEN & _MASK)[:, None], persistent=False)
        self.register_buffer("limits", (rates.double() * 2**32).long()[:, None], persistent=False)
        self.register_buffer("scale", 1 / (1 - rates[:, None]), persistent=False)

    def forward(self) -> Tensor | None:
        """[2 · blocks, B, 1, 1] float32 for each branch: 0 where an image skips it, else 1 / the share that takes it.

        None where all take all: in evaluation, and at rate 0.

        Raises:
            RuntimeError: in training there are no keys to draw from.
        """
        if not self.training or self.rate == 0:
            return None
        if self.keys is None:
            raise RuntimeError("stochastic depth draws from the keys of a batch: call set_keys before the forward pass")
        own = _mixed(self.keys + self.network * _GOLDEN & _MASK)
        taken = _mixed(own + self.salts & _MASK) >= self.limits
        return (taken * self.scale)[:, :, None, None]


def set_keys(module: nn.Module, keys: Tensor | None) -> None:
    """Give every network below `module` what it draws from, each its own numbers.

    Args:
        module: holds networks.
        keys: [b] int64 in [0, 2³²), of the images that each of them gets next, in training.
    """
    layers = (layer for layer in module.modules() if isinstance(layer, StochasticDepth))
    for network, layer in enumerate(layers):
        layer.keys, layer.network = keys, network


def take_every_branch(module: nn.Module) -> None:
    """Let no network below `module` skip a branch, in training mode either."""
    for layer in module.modules():
        if isinstance(layer, StochasticDepth):
            layer.rate = 0.0


def _mixed(z: Tensor) -> Tensor:
    """A hash of 32-bit numbers held in int64, whose products fit: two rounds, constants of Wellons' hash-prospector."""
    z = (z ^ (z >> 15)) * 0x2C1B3C6D & _MASK
    z = (z ^ (z >> 12)) * 0x297A2D39 & _MASK
    return z ^ (z >> 15)
