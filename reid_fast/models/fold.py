"""An encoder for features alone: its backbone's BatchNorm lies in the weights of the convolutions."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn

from reid_fast.models.encoder import Encoder
from reid_fast.models.norm import IBN, DomainBatchNorm, GroupedBatchNorm2d
from reid_fast.ops.bias_relu import bias_relu
from reid_fast.ops.grouped_bn import add_relu


class Folded(nn.Module):
    """What is left of a BatchNorm: its bias, unless the convolution adds it, and the residual and ReLU behind it."""

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias  # a constant of the device it was made on

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """x, residual: [B, C, H, W]; x is a convolution's own and may be overwritten."""
        return add_relu(x, residual, relu) if self.bias is None else bias_relu(x, self.bias, residual, relu)


@torch.no_grad()
def folded(encoder: Encoder) -> Encoder:
    """A copy in eval mode that makes the same features with a pass less for every BatchNorm of the backbone.

    With γ, β of the norm and its running μ, σ² (of the target, where there are two domains), the weights of the
    convolution before it become w·γ/√(σ²+ε), and β - μ·γ/√(σ²+ε) its bias. Instance norms stay, and so does the neck.
    It takes milliseconds and the memory of the weights; it does not follow the encoder's training.
    """
    encoder = deepcopy(encoder).requires_grad_(False).eval()
    for module in list(encoder.backbone.modules()):
        # A BatchNorm that stands right behind a convolution is applied right behind it.
        for (_, convolution), (name, norm) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, GroupedBatchNorm2d | DomainBatchNorm | IBN):
                setattr(module, name, _fold(convolution, norm))
    return encoder


def _fold(convolution: nn.Conv2d, norm: nn.Module, first: int = 0) -> nn.Module:
    """What replaces a norm of the channels from `first` on."""
    if isinstance(norm, IBN):
        norm.BN = _fold(convolution, norm.BN, norm.IN.num_features)
        return norm
    if isinstance(norm, DomainBatchNorm):
        norm = norm.target
    assert isinstance(norm, GroupedBatchNorm2d)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = norm.bias - norm.running_mean * scale
    convolution.weight[first:] *= scale[:, None, None, None]
    if not adds_bias(convolution.weight.device):
        return Folded(bias)
    convolution.bias = nn.Parameter(torch.cat([bias.new_zeros(first), bias]), requires_grad=False)
    return Folded(None)


def adds_bias(device: torch.device) -> bool:
    """Whether convolutions add a bias on their way; cuDNN's are followed by a pass that does."""
    return device.type == "cpu"
