"""Contrast of features against a memory of cluster prototypes (Cluster Contrast, arXiv 2103.11568)."""

from __future__ import annotations

import torch
from torch import Tensor

from reid_fast.ops import _numerics, target_nce
from reid_fast.ops._registration import needs_grad, register_loss


def cluster_nce_ref(
    x: Tensor,
    memory: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    normalize: bool = True,
    smoothing: float = 0.0,
    targets: Tensor | None = None,
    spans: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """`cluster_nce` in plain PyTorch, differentiable: the definition of the op.

    A row with label -1 takes no part; any other label outside its row's columns makes the loss NaN, as on CUDA.
    """
    x = _numerics.normalized(x, normalize)[0]
    logits = x @ memory.detach().to(x.dtype).T / temperature
    inside = target_nce.inside_spans(spans, logits)
    q = target_nce.distribution(inside, labels, targets, smoothing).to(x.dtype)
    log_p = logits.masked_fill(~inside, -torch.inf).log_softmax(dim=1).masked_fill(~inside, 0)
    losses = -(q * log_p).sum(dim=1)
    if targets is None:
        known = target_nce.own_column(inside, labels).any(dim=1) | (labels == -1)
        losses = losses.masked_fill(~known, torch.nan)
    return _numerics.total(losses, labels, weights)


def cluster_nce(
    x: Tensor,
    memory: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    normalize: bool = True,
    smoothing: float = 0.0,
    targets: Tensor | None = None,
    spans: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross entropy of the logits of features against prototypes.

    L = Σ_i w_i Σ_c -q_ic log p_ic with p_i = softmax over c of x_i·memory_c / τ; the gradient flows to `x` alone and is
    computed with the loss. On CUDA no [B, C] array exists: what is kept of the logits has 32 MiB at most, in L2.
    Products are taken there in the lower of the two types, under autocast in its type, and accumulated in float32. Two
    runs give the same bits.
    A row with label -1 takes no part: its gradient is 0, and where no row is left, so is the loss.

    Args:
        x: [B, D] features of any float type; L2-normalised here unless `normalize` is false.
        memory: [C, D] prototypes, float32 or bfloat16.
        labels: [B] int64, the column of each feature's prototype, inside its span if `spans` is given; or -1.
        temperature: τ, positive.
        normalize: divide each row of `x` by max(‖x‖, 1e-12) first.
        smoothing: ε of q = (1-ε)·onehot(label) + ε/n over the n columns of the row's softmax (ICE: 0.1).
        targets: [B, C] constant q instead of labels (DCCC's teacher), zero outside the spans. Then `labels` only
            tells which rows take part.
        spans: [B, 2] int64, the columns [start, stop) of each row's softmax (CAP: the proxies of its camera); what lies
            outside [0, C) is cut off.
        weights: [B] w; by default 1/(rows that take part).

    Returns:
        The loss, a float32 scalar (float64 for float64 features).

    Raises:
        TypeError: labels or spans of another type.
        ValueError: `targets` together with `smoothing`, a temperature that is not positive, shapes that disagree, or
            another label outside the row's columns. CUDA is not waited for to find the last: the loss is NaN there.
    """
    _numerics.check_temperature(temperature)
    _numerics.check_shapes(
        "x B D, memory C D, labels B, targets B C, spans B 2, weights B", x, memory, labels, targets, spans, weights
    )
    _numerics.check_int64(labels=labels, spans=spans)
    if targets is not None and smoothing:
        raise ValueError("give targets or smoothing, not both")
    common, wanted = (x, memory, labels, temperature, normalize), needs_grad(x)
    if targets is None and not smoothing:
        return _op(*common, spans, weights, wanted)[0]
    return target_nce.target_nce(*common, smoothing, targets, spans, weights, wanted)[0]


def loss_and_gradient(
    x: Tensor,
    memory: Tensor,
    labels: Tensor,
    temperature: float,
    normalize: bool,
    spans: Tensor | None,
    weights: Tensor | None,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The op on the CPU."""
    if spans is not None:
        return target_nce.loss_and_gradient(
            x, memory, labels, temperature, normalize, 0.0, None, spans, weights, needs_grad
        )

    _numerics.check_rows("label", labels, len(memory))

    def of_rows(logits: Tensor, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        own = labels[rows, None]
        losses = logits.logsumexp(1) - logits.gather(1, own)[:, 0]
        return losses, logits.softmax(1).scatter_add_(1, own, -torch.ones_like(logits[:, :1]))

    return _numerics.contrast_in_slices(of_rows, x, memory, labels, weights, temperature, normalize, needs_grad)


_op = register_loss(
    __name__,
    "cluster_nce(Tensor x, Tensor memory, Tensor labels, float temperature, bool normalize, Tensor? spans, "
    "Tensor? weights, bool needs_grad) -> (Tensor, Tensor)",
    loss_and_gradient,
)
