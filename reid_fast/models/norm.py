"""BatchNorm over groups of images.

The published systems train on several GPUs with unsynchronised BatchNorm, so their statistics come from contiguous
slices of the batch, and the running averages that are kept are those of the first slice. Results depend on it
(Market-1501 loses up to 20 mAP with one large group), so the group is a number of images, not of devices.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _GroupedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose training statistics are taken over contiguous groups of `group` images (0: the whole batch)."""

    group: int = 0
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, ...], any memory format; the last group is shorter when `group` does not divide B."""
        self._check_input_dim(x)
        if not self.training:
            return self._normalise(x, self.running_mean, self.running_var)
        self.num_batches_tracked.add_(1)
        if not 0 < self.group < len(x):
            return self._normalise(x, self.running_mean, self.running_var)
        first, *others = x.split(self.group)
        kept = self._normalise(first, self.running_mean, self.running_var)
        return torch.cat([kept, *(self._normalise(part, None, None) for part in others)])

    def _normalise(self, x: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)


class GroupedBatchNorm1d(_GroupedBatchNorm, nn.BatchNorm1d):
    """[B, C]."""


class GroupedBatchNorm2d(_GroupedBatchNorm, nn.BatchNorm2d):
    """[B, C, H, W]."""


class IBN(nn.Module):
    """IBN-a: instance normalisation of half the channels, BatchNorm of the rest (Pan et al., ECCV 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first = channels // 2
        self.IN = nn.InstanceNorm2d(first, affine=True)
        self.BN = GroupedBatchNorm2d(channels - first)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]."""
        instance, batch = x.split([self.IN.num_features, self.BN.num_features], dim=1)
        return torch.cat([self.IN(instance.contiguous()), self.BN(batch.contiguous())], dim=1)


def set_bn_group(module: nn.Module, group: int) -> None:
    """Let every BatchNorm below `module` take its training statistics over `group` images (0: the whole batch)."""
    if group < 0:
        raise ValueError(f"the BatchNorm group must be 0 (the whole batch) or a number of images, not {group}")
    for layer in module.modules():
        if isinstance(layer, _GroupedBatchNorm):
            layer.group = group


class DomainBatchNorm(nn.Module):
    """BatchNorm with parameters and statistics for each of two domains (Chang et al., CVPR 2019).

    In training the first half of a batch is the source's and the second the target's; evaluation is on the target.
    """

    def __init__(self, norm: _GroupedBatchNorm) -> None:
        """Two copies of `norm`."""
        super().__init__()
        self.source, self.target = norm, deepcopy(norm)

    def forward(self, x: Tensor) -> Tensor:
        """x: [2B, C, ...] in training, [B, C, ...] of the target in evaluation."""
        if not self.training:
            return self.target(x)
        source, target = x.chunk(2)
        return torch.cat([self.source(source), self.target(target)])


def split_domains(module: nn.Module) -> None:
    """Turn every BatchNorm below `module` into a `DomainBatchNorm`, in place."""
    for name, child in module.named_children():
        if isinstance(child, _GroupedBatchNorm):
            setattr(module, name, DomainBatchNorm(child))
        else:
            split_domains(child)


def target_state(module: nn.Module) -> dict[str, Tensor]:
    """The state that a module without domains needs to compute as this one does in evaluation."""
    state = module.state_dict()
    for name, layer in module.named_modules():
        if isinstance(layer, DomainBatchNorm):
            state = {
                key.replace(f"{name}.target.", f"{name}."): tensor
                for key, tensor in state.items()
                if not key.startswith(f"{name}.source.")
            }
    return state
