"""Contrast of camera proxies (CAP, arXiv 2012.10674; ICE, arXiv 2103.16364)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reid_fast.ops import _numerics
from reid_fast.ops._registration import needs_grad, register_loss


def camera_nce_ref(
    x: Tensor,
    memory: Tensor,
    memory_labels: Tensor,
    labels: Tensor,
    temperature: float,
    negatives: int = 50,
    *,
    weights: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """`camera_nce` in plain PyTorch, differentiable: the definition of the op."""
    x = _numerics.normalized(x, normalize)[0]
    similarity = x @ memory.detach().to(x.dtype).T
    positive = labels[:, None] == memory_labels
    chosen = positive | _hardest(similarity.detach(), positive, negatives)
    log_p = (similarity / temperature).masked_fill(~chosen, -torch.inf).log_softmax(1)
    losses = -log_p.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp(min=1)
    return losses.sum() / max(1, len(x)) if weights is None else losses @ weights.to(x.dtype)


def camera_nce(
    x: Tensor,
    memory: Tensor,
    memory_labels: Tensor,
    labels: Tensor,
    temperature: float,
    negatives: int = 50,
    *,
    weights: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """Pull a feature to all proxies of its identity, over all cameras, and away from the hardest proxies of others.

    ℓ_i = -(1/|P_i|) Σ_{r∈P_i} log( e^{a_r/τ} / Σ_{z∈P_i∪Q_i} e^{a_z/τ} ) with a = x_i·memory, P_i the proxies of label
    i and Q_i the `negatives` others of largest a: the lower row on ties, all of them where there are fewer. The loss is
    Σ_i w_i ℓ_i; the gradient flows to `x` alone. A feature whose label no proxy has takes no part: its ℓ_i and its
    gradient are 0. CAP's intra-camera contrast is `cluster_nce` with `spans`.

    Args:
        x: [B, D] features of any float type; L2-normalised here unless `normalize` is false.
        memory: [C, D] proxies, one per (camera, cluster).
        memory_labels: [C] int64, the cluster of each proxy.
        labels: [B] int64, the cluster of each feature.
        temperature: τ, positive.
        negatives: how many hard negatives, at least one.
        weights: [B] w; 1/B by default. `camera_weights` gives the published sum of per-camera means.

    Returns:
        The loss, a float32 scalar.

    Raises:
        TypeError: labels of another type.
        ValueError: no negatives, a temperature that is not positive, or shapes that disagree.
    """
    _numerics.check_temperature(temperature)
    if negatives < 1:
        raise ValueError(f"negatives must be at least 1, not {negatives}")
    shapes = "x B D, memory C D, memory_labels C, labels B, weights B"
    _numerics.check_shapes(shapes, x, memory, memory_labels, labels, weights)
    _numerics.check_int64(memory_labels=memory_labels, labels=labels)
    return _op(x, memory, memory_labels, labels, temperature, negatives, weights, normalize, needs_grad(x))[0]


def camera_weights(cams: Tensor) -> Tensor:
    """[B] float32: 1 / (features of the same camera), so that a weighted sum is a sum of per-camera means."""
    return 1.0 / (cams[:, None] == cams).sum(1)


def _hardest(similarity: Tensor, positive: Tensor, negatives: int) -> Tensor:
    """[B, C] bool: the `negatives` largest similarities among the rest, the lower column on ties."""
    others = similarity.masked_fill(positive, -torch.inf)
    last = others.topk(min(negatives, others.shape[1]), dim=1).values[:, -1:]
    above, tie = ~(others <= last), others == last  # NaN is above
    tied = tie & (tie.cumsum(1) <= negatives - above.sum(1, keepdim=True))
    return (above | tied) & ~positive


def _cpu(
    x: Tensor,
    memory: Tensor,
    memory_labels: Tensor,
    labels: Tensor,
    temperature: float,
    negatives: int,
    weights: Tensor | None,
    normalize: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    unit, norm = _numerics.normalized(x, normalize)
    memory = memory.to(unit.dtype)
    weights = unit.new_full((len(x),), 1 / max(1, len(x))) if weights is None else weights.to(unit.dtype)
    loss, gradient = unit.new_zeros(()), torch.zeros_like(unit if needs_grad else unit[:0, 0])
    step = _numerics.rows_at_once(len(memory))
    for rows in (slice(start, start + step) for start in range(0, len(x), step)):
        losses, by_similarity = _contrast(unit[rows] @ memory.T, memory_labels, labels[rows], temperature, negatives)
        loss += losses @ weights[rows]
        if needs_grad:
            # All but the chosen are zero: the product gathers some fifty rows of the memory a feature.
            by_product = by_similarity.mul_(weights[rows, None]).to_sparse()
            gradient[rows] = _numerics.pull_back(by_product, memory, unit[rows], None if norm is None else norm[rows])
    return loss, gradient


def _contrast(
    similarity: Tensor, memory_labels: Tensor, labels: Tensor, temperature: float, negatives: int
) -> tuple[Tensor, Tensor]:
    """ℓ [n], and its gradient by the similarities [n, C], which are overwritten."""
    positive = labels[:, None] == memory_labels
    chosen = positive | _hardest(similarity, positive, negatives)
    log_p = similarity.div_(temperature).masked_fill_(~chosen, -torch.inf).log_softmax(1)
    q = F.normalize(positive.to(log_p.dtype), p=1)
    losses = -(q * log_p.masked_fill(~positive, 0)).sum(1)
    return losses, log_p.exp_().sub_(q).mul_(positive.any(1)[:, None] / temperature)


_op = register_loss(
    __name__,
    "camera_nce(Tensor x, Tensor memory, Tensor memory_labels, Tensor labels, float temperature, int negatives, "
    "Tensor? weights, bool normalize, bool needs_grad) -> (Tensor, Tensor)",
    _cpu,
)
