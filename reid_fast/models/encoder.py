"""Images to L2-normalised features: backbone, pooling, BNNeck."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_fast.errors import UserError
from reid_fast.models.archs import ARCHS, PLAIN, Options
from reid_fast.models.norm import GroupedBatchNorm1d, set_bn_group

POOLINGS = ("avg", "gem")


class GeM(nn.Module):
    """Generalised-mean pooling with one trainable exponent (Radenović et al., TPAMI 2019)."""

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D] float32."""
        return x.float().clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1 / self.p)


class AveragePool(nn.Module):
    """Global average pooling."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D] float32."""
        return x.mean((2, 3), dtype=torch.float32)


class PooledAlready(nn.Module):
    """Stands where a backbone has made features itself."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, D] float32."""
        return x.float()


class Encoder(nn.Module):
    """Backbone, pooling and a BNNeck with its bias frozen at 0 (Luo et al., "Bag of Tricks", CVPRW 2019)."""

    origin: str = "random"  # what its weights were read from, in words

    def __init__(self, arch: str, pooling: str = "avg", bn_group: int = 0, options: Options = PLAIN) -> None:
        """Put the parts together, with random weights.

        Args:
            arch: a key of `ARCHS`; another name is a `UserError`.
            pooling: of the feature map, one of `POOLINGS`; a backbone that makes none has no use for it.
            bn_group: images per BatchNorm group in training; 0 takes the whole batch.
            options: of the backbone.
        """
        super().__init__()
        if pooling not in POOLINGS:
            raise UserError(f"the pooling {pooling} is not known: choose from {', '.join(POOLINGS)}")
        if arch not in ARCHS:
            raise UserError(f"--arch {arch} is not known: choose from {', '.join(ARCHS)}")
        self.backbone = ARCHS[arch].build(options)
        self.pool = PooledAlready() if self.backbone.pools else GeM() if pooling == "gem" else AveragePool()
        self.width = self.backbone.c_out
        self.neck = GroupedBatchNorm1d(self.width)
        self.neck.bias.requires_grad_(False)
        set_bn_group(self, bn_group)

    def pooled(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D] float32, before the neck."""
        return self.pool(self.backbone(images))

    def necked(self, pooled: Tensor) -> Tensor:
        """[B, D] pooled features -> [B, D] float32 after the neck, not normalised."""
        # The neck and the norm stay in float32: the memory and the clustering live on what they return.
        with torch.autocast(pooled.device.type, enabled=False):
            return self.neck(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D] float32 L2-normalised features: what is contrasted, clustered and retrieved."""
        return F.normalize(self.necked(self.pooled(images)))
