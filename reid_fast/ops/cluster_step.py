"""A step of Cluster Contrast's memory in one op: score, loss, gradient, update (arXiv 2103.11568)."""

from __future__ import annotations

from torch import Tensor
from torch.library import custom_op

from reid_fast.ops import fused
from reid_fast.ops.cluster_nce import launch, loss_and_gradient
from reid_fast.ops.memory_update import check, memory_update_ref


def cluster_step(
    x: Tensor,
    memory: Tensor,
    labels: Tensor,
    temperature: float,
    momentum: float,
    mode: str = "serial",
    *,
    update_temperature: float | None = None,
    scores: Tensor | None = None,
    normalize: bool = True,
    smoothing: float = 0.0,
    targets: Tensor | None = None,
    columns: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """`cluster_nce` against `memory`, then `memory_update` of it in place from the rows of x, as one op.

    The loss and its gradient are those of the memory before the update. On CUDA the whole step is three launches
    (while C fits one turn, see kernels/cluster_nce.py); with `smoothing` or `targets` it is its two parts.

    Args:
        update_temperature: `memory_update`'s temperature, for mode="weighted".
        scores: `memory_update`'s scores, for mode="pick".
        normalize: also says whether the update uses x/‖x‖ (true) or x itself.

    The other arguments, the result and the errors are those of `cluster_nce` and `memory_update`.
    """
    if targets is not None and smoothing:
        raise ValueError("give targets or smoothing, not both")
    check(memory, mode, update_temperature, scores)
    needs_grad = fused.wants_grad(x)
    loss, gradient = _op(
        x.detach(), memory, labels, targets, columns, weights, temperature, normalize, smoothing,
        momentum, mode, update_temperature, scores, needs_grad,
    )  # fmt: skip
    return fused.Attach.apply(x, loss, gradient) if needs_grad else loss


@custom_op("reid_fast::cluster_step", mutates_args=("memory",), device_types="cpu")
def _op(
    x: Tensor,
    memory: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    columns: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    normalize: bool,
    smoothing: float,
    momentum: float,
    rule: str,
    update_temperature: float | None,
    scores: Tensor | None,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    loss, gradient = loss_and_gradient(
        x, memory, labels, targets, columns, weights, temperature, normalize, smoothing, needs_grad
    )
    unit = fused.unit_rows(x, normalize)[0]
    memory_update_ref(memory, unit, labels, momentum, rule, update_temperature, scores)
    return loss, gradient


@fused.register_cuda(_op)
def _launch(
    x: Tensor,
    memory: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    columns: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    normalize: bool,
    smoothing: float,
    momentum: float,
    rule: str,
    update_temperature: float | None,
    scores: Tensor | None,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    if targets is None and not smoothing:
        return fused.kernels("cluster_step").step(
            x, memory, labels, temperature, momentum, rule, update_temperature, scores,
            normalize=normalize, spans=columns, weights=weights, needs_grad=needs_grad,
        )  # fmt: skip
    loss, gradient = launch(x, memory, labels, targets, columns, weights, temperature, normalize, smoothing, needs_grad)
    unit = fused.unit_rows(x, normalize)[0]
    fused.kernels("memory_update").update(memory, unit, labels, momentum, rule, update_temperature, scores)
    return loss, gradient


_op.register_fake(fused.fake_loss)
