"""A step of Cluster Contrast's memory in one op: logits, loss, gradient, update (arXiv 2103.11568)."""

from __future__ import annotations

from torch import Tensor

from reid_fast.ops import _registration
from reid_fast.ops._numerics import check_temperature, normalized
from reid_fast.ops.cluster_nce import loss_and_gradient
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
) -> Tensor:
    """`cluster_nce` against `memory`, then `memory_update` of it in place from the rows of x/‖x‖, as one op.

    The loss and its gradient are those of the memory before the update. On CUDA the whole step is three launches
    (while C fits one turn, see kernels/one_target.py).

    Args:
        update_temperature: `memory_update`'s temperature, for mode="weighted".
        scores: `memory_update`'s scores, for mode="pick".

    The other arguments, the result and the errors are those of `cluster_nce` and `memory_update`: a row with label -1
    takes part in neither.
    """
    check_temperature(temperature)
    check(memory, x, labels, momentum, mode, update_temperature, scores)
    wanted = _registration.needs_grad(x)
    loss, gradient = _op(x.detach(), memory, labels, temperature, momentum, mode, update_temperature, scores, wanted)
    return _registration.Attach.apply(x, loss, gradient) if wanted else loss


def _cpu(
    x: Tensor,
    memory: Tensor,
    labels: Tensor,
    temperature: float,
    momentum: float,
    mode: str,
    update_temperature: float | None,
    scores: Tensor | None,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    loss, gradient = loss_and_gradient(x, memory, labels, temperature, True, None, None, needs_grad)
    memory_update_ref(memory, normalized(x, True)[0], labels, momentum, mode, update_temperature, scores)
    return loss, gradient


_op = _registration.register(
    __name__,
    # `mode_`: see `memory_update`.
    "cluster_step(Tensor x, Tensor(a!) memory, Tensor labels, float temperature, float momentum, str mode_, "
    "float? update_temperature, Tensor? scores, bool needs_grad) -> (Tensor, Tensor)",
    _cpu,
    _registration.fake_loss,
)
