"""Contrast between the images of one batch, student against teacher (Chen et al., ICE, arXiv 2103.16364).

These terms are B×B with B = 32 and plain PyTorch: a kernel of their own would save microseconds of a step of many
milliseconds (`python bench/ops.py` prints both). `soft_nce` still takes its softmax and gradient from `cluster_nce`,
whose dense targets are exactly what it needs. The negative cosine of CACL is `-F.cosine_similarity(z, x.detach())`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reid_fast.ops._numerics import check_int64, check_shapes, check_temperature, total, widen, without_autocast
from reid_fast.ops.cluster_nce import cluster_nce


@without_autocast
def hard_nce(x: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Pull each feature to its least similar positive, away from all other identities of the batch.

    L = (1/B) Σ_i -log( e^{g⁺/τ} / (e^{g⁺/τ} + Σ_{j: y_j≠y_i} e^{g_ij/τ}) ) with g = cosine of x_i and teacher_j and g⁺
    = min_{j: y_j=y_i} g_ij, its own image included. An image with label -1 takes no part: it is left out of the sums,
    of B, and of the gradient.

    Args:
        x: [B, D] features of any float type; the gradient flows to them alone.
        teacher: [B, D] the teacher's features of another view of the same images.
        labels: [B] int64 identities, or -1.
        temperature: τ (0.1).

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: labels of another type.
        ValueError: a temperature that is not positive, or shapes that disagree.
    """
    check_temperature(temperature)
    check_shapes("x B D, teacher B D, labels B", x, teacher, labels)
    check_int64(labels=labels)
    similarity = F.normalize(widen(x)) @ F.normalize(widen(teacher.detach())).T / temperature
    same = labels[:, None] == labels
    positive = similarity.masked_fill(~same, torch.inf).amin(1)
    others = similarity.masked_fill(same | (labels == -1), -torch.inf).logsumexp(1)
    return total(F.softplus(others - positive), labels, None)


@without_autocast
def soft_nce(x: Tensor, teacher: Tensor, weak: Tensor, temperature: float) -> Tensor:
    """Make the similarities of a strong view to the batch follow those that the teacher sees between weak views.

    L = (1/B) Σ_ij Q_ij (log Q_ij - log P_ij): KL(Q‖P), P = softmax over j of cos(x_i, teacher_j)/τ and Q the
    same of the weak views among themselves, a constant.

    Args:
        x: [B, D] features of a strong view, of any float type; the gradient flows to them alone.
        teacher: [B, D] the teacher's features of another strong view.
        weak: [B, D] the teacher's features of the weak view.
        temperature: τ (0.4).

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: a temperature that is not positive, or shapes that disagree.
    """
    check_temperature(temperature)
    check_shapes("x B D, teacher B D, weak B D", x, teacher, weak)
    teacher, weak = (F.normalize(widen(t.detach())) for t in (teacher, weak))
    log_q = (weak @ weak.T / temperature).log_softmax(1)
    q = log_q.exp()
    own = torch.arange(len(x), device=x.device)
    return cluster_nce(x, teacher, own, temperature, targets=q) + (q * log_q).sum() / max(1, len(x))
