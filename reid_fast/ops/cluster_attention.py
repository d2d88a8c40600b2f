"""Attention among a cluster's members, and the prototype it weighs (DOI 10.1007/s13042-023-01997-1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reid_fast.ops._numerics import check_int64, check_shapes, widen
from reid_fast.ops._registration import register


def cluster_attention(q: Tensor, k: Tensor, x: Tensor, offsets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """How much attention each member of a cluster receives from the others, and the prototypes that follow.

    A^a = softmax over j ≠ i of scale · q^a_i·k^a_j, i and j of one cluster of n members; w_j = (1/hn) Σ_a Σ_i
    A^a_ij, which sums to 1 over the cluster; its prototype is Σ_j w_j x_j, L2-normalised. A sole member has w =
    1. All are differentiable. On CUDA the n×n logits never reach memory; the weighted sum is plain PyTorch.

    Args:
        q, k: [h, N, D] projections, one block of rows a cluster; usually L2-normalised rows.
        x: [N, F] the members' features.
        offsets: [clusters + 1] int64: cluster c owns the rows offsets[c]..offsets[c+1]-1, at least one.
        scale: scalar tensor, the inverse temperature.

    Returns:
        The weights w, [N] float32, and the prototypes, [clusters, F] float32.

    Raises:
        TypeError: offsets of another type.
        ValueError: shapes that disagree, or, on the CPU, offsets that do not ascend from 0 to N; on CUDA, where nothing
            waits to check them, nothing outside is read either.
    """
    check_shapes("q h N D, x N F", q, x)
    weights = received_attention(q, k, offsets, scale)
    # A compiled graph cannot look at values.
    looks = offsets.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and (offsets[0] != 0 or offsets[-1] != len(x)):
        raise ValueError(f"offsets must ascend from 0 to {len(x)}: each row belongs to a cluster")
    sums = torch.segment_reduce(weights[:, None] * widen(x), "sum", lengths=offsets.diff(), axis=0)
    return weights, F.normalize(sums)


def received_attention(q: Tensor, k: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
    """The weights w of `cluster_attention` alone, [N] float32: 1 - n·w is a member's dispersion, high for the hardest.

    Here clusters may be empty, so that `offsets` can have a fixed length where the number of clusters lies on the GPU.
    Rows in front of offsets[0] and from offsets[-1] on take no part: their w is 0. Errors as there.
    """
    check_shapes("q h N D, k h N D, offsets c, scale", q, k, offsets, scale)
    check_int64(offsets=offsets)
    if not len(offsets):
        raise ValueError("offsets must be [clusters + 1], not []")
    sizes = _sizes(offsets, q.shape[1])
    received, _ = _op(q, k, scale, offsets)
    return torch.where(sizes == 1, 1.0, received / (len(q) * sizes.clamp(min=1)))


def received_attention_ref(q: Tensor, k: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
    """`received_attention` in plain PyTorch, differentiable: the definition."""
    weights = (_sizes(offsets, q.shape[1]) == 1).to(widen(q).dtype)
    for rows, attention in _by_size(q, k, scale, offsets):
        weights = weights.index_put((rows,), attention.sum((0, 2)) / (len(q) * rows.shape[1]))
    return weights


def _sizes(offsets: Tensor, N: int) -> Tensor:
    """[N]: the members of each row's cluster, 0 where the row has none."""
    rows = torch.arange(N, dtype=offsets.dtype, device=offsets.device)
    return F.pad(offsets.diff(), (1, 1))[torch.bucketize(rows, offsets.contiguous(), right=True)]


def _by_size(q: Tensor, k: Tensor, scale: Tensor, offsets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Clusters of equal size n > 1 together: (rows [m, n], attention [h, m, n, n])."""
    q, k, sizes = widen(q), widen(k), offsets.diff()
    for n in sizes.unique().tolist():
        if n > 1:
            rows = offsets[:-1][sizes == n][:, None] + torch.arange(n, device=q.device)
            logits = scale * (q[:, rows] @ k[:, rows].mT)
            myself = torch.eye(n, dtype=torch.bool, device=q.device)
            yield rows, logits.masked_fill(myself, -torch.inf).softmax(-1)


def _cpu(q: Tensor, k: Tensor, scale: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_a Σ_i A^a_ij [N], and what backward needs of the softmax ([h, N]; none on the CPU)."""
    # Each of them, before their differences, which may leave 64 bits.
    if (offsets < 0).any() or (offsets > q.shape[1]).any() or (offsets.diff() < 0).any():
        raise ValueError(f"offsets must ascend within 0..{q.shape[1]}")
    received = widen(q).new_zeros(q.shape[1])
    for rows, attention in _by_size(q, k, scale, offsets):
        received[rows] = attention.sum((0, 2))
    return received, received.new_empty(0)


def _backward_cpu(
    by_received: Tensor, q: Tensor, k: Tensor, scale: Tensor, offsets: Tensor, log_z: Tensor
) -> tuple[Tensor, Tensor]:
    by_q, by_k = torch.zeros_like(widen(q)), torch.zeros_like(widen(k))
    for rows, attention in _by_size(q, k, scale, offsets):
        push = by_received[rows][:, None, :]
        by_logits = attention * (push - (attention * push).sum(-1, keepdim=True)) * scale
        by_q[:, rows] = by_logits @ k[:, rows].to(by_logits.dtype)
        by_k[:, rows] = by_logits.mT @ q[:, rows].to(by_logits.dtype)
    return by_q, by_k


def _fake(q: Tensor, k: Tensor, scale: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    received = widen(q).new_empty(q.shape[1])
    return received, received.new_empty(q.shape[:2] if q.is_cuda else (0,))


def _backward_fake(by_received: Tensor, q: Tensor, k: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(widen(q)), torch.empty_like(widen(k))


_op = register(
    __name__,
    "received_attention(Tensor q, Tensor k, Tensor scale, Tensor offsets) -> (Tensor, Tensor)",
    _cpu,
    _fake,
)
_backward = register(
    __name__,
    "received_attention_backward(Tensor by_received, Tensor q, Tensor k, Tensor scale, Tensor offsets, Tensor log_z) "
    "-> (Tensor, Tensor)",
    _backward_cpu,
    _backward_fake,
)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, by_received: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, scale, offsets, log_z = ctx.saved_tensors
    by_q, by_k = _backward(by_received, q, k, scale, offsets, log_z)
    by_scale = (q * by_q).sum() / scale  # every logit is scale times a product with q
    return by_q.to(q.dtype), by_k.to(k.dtype), by_scale.to(scale.dtype), None


_op.register_autograd(_differentiate, setup_context=_keep)
