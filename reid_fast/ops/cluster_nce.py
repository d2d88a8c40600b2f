"""Contrast of features against a memory of cluster prototypes (methods.md §2 and §12.3, primitives P1 and P3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cluster_nce_ref(
    x: Tensor, memory: Tensor, labels: Tensor, temperature: float, *, normalize: bool = True
) -> Tensor:
    """Cross entropy of the cosine scores between features and prototypes: the loss of Cluster Contrast.

    L = (1/B) Σ_i -log softmax(x_i Cᵀ / τ)[y_i]; the gradient flows to `x` alone.

    Args:
        x: [B, D] features of any float type; L2-normalised here unless `normalize` is false.
        memory: [C, D] prototypes.
        labels: [B] int64, the prototype of each feature.
        temperature: τ.
        normalize: divide each row of `x` by max(‖x‖, 1e-12) first.

    Returns:
        The mean loss, a float32 scalar.
    """
    x = x.float()
    if normalize:
        x = F.normalize(x)
    return F.cross_entropy(x @ memory.detach().float().T / temperature, labels)


cluster_nce = cluster_nce_ref
