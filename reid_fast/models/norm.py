"""BatchNorm over groups of images.

The published systems train on several GPUs with unsynchronised BatchNorm, so their statistics come from contiguous
slices of the batch, and the running averages that are kept are those of the first slice. Results depend on it
(Market-1501 loses up to 20 mAP with one large group), so the group is a number of images, not of devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_fast.models.spanned import spanned_bn
from reid_fast.ops.grouped_bn import add_relu, grouped_bn
from reid_fast.ranks import Split


class _GroupedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose training statistics are taken over contiguous groups of `group` images (0: the whole batch)."""

    group: int = 0
    split: Split | None = None  # where the ranks that hold a group share its statistics
    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """BatchNorm of x, + residual, behind a ReLU if `relu`.

        x, residual: [B, C, ...], any memory format; the last group is shorter when `group` does not divide B.
        """
        self._check_input_dim(x)
        if self.training:
            return _train([self], x, residual, relu)
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return add_relu(y, residual, relu)


def _train(domains: Sequence[_GroupedBatchNorm], x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """BatchNorm in training of a batch whose equal parts belong to the norms, in turn."""
    for norm in domains:
        norm.num_batches_tracked.add_(1)
    if (split := domains[0].split) is not None:
        parts = zip(x.chunk(len(domains)), domains, strict=True)
        return add_relu(torch.cat([_spanned(norm, part, split) for part, norm in parts]), residual, relu)
    return grouped_bn(
        x,
        [norm.weight for norm in domains],
        [norm.bias for norm in domains],
        [norm.running_mean for norm in domains],
        [norm.running_var for norm in domains],
        domains[0].group,
        domains[0].momentum,
        domains[0].eps,
        residual=residual,
        relu=relu,
    )


def _spanned(norm: _GroupedBatchNorm, x: Tensor, split: Split) -> Tensor:
    running = norm.running_mean, norm.running_var
    return spanned_bn(x, norm.weight, norm.bias, *running, norm.group, norm.momentum, norm.eps, split)


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
        self.BN: nn.Module = GroupedBatchNorm2d(channels - first)

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """x: [B, C, H, W]; with `relu` behind a ReLU."""
        first = self.IN.num_features
        instance, batch = x.split([first, x.shape[1] - first], dim=1)
        normed = torch.cat([self.IN(instance.contiguous()), self.BN(batch.contiguous())], dim=1)
        return add_relu(normed, None, relu)


def set_bn_group(module: nn.Module, group: int) -> None:
    """Let every BatchNorm below `module` take its training statistics over `group` images (0: the whole batch)."""
    if group < 0:
        raise ValueError(f"the BatchNorm group must be 0 (the whole batch) or a number of images, not {group}")
    for layer in module.modules():
        if isinstance(layer, _GroupedBatchNorm):
            layer.group = group


def share_groups(module: nn.Module, split: Split) -> None:
    """Let every BatchNorm below `module` take a group's statistics over all ranks that hold images of it."""
    for layer in module.modules():
        if isinstance(layer, _GroupedBatchNorm):
            layer.split = split


class DomainBatchNorm(nn.Module):
    """BatchNorm with parameters and statistics for each of two domains (Chang et al., CVPR 2019).

    In training the first half of a batch is the source's and the second the target's; evaluation is on the target.
    """

    def __init__(self, norm: _GroupedBatchNorm) -> None:
        """Two copies of `norm`."""
        super().__init__()
        self.source, self.target = norm, deepcopy(norm)

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """x: [2B, C, ...] in training, [B, C, ...] of the target in evaluation; the rest as in a grouped BatchNorm."""
        if not self.training:
            return self.target(x, residual, relu)
        return _train([self.source, self.target], x, residual, relu)


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
