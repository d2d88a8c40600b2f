"""ResNets with a last stage of stride 1, under torchvision's names, so its and timm's weights load unchanged."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from reid_fast.models.archs.arch import Arch, Backbone, Options
from reid_fast.models.norm import IBN, GroupedBatchNorm2d


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int, ibn: bool) -> None:
        super().__init__()
        self.conv1 = _conv(c_in, width, 3, stride)
        self.bn1 = IBN(width) if ibn else GroupedBatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = GroupedBatchNorm2d(width)
        self.downsample = _projection(c_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(y), _shortcut(self.downsample, x), relu=True)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions (ResNet-50 and -101); the stride sits in the 3×3."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int, ibn: bool) -> None:
        super().__init__()
        self.conv1 = _conv(c_in, width, 1)
        self.bn1 = IBN(width) if ibn else GroupedBatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = GroupedBatchNorm2d(width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = GroupedBatchNorm2d(4 * width)
        self.downsample = _projection(c_in, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x), relu=True)
        y = self.bn2(self.conv2(y), relu=True)
        return self.bn3(self.conv3(y), _shortcut(self.downsample, x), relu=True)


def _projection(c_in: int, c_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and c_in == c_out:
        return None
    return nn.Sequential(_conv(c_in, c_out, 1, stride), GroupedBatchNorm2d(c_out))


def _shortcut(downsample: nn.Sequential | None, x: Tensor) -> Tensor:
    return x if downsample is None else downsample(x)


@dataclass(frozen=True)
class ResNetArch(Arch):
    """What tells one ResNet from another."""

    block: type[BasicBlock] | type[Bottleneck]
    layers: tuple[int, int, int, int]
    width: int = 64
    ibn: bool = False

    def build(self, options: Options) -> ResNet:
        return ResNet(self, options.stem_relu)


_TORCHVISION = "https://download.pytorch.org/models/"
_IBN_NET = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0/"

ARCHS: dict[str, ResNetArch] = {
    "resnet18_half": ResNetArch(BasicBlock, (2, 2, 2, 2), width=32),
    "resnet18": ResNetArch(BasicBlock, (2, 2, 2, 2), weights=_TORCHVISION + "resnet18-f37072fd.pth"),
    "resnet34": ResNetArch(BasicBlock, (3, 4, 6, 3), weights=_TORCHVISION + "resnet34-b627a593.pth"),
    "resnet50": ResNetArch(Bottleneck, (3, 4, 6, 3), weights=_TORCHVISION + "resnet50-0676ba61.pth"),
    "resnet101": ResNetArch(Bottleneck, (3, 4, 23, 3), weights=_TORCHVISION + "resnet101-63fe2227.pth"),
    "resnet_ibn50a": ResNetArch(Bottleneck, (3, 4, 6, 3), ibn=True, weights=_IBN_NET + "resnet50_ibn_a-d9d0bb7b.pth"),
}


class ResNet(Backbone):
    """Images to a feature map: [B, 3, H, W] -> [B, D, H/16, W/16]."""

    def __init__(self, arch: ResNetArch, stem_relu: bool = True) -> None:
        """
        Args:
            arch: an entry of `ARCHS`.
            stem_relu: keep the ReLU between the stem's BatchNorm and its max-pooling (CAP trains without it).
        """
        super().__init__()
        self.c_out = arch.width
        self.conv1 = nn.Conv2d(3, arch.width, 7, stride=2, padding=3, bias=False)
        self.bn1 = GroupedBatchNorm2d(arch.width)
        self.stem_relu = stem_relu
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        # Stride 1 in the last stage keeps a 16×8 map for 256×128 images; IBN-a leaves that stage plain.
        self.layer1 = self._stage(arch, 0, stride=1, ibn=arch.ibn)
        self.layer2 = self._stage(arch, 1, stride=2, ibn=arch.ibn)
        self.layer3 = self._stage(arch, 2, stride=2, ibn=arch.ibn)
        self.layer4 = self._stage(arch, 3, stride=1, ibn=False)
        self.apply(_initialise)

    def _stage(self, arch: ResNetArch, stage: int, stride: int, ibn: bool) -> nn.Sequential:
        width = arch.width << stage
        blocks = []
        for i in range(arch.layers[stage]):
            blocks.append(arch.block(self.c_out, width, stride if i == 0 else 1, ibn))
            self.c_out = width * arch.block.expansion
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x), relu=self.stem_relu))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
