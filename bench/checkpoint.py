"""A checkpoint of the state of ResNet-50 and Adam: how long training stands still, beside one that it waits for."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import Row

from reid_fast import run_folder
from reid_fast.checkpoint import CheckpointWriter
from reid_fast.models.encoder import Encoder

CLUSTERS = 2000


def checkpoint(smoke: bool) -> list[Row]:
    """One row: seconds that a save takes from the training, and that it is under way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    runs = 3 if smoke else 7
    state = _state("resnet18_half" if smoke else "resnet50", device)
    with tempfile.TemporaryDirectory() as name, CheckpointWriter(Path(name)) as writer:
        folder = Path(name)
        ours, written = _spread(lambda: writer.save(state), writer.wait, runs)
        _check(run_folder.load(folder), state)
        waited_for, _ = _spread(lambda: run_folder.save(folder, state), lambda: None, runs)
        size = (folder / "last.pt").stat().st_size
        steps = _Steps(device, seconds=2 * written["seconds"])
        alone = steps.timed(lambda: None, runs)
        beside = steps.timed(lambda: writer.save(state), runs, writer.wait)
        between = steps.timed(lambda: run_folder.save(folder, state), runs)
    return [
        {
            "stage": "checkpoint",
            "device": device.type,
            "megabytes": round(size / 1e6),
            "ours": ours,
            "written": written,
            "waited_for": waited_for,
            "faster": round(waited_for["seconds"] / ours["seconds"], 1),
            # With steps going on: on the CPU the thread and the steps share its cores.
            "steps": alone,
            "steps_and_ours": beside,
            "steps_and_waited_for": between,
        }
    ]


def _state(arch: str, device: torch.device) -> dict[str, Any]:
    """Encoder, optimiser and prototypes after a step."""
    encoder = Encoder(arch).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(encoder.parameters(), fused=True)
    for weight in encoder.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    rows = torch.randn(CLUSTERS, encoder.width, device=device)
    return {"method": {**encoder.state_dict(), "memory": rows}, "optimizer": optimizer.state_dict()}


def _check(loaded: dict[str, Any], state: dict[str, Any]) -> None:
    same = [torch.equal(tensor, state["method"][name].cpu()) for name, tensor in loaded["method"].items()]
    if not all(same) or len(same) != len(state["method"]):
        raise SystemExit("checkpoint: what was written is not the state")


class _Steps:
    """Products that keep the device busy for a number of seconds, in place of the steps of a training."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self._left = torch.randn(1024, 1024, device=device)
        self._count = 8
        self._count = max(8, int(seconds / self.timed(lambda: None, 3)["seconds"] * 8))

    def timed(self, save: Callable[[], None], runs: int, settle: Callable[[], None] = lambda: None) -> Row:
        return _spread(lambda: self._run(save), settle, runs)[0]

    def _run(self, save: Callable[[], None]) -> None:
        save()
        for _ in range(self._count):
            torch.mm(self._left, self._left)
        if self._left.is_cuda:
            torch.cuda.synchronize()


def _spread(work: Callable[[], None], settle: Callable[[], None], runs: int) -> tuple[Row, Row]:
    """The seconds of `work`, and those until `settle` returns too: median, spread and number, after one to warm up."""
    taken, settled = [], []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
        settle()
        settled.append(time.perf_counter() - start)
    return _row(taken[1:]), _row(settled[1:])


def _row(seconds: list[float]) -> Row:
    median, least, most = (round(of(seconds), 4) for of in (statistics.median, min, max))
    return {"seconds": median, "min": least, "max": most, "n": len(seconds)}
