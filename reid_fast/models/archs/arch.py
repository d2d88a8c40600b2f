"""What an architecture is to the encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Images [B, 3, H, W] to what the encoder's neck gets.

    That is a feature map [B, D, h, w], which the encoder pools, or, where `pools` is set, features [B, D] themselves.
    A norm that stands right behind a convolution among a module's children is applied right behind it: `folded` relies
    on that.
    """

    c_out: int  # D
    pools: bool = False
    grid: tuple[int, int] | None = None  # (h, w) of a transformer's patches, one of whose `pos_embed` each has

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Options:
    """Of how a backbone is built: settings of training, and the size of the images."""

    size: tuple[int, int] = (256, 128)  # (H, W), in pixels
    stem_relu: bool = True  # ResNets: keep the ReLU between the stem's BatchNorm and its max-pooling (CAP has none)
    drop_path: float = 0.0  # transformers: the share of paths that the last block drops in training


PLAIN = Options()


@dataclass(frozen=True, kw_only=True)
class Arch(ABC):
    """An entry of `ARCHS`: how to build a backbone with random weights."""

    weights: str | None = None  # where its ImageNet weights are published

    @abstractmethod
    def build(self, options: Options) -> Backbone:
        """A backbone with random weights."""
