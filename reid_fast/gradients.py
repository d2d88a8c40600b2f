"""The gradient of a step on every rank, by torch's DistributedDataParallel."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reid_fast.data.images import Batch
from reid_fast.ranks import Ranks

Loss = Callable[[Batch], Tensor]


def with_shared_gradients(method: nn.Module, loss: Loss, ranks: Ranks) -> Loss:
    """`loss`, whose `backward` gives every rank the gradient of the whole step.

    Args:
        method: its parameters that require gradients get them in every step.
        loss: of a batch, the same on all ranks; each goes back through its own images, see `Split.gather`.
        ranks: connected.
    """
    if ranks.group is None:
        return loss
    with warnings.catch_warnings():
        # The name that replaces it is not known to the torch before 2.13.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        step = DistributedDataParallel(
            _Step(method, loss),
            process_group=ranks.group,
            broadcast_buffers=False,  # they change alike, or, as running statistics, are adopted once an epoch
            gradient_as_bucket_view=True,
        )
    # After its first backward DistributedDataParallel puts its buckets into the order in which gradients came. Where an
    # element lies in a bucket decides in which order three ranks are summed: so that a resumed run has the same bits,
    # this happens here, before the first step of any run.
    step(None).backward()
    method.zero_grad()
    return step


class _Step(nn.Module):
    """A step as a module: DistributedDataParallel wraps nothing else."""

    def __init__(self, method: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.method, self._loss = method, loss

    def forward(self, batch: Batch | None) -> Tensor:
        """The loss; of no batch one whose backward meets the parameters from the last to the first, as a network's."""
        if batch is not None:
            return self._loss(batch)
        total = torch.zeros((), device=next(self.method.parameters()).device)
        for parameter in self.method.parameters():
            if parameter.requires_grad:
                total = total + 0 * parameter.sum()
        return total
