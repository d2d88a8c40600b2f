"""last.pt, written beside the training: a step waits for a copy of the state, a thread for the disk."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from reid_fast import run_folder
from reid_fast.errors import Stopped


class CheckpointWriter:
    """Writes the state of a run to its folder, one checkpoint at a time.

    Keeps one copy of the state on the host: encoders, optimiser, memories; 282 MB for a ResNet-50 with Adam. It is
    pinned where the state lies on CUDA: the copy is queued behind the steps before it, and nothing waits for the GPU.

    As a context it ends when what was saved last is on the disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._copy: Any = None

    def save(self, state: dict[str, Any]) -> None:
        """Copy the state as it is now, to be written while training goes on.

        Args:
            state: tensors, numbers, strings and containers of them.

        Raises:
            UserError: the checkpoint before this one, which is waited for, could not be written.
        """
        self.wait()
        self._copy = copied(state, self._copy)
        ready = torch.cuda.current_stream().record_event() if torch.cuda.is_initialized() else None
        self._writing = self._thread.submit(self._write, self._copy, ready)

    def wait(self) -> None:
        """Wait until what was saved last is on the disk.

        Raises:
            UserError: it could not be written; the checkpoint before it is still there.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, state: dict[str, Any], ready: torch.cuda.Event | None) -> None:
        if ready is not None:
            ready.synchronize()
        run_folder.save(self._folder, state)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._thread.shutdown()  # also on an error: what is being written is written whole
        if error in (None, Stopped):  # a run that is stopped says that it is saved; another error is the one to tell
            self.wait()


def copied(value: Any, into: Any = None) -> Any:
    """A copy on the host of tensors in dicts and lists, where a dict's shapes allow it in the memory of `into`."""
    if isinstance(value, Tensor):
        if not (isinstance(into, Tensor) and into.shape == value.shape and into.dtype == value.dtype):
            into = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return into.copy_(value, non_blocking=True)
    if isinstance(value, dict):
        before = into if isinstance(into, dict) else {}
        return {key: copied(item, before.get(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    return value
