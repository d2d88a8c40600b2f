"""Vision transformers (Dosovitskiy et al., ICLR 2021) under DeiT's and timm's names, so that their weights load.

The patch embedding is one convolution, or that behind TransReID-SSL's stem of convolutions and IBN-a (ICS; Luo et al.,
arXiv 2111.12084).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_fast.errors import UserError
from reid_fast.models.archs.arch import Arch, Backbone, Options
from reid_fast.models.norm import IBN, GroupedBatchNorm2d
from reid_fast.models.stochastic_depth import StochasticDepth

PATCH = 16  # pixels from one token to the next
_STEM = 64  # channels of the convolutional stem
_EPS = 1e-6


@dataclass(frozen=True)
class ViTArch(Arch):
    """What tells one transformer from another."""

    width: int
    depth: int = 12
    heads: int = 6
    stem: bool = False

    def build(self, options: Options) -> ViT:
        """
        Raises:
            UserError: patches do not divide the images.
        """
        H, W = options.size
        if H % PATCH or W % PATCH:
            raise UserError(
                f"a transformer cuts images into patches of {PATCH}×{PATCH} pixels, which {H}×{W} is not made of: "
                f"choose multiples of {PATCH} for --height and --width"
            )
        return ViT(self, (H // PATCH, W // PATCH), options.drop_path)


_DEIT = "https://dl.fbaipublicfiles.com/deit/"

ARCHS: dict[str, ViTArch] = {
    "vit_small": ViTArch(384, weights=_DEIT + "deit_small_patch16_224-cd65a155.pth"),
    "vit_small_ics": ViTArch(384, stem=True),
    "vit_base": ViTArch(768, heads=12, weights=_DEIT + "deit_base_patch16_224-b5f2ef4d.pth"),
    "vit_base_ics": ViTArch(768, heads=12, stem=True),
}


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, tokens: int | None = None) -> Tensor:
        """[B, n, D] -> [B, n, D], or [B, tokens, D] of the first ones."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q[:, :, :tokens], k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention, then an MLP, each on normalised tokens and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, _EPS)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, scales: Tensor | None, tokens: int | None = None) -> Tensor:
        """x: [B, n, D]; scales: [2, B, 1, 1] of the two branches; tokens: how many of the first are wanted."""
        by_attention, by_mlp = (None, None) if scales is None else scales
        x = _joined(x[:, :tokens], self.attn(self.norm1(x), tokens), by_attention)
        return _joined(x, self.mlp(self.norm2(x)), by_mlp)


def _joined(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    return x + branch if scale is None else torch.addcmul(x, branch, scale)


class PatchEmbedding(nn.Module):
    """A convolution that makes a token of each patch, behind a stem of three or none."""

    def __init__(self, width: int, stem: bool) -> None:
        super().__init__()
        self.conv: nn.ModuleDict | None = None
        if stem:
            # The places of the published sequence, in which ReLUs stand between.
            self.conv = nn.ModuleDict(
                {
                    "0": nn.Conv2d(3, _STEM, 7, stride=2, padding=3, bias=False),
                    "1": IBN(_STEM),
                    "3": nn.Conv2d(_STEM, _STEM, 3, padding=1, bias=False),
                    "4": IBN(_STEM),
                    "6": nn.Conv2d(_STEM, _STEM, 3, padding=1, bias=False),
                    "7": GroupedBatchNorm2d(_STEM),
                }
            )
        patch = PATCH // 2 if stem else PATCH
        self.proj = nn.Conv2d(_STEM if stem else 3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, n, D], row by row."""
        if self.conv is not None:
            for convolution, norm in (("0", "1"), ("3", "4"), ("6", "7")):
                x = self.conv[norm](self.conv[convolution](x), relu=True)
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(Backbone):
    """Images to features: [B, 3, H, W] -> [B, D], the class token behind the last norm."""

    pools = True

    def __init__(self, arch: ViTArch, grid: tuple[int, int], drop_path: float = 0.0) -> None:
        """
        Args:
            arch: an entry of `ARCHS`.
            grid: (H / 16, W / 16), the patches of an image.
            drop_path: see `StochasticDepth`.
        """
        super().__init__()
        self.c_out = D = arch.width
        self.grid = grid
        self.patch_embed = PatchEmbedding(D, arch.stem)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], D))
        self.blocks = nn.ModuleList(Block(D, arch.heads) for _ in range(arch.depth))
        self.norm = nn.LayerNorm(D, _EPS)
        self.drop_path = StochasticDepth(drop_path, arch.depth)
        for token in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(token, std=0.02)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        scales = self.drop_path()
        for i, block in enumerate(self.blocks):
            # Behind the last block nothing looks at another token than the first.
            tokens = 1 if i == len(self.blocks) - 1 else None
            x = block(x, None if scales is None else scales[2 * i : 2 * i + 2], tokens)
        return self.norm(x[:, 0])


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
