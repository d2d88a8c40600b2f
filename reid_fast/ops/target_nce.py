"""Contrast of features against a memory where the target is a distribution: smoothed (ICE) or dense (DCCC)."""

from __future__ import annotations

import torch
from torch import Tensor

from reid_fast.ops import _numerics
from reid_fast.ops._registration import register_loss


def inside_spans(spans: Tensor | None, logits: Tensor) -> Tensor:
    """Which columns each row's softmax runs over, [B, C] bool."""
    if spans is None:
        return torch.ones_like(logits, dtype=torch.bool)
    column = torch.arange(logits.shape[1], device=logits.device)
    return (column >= spans[:, :1]) & (column < spans[:, 1:])


def distribution(inside: Tensor, labels: Tensor, targets: Tensor | None, smoothing: float) -> Tensor:
    """q, [B, C]: what was given, or the smoothed one-hot rows."""
    if targets is not None:
        return targets.detach()
    return (1 - smoothing) * own_column(inside, labels) + smoothing * inside / inside.sum(1, keepdim=True)


def own_column(inside: Tensor, labels: Tensor) -> Tensor:
    """Where each row's label is, [B, C] bool; nowhere if that is no column of the row's softmax."""
    column = torch.arange(inside.shape[1], device=inside.device)
    return (column == labels[:, None]) & inside


def check_labels(labels: Tensor, spans: Tensor | None, C: int) -> None:
    """Refuse, on the CPU, a label that is neither a column of its row's softmax nor -1."""
    _numerics.check_rows("label", labels, C)
    if spans is not None:
        wrong = (labels != -1) & ((labels < spans[:, 0]) | (labels >= spans[:, 1]))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(f"label {int(labels[row])} of row {row} is outside the row's span {spans[row].tolist()}")


def loss_and_gradient(
    x: Tensor,
    memory: Tensor,
    labels: Tensor,
    temperature: float,
    normalize: bool,
    smoothing: float,
    targets: Tensor | None,
    spans: Tensor | None,
    weights: Tensor | None,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The op on the CPU."""
    if targets is None:
        check_labels(labels, spans, len(memory))

    def of_rows(logits: Tensor, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        inside = inside_spans(None if spans is None else spans[rows], logits)
        q = distribution(inside, labels[rows], None if targets is None else targets[rows], smoothing).to(logits.dtype)
        log_p = logits.masked_fill_(~inside, -torch.inf).log_softmax(1)
        losses = -(q * log_p.masked_fill(~inside, 0)).sum(1)
        return losses, q.sum(1, keepdim=True) * log_p.exp_() - q

    return _numerics.contrast_in_slices(of_rows, x, memory, labels, weights, temperature, normalize, needs_grad)


# The part of `cluster_nce` that is asked for by `smoothing` or `targets`: its arguments, its reference, its docstring.
target_nce = register_loss(
    __name__,
    "target_nce(Tensor x, Tensor memory, Tensor labels, float temperature, bool normalize, float smoothing, "
    "Tensor? targets, Tensor? spans, Tensor? weights, bool needs_grad) -> (Tensor, Tensor)",
    loss_and_gradient,
)
