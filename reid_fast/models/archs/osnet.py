"""OSNets (Zhou et al., ICCV 2019; AIN: TPAMI 2021) under torchreid's names, so that its and BoxMOT's weights load.

A block looks at its input through streams of one to four light convolutions, whose fields of view grow from 3×3 to 9×9,
and adds them up by gates that all streams share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reid_fast.errors import UserError
from reid_fast.models.archs.arch import Arch, Backbone, Options
from reid_fast.models.norm import GroupedBatchNorm1d, GroupedBatchNorm2d
from reid_fast.ops.grouped_bn import add_relu

FEATURES = 512  # D
_REDUCTION = 4  # a block's channels over those of its streams
_GATE_REDUCTION = 16
_STREAMS = 4


@dataclass(frozen=True)
class OSNetArch(Arch):
    """What tells one OSNet from another."""

    widths: tuple[int, int, int, int]  # channels of the stem and of the three stages
    ain: bool = False  # instance norms where an architecture search has put them

    def build(self, options: Options) -> OSNet:
        """
        Raises:
            UserError: nothing is left of the images on the last map, or, for AIN, no more than a pixel.
        """
        h, w = (-(-edge // 4) // 4 for edge in options.size)
        least = 2 if self.ain else 1  # an instance norm needs two pixels
        if h * w < least:
            H, W = options.size
            raise UserError(
                f"an OSNet makes {h}×{w} pixels of images of {H}×{W} and needs {least}: choose a larger --height or "
                "--width"
            )
        return OSNet(self)


ARCHS: dict[str, OSNetArch] = {
    "osnet_x1_0": OSNetArch((64, 256, 384, 512)),
    "osnet_x0_75": OSNetArch((48, 192, 288, 384)),
    "osnet_x0_5": OSNetArch((32, 128, 192, 256)),
    "osnet_x0_25": OSNetArch((16, 64, 96, 128)),
    "osnet_ain_x1_0": OSNetArch((64, 256, 384, 512), ain=True),
}


class Conv(nn.Module):
    """A convolution and BatchNorm."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = GroupedBatchNorm2d(c_out)

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = True) -> Tensor:
        return self.bn(self.conv(x), residual, relu)


class InstanceConv(nn.Module):
    """A convolution and an instance norm of all channels: the stem of AIN."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.InstanceNorm2d(c_out, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return add_relu(self.bn(self.conv(x)), None, relu=True)


class Conv1x1(nn.Module):
    """A convolution whose norm stands elsewhere."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class LightConv3x3(nn.Module):
    """A 3×3 convolution in two: 1×1 over channels, then 3×3 in each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = GroupedBatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv2(self.conv1(x)), relu=True)


class Gate(nn.Module):
    """The aggregation gate: weighs each channel of each stream by what the stream holds of the image on average."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // _GATE_REDUCTION, 1)
        self.fc2 = nn.Conv2d(channels // _GATE_REDUCTION, channels, 1)

    def forward(self, streams: Sequence[Tensor]) -> Tensor:
        """[B, C, h, w] each -> [B, C, h, w], their sum. All pass through the gate's layers at once, which are tiny."""
        means = torch.cat([stream.mean((2, 3), keepdim=True) for stream in streams])
        weights = self.fc2(self.fc1(means).relu()).sigmoid().unflatten(0, (len(streams), -1)).unbind()
        total = streams[0] * weights[0]
        for stream, weight in zip(streams[1:], weights[1:], strict=True):
            total = torch.addcmul(total, stream, weight)
        return total


class Block(nn.Module, ABC):
    """Streams between two 1×1 convolutions, beside a shortcut."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = Conv(c_in, c_out // _REDUCTION)
        self.gate = Gate(c_out // _REDUCTION)
        self.downsample = None if c_in == c_out else Conv(c_in, c_out)

    @abstractmethod
    def streams(self) -> Sequence[nn.Module]:
        """The streams, the shortest one first."""

    @abstractmethod
    def joined(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """What leaves the block, of the streams' sum."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x, relu=False)
        y = self.conv1(x)
        return self.joined(self.gate([stream(y) for stream in self.streams()]), shortcut)


class OSBlock(Block):
    """The block of the first paper."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out)
        width = c_out // _REDUCTION
        self.conv2a = LightConv3x3(width)
        self.conv2b, self.conv2c, self.conv2d = (_light(width, depth) for depth in range(2, _STREAMS + 1))
        self.conv3 = Conv(width, c_out)

    def streams(self) -> Sequence[nn.Module]:
        return self.conv2a, self.conv2b, self.conv2c, self.conv2d

    def joined(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return self.conv3(x, shortcut)


class Stream(nn.Module):
    """A stream as the second paper's code names it."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = _light(width, depth)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class AinBlock(Block):
    """The block of the second paper; with `instance` its residual passes through an instance norm, not BatchNorm."""

    def __init__(self, c_in: int, c_out: int, instance: bool) -> None:
        super().__init__(c_in, c_out)
        width = c_out // _REDUCTION
        self.conv2 = nn.ModuleList(Stream(width, depth) for depth in range(1, _STREAMS + 1))
        self.conv3: nn.Module = Conv1x1(width, c_out) if instance else Conv(width, c_out)
        self.IN = nn.InstanceNorm2d(c_out, affine=True) if instance else None

    def streams(self) -> Sequence[nn.Module]:
        return list(self.conv2)

    def joined(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return self.conv3(x, shortcut) if self.IN is None else add_relu(self.IN(self.conv3(x)), shortcut, relu=True)


def _light(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(LightConv3x3(width) for _ in range(depth)))


class OSNet(Backbone):
    """Images to features: [B, 3, H, W] -> [B, 512], behind the fully connected layer."""

    pools = True
    c_out = FEATURES

    def __init__(self, arch: OSNetArch) -> None:
        """
        Args:
            arch: an entry of `ARCHS`.
        """
        super().__init__()
        stem, *stages = arch.widths
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        if arch.ain:
            self.conv1: nn.Module = InstanceConv(3, stem, 7, 2)
            instance = (True, True), (False, True), (True, False)
            self.conv2, self.conv3, self.conv4 = (
                nn.Sequential(AinBlock(before, width, first), AinBlock(width, width, second))
                for before, width, (first, second) in zip(arch.widths, stages, instance, strict=False)
            )
            self.pool2, self.pool3 = (_halving(width) for width in stages[:2])
        else:
            self.conv1 = Conv(3, stem, 7, 2)
            self.conv2, self.conv3, self.conv4 = (
                nn.Sequential(OSBlock(before, width), OSBlock(width, width))
                for before, width in zip(arch.widths, stages, strict=False)
            )
            self.conv2.append(_halving(stages[0]))
            self.conv3.append(_halving(stages[1]))
        self.conv5 = Conv(stages[-1], stages[-1])
        self.fc = nn.Sequential(nn.Linear(stages[-1], FEATURES), GroupedBatchNorm1d(FEATURES))
        self.stages = ("conv2", "pool2", "conv3", "pool3", "conv4") if arch.ain else ("conv2", "conv3", "conv4")
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        linear, norm = self.fc
        return norm(linear(self.conv5(x).mean((2, 3))), relu=True)


def _halving(width: int) -> nn.Sequential:
    return nn.Sequential(Conv(width, width), nn.AvgPool2d(2))


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
