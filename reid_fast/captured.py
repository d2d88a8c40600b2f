"""Training steps as one CUDA graph: for batches so small that the GPU waits for the launches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from reid_fast.data.images import Batch
from reid_fast.errors import UserError
from reid_fast.ranks import Ranks

# Steps that run as ever before a capture: what they make on first use, such as the optimiser's state, must be there.
WARM_UP = 3

Work = Callable[[], Tensor]


def check_capturable(device: torch.device, amp: torch.dtype | None, ranks: Ranks) -> None:
    """
    Raises:
        UserError: steps cannot be captured there, in that precision, or by several ranks.
    """
    if ranks.group is not None:
        raise UserError("--cuda-graph is for one process: leave it out, or start without torchrun")
    if device.type != "cuda":
        raise UserError(f"--cuda-graph needs a CUDA device, not {device.type}: leave it out")
    if amp is torch.float16:
        raise UserError(
            "--cuda-graph does not go with float16, whose loss scaler looks at every gradient, and this GPU has no "
            "bfloat16: leave out --cuda-graph or --amp"
        )


class Recorder(Protocol):
    """How work is captured."""

    def eager(self, work: Work) -> Tensor:
        """Run the work, as a preparation for its capture."""

    def capture(self, work: Work) -> Work:
        """Record the work without running it: each call of the result runs it and returns the same tensor."""


class CudaGraphs:
    """Captures CUDA graphs."""

    def eager(self, work: Work) -> Tensor:
        """Run the work on a stream beside the current one, as captures do."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), warnings.catch_warnings():
            # PyTorch warns of a capturable optimiser that steps uncaptured.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable")
            out = work()
        torch.cuda.current_stream().wait_stream(stream)
        return out

    def capture(self, work: Work) -> Work:
        """Capture the work. Meanwhile other threads may use CUDA, such as one that decodes or saves."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = work()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


class CapturedStep:
    """The steps of one epoch: a few run as ever, one is captured, and replays of that are the others.

    A replay repeats the launches with the addresses and the host's numbers of the capture. So the step must not look at
    values on the device, and what it changes must stay where it is. It is captured again where one of the host's
    numbers has changed, and every epoch, whose memory has other rows.
    """

    def __init__(
        self, step: Callable[[Batch], Tensor], constants: Callable[[Batch], Hashable], recorder: Recorder
    ) -> None:
        """
        Args:
            step: forward, backward, the optimiser and what follows, to the loss.
            constants: the host's numbers in the step of a batch that change within the epoch.
            recorder: captures.
        """
        self._step, self._constants, self._recorder = step, constants, recorder
        self._key: Hashable = None
        self._eager = 0
        self._replay: Work | None = None
        self._batch: Batch  # whose tensors the captured step reads

    def __call__(self, batch: Batch) -> Tensor:
        """Take the step; its loss."""
        key = (*(tensor.shape for tensor in batch.tensors), self._constants(batch))
        if key != self._key:
            self._key, self._eager, self._replay = key, 0, None
        if self._eager < WARM_UP:
            self._eager += 1
            return self._recorder.eager(lambda: self._step(batch))
        if self._replay is None:
            self._batch = batch.with_tensors([tensor.clone() for tensor in batch.tensors])
            self._replay = self._recorder.capture(lambda: self._step(self._batch))
        else:
            torch._foreach_copy_(self._batch.tensors, batch.tensors)
        return self._replay().clone()  # the next replay writes over it
