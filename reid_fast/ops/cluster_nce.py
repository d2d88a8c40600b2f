"""Contrast of features against a memory of cluster prototypes (Cluster Contrast, arXiv 2103.11568)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from reid_fast.ops import fused

_SCORES = 1 << 22  # scores that the CPU holds at once


def cluster_nce_ref(
    x: Tensor,
    memory: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    normalize: bool = True,
    smoothing: float = 0.0,
    targets: Tensor | None = None,
    columns: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """`cluster_nce` in plain PyTorch, differentiable: the definition of the op."""
    x = fused.unit_rows(x, normalize)[0]
    scores = x @ memory.detach().to(x.dtype).T / temperature
    inside = _inside(columns, scores)
    q = _targets(inside, labels, targets, smoothing).to(x.dtype)
    log_p = scores.masked_fill(~inside, -torch.inf).log_softmax(dim=1).masked_fill(~inside, 0)
    losses = -(q * log_p).sum(dim=1)
    return losses.mean() if weights is None else losses @ weights.to(x.dtype)


def cluster_nce(
    x: Tensor,
    memory: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    normalize: bool = True,
    smoothing: float = 0.0,
    targets: Tensor | None = None,
    columns: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross entropy of the scores between features and prototypes.

    L = Σ_i w_i Σ_c -q_ic log p_ic with p_i = softmax over c of x_i·memory_c / τ; the gradient flows to `x` alone and is
    computed with the loss. On CUDA no [B, C] array exists: what is kept of the scores has 32 MiB at most, in L2.
    Products are taken there in the lower of the two types, and accumulated in float32. Two runs give the same bits.

    Args:
        x: [B, D] features of any float type; L2-normalised here unless `normalize` is false.
        memory: [C, D] prototypes, float32 or bfloat16.
        labels: [B] int64, the column of each feature's prototype; inside its span if `columns` is given.
        temperature: τ.
        normalize: divide each row of `x` by max(‖x‖, 1e-12) first.
        smoothing: ε of q = (1-ε)·onehot(label) + ε/n over the n columns of the row's softmax (ICE: 0.1).
        targets: [B, C] constant q instead of labels (DCCC's teacher), zero outside the spans. Then `labels`
            is unused.
        columns: [B, 2] int64, the span [start, stop) of each row's softmax (CAP: the proxies of its camera).
        weights: [B] w; 1/B by default.

    Returns:
        The loss, a float32 scalar (float64 for float64 features).

    Raises:
        ValueError: `targets` together with `smoothing`.
    """
    if targets is not None and smoothing:
        raise ValueError("give targets or smoothing, not both")
    loss, _ = _op(x, memory, labels, targets, columns, weights, temperature, normalize, smoothing, fused.wants_grad(x))
    return loss


@fused.without_autocast
@fused.full_precision
def loss_and_gradient(
    x: Tensor,
    memory: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    columns: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    normalize: bool,
    smoothing: float,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The op on the CPU, where B×C scores are held for some rows at a time."""
    unit, norm = fused.unit_rows(x, normalize)
    memory = memory.to(unit.dtype)
    weights = unit.new_full((len(x),), 1 / len(x)) if weights is None else weights.to(unit.dtype)
    loss, gradient = unit.new_zeros(()), torch.empty_like(unit if needs_grad else unit[:0, 0])
    step = max(1, _SCORES // max(1, len(memory)))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        own, q, span, divisor = (None if t is None else t[rows] for t in (unit, targets, columns, norm))
        part, by_score = _of_rows(own, memory, labels[rows], q, span, weights[rows], temperature, smoothing)
        loss += part
        if needs_grad:
            gradient[rows] = fused.pull_back(by_score, memory, own, divisor)
    return loss, gradient


def _of_rows(
    unit: Tensor,
    memory: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    columns: Tensor | None,
    weights: Tensor,
    temperature: float,
    smoothing: float,
) -> tuple[Tensor, Tensor]:
    """The loss of some rows, and its gradient by their products with the memory."""
    scores = (unit @ memory.T).div_(temperature)
    if targets is None and columns is None and not smoothing:
        losses = scores.logsumexp(1) - scores.gather(1, labels[:, None])[:, 0]
        by_score = scores.softmax(1).scatter_add_(1, labels[:, None], -torch.ones_like(unit[:, :1]))
    else:
        inside = _inside(columns, scores)
        q = _targets(inside, labels, targets, smoothing).to(unit.dtype)
        log_p = scores.masked_fill_(~inside, -torch.inf).log_softmax(1)
        losses = -(q * log_p.masked_fill(~inside, 0)).sum(1)
        by_score = q.sum(1, keepdim=True) * log_p.exp_() - q
    return losses @ weights, by_score.mul_((weights / temperature)[:, None])


def _inside(columns: Tensor | None, scores: Tensor) -> Tensor:
    """Which columns each row's softmax runs over, [B, C]."""
    if columns is None:
        return torch.ones_like(scores, dtype=torch.bool)
    column = torch.arange(scores.shape[1], device=scores.device)
    return (column >= columns[:, :1]) & (column < columns[:, 1:])


def _targets(inside: Tensor, labels: Tensor, targets: Tensor | None, smoothing: float) -> Tensor:
    """q, [B, C]: what was given, or the smoothed one-hot rows."""
    if targets is not None:
        return targets.detach()
    column = torch.arange(inside.shape[1], device=inside.device)
    return (1 - smoothing) * (column == labels[:, None]) + smoothing * inside / inside.sum(1, keepdim=True)


def launch(
    x: Tensor,
    memory: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    columns: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    normalize: bool,
    smoothing: float,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The op on CUDA."""
    common = {"normalize": normalize, "spans": columns, "weights": weights, "needs_grad": needs_grad}
    if targets is None and not smoothing:
        return fused.kernels("cluster_nce").contrast(x, memory, labels, temperature, **common)
    contrast = fused.kernels("soft_targets").contrast
    return contrast(x, memory, labels, targets, temperature, smoothing=smoothing, **common)


_op = custom_op("reid_fast::cluster_nce", mutates_args=(), device_types="cpu")(loss_and_gradient)
fused.register_loss(_op, launch)
