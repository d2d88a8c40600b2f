"""The training step of Cluster Contrast: the engine's ops beside the published form, alone and behind the encoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from report import Row, ratio, timed
from torch import Tensor

from reid_fast import ops
from reid_fast.captured import WARM_UP, CapturedStep, CudaGraphs
from reid_fast.data.images import Batch
from reid_fast.device import amp_dtype
from reid_fast.models.encoder import Encoder

TEMPERATURE, MOMENTUM, INSTANCES = 0.05, 0.1, 16


class Sizes(NamedTuple):
    """A training step."""

    arch: str
    size: tuple[int, int]
    B: int
    C: int


def step(smoke: bool) -> list[Row]:
    """Rows for the memory's part at the paper's sizes, and for whole steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    runs = 3 if smoke else 15
    sizes = [(64, 100, 256)] if smoke else [(64, 100, 256), (256, 700, 2048), (256, 2000, 2048)]
    rows = [_memory_part(*size, device, runs) for size in sizes]
    if device.type == "cpu" or smoke:
        return [*rows, _whole_step(Sizes("resnet18_half", (64, 32), 64, 100), device, runs)]
    paper = Sizes("resnet50", (256, 128), 256, 2000)
    return [*rows, _whole_step(paper, device, runs), _captured_step(paper._replace(B=32), device, runs)]


def _memory_part(B: int, C: int, D: int, device: torch.device, runs: int) -> Row:
    """Loss, gradient and memory update from given features."""
    x, memory, labels = _problem(B, C, D, device)
    ours, theirs = (_memory_step(form, x, memory, labels) for form in (_fused, _published))
    _check("step", ours(), theirs())
    _, fast = timed(ours, runs)
    _, slow = timed(theirs, runs)
    return {
        "stage": "step, memory part",
        "B": B,
        "C": C,
        "D": D,
        "device": device.type,
        "ours": fast,
        "published": slow,
        "faster": round(slow["seconds"] / fast["seconds"], 2),
        # Logits and gradient are a product each; features, gradient, memory and the touched rows move once.
        "operations": 4 * B * C * D,
        "bytes": 4 * D * (2 * B + 2 * C + 2 * B // INSTANCES),
    }


def _memory_step(form: Callable[..., Tensor], x: Tensor, memory: Tensor, labels: Tensor) -> Callable[[], tuple]:
    def run() -> tuple[Tensor, Tensor, Tensor]:
        leaf, rows = x.clone().requires_grad_(), memory.clone()
        loss = form(leaf, rows, labels)
        return loss.detach(), leaf.grad, rows

    return run


def _whole_step(sizes: Sizes, device: torch.device, runs: int) -> Row:
    """Forward, loss, backward, Adam and memory update, beside the published form and the encoder without a memory."""
    forms = {"ours": _fused, "published": _published, "bare": _bare}
    steps = {name: _stepper(sizes, device, form) for name, form in forms.items()}
    batch = _batch(sizes, device)
    _check("whole step", (steps["ours"](batch),), (steps["published"](batch),))
    seconds = {name: timed(partial(step, batch), runs)[1] for name, step in steps.items()}
    return {
        "stage": "step, whole",
        **sizes._asdict(),
        "device": device.type,
        "amp": str(amp_dtype(device, True, sizes.size[1])),
        **seconds,
        "faster": ratio(seconds["published"], seconds["ours"]),
        "over_bare": ratio(seconds["ours"], seconds["bare"]),
        "images_per_second": round(sizes.B / seconds["ours"]["seconds"]),
    }


def _captured_step(sizes: Sizes, device: torch.device, runs: int) -> Row:
    """The same as one CUDA graph, beside launches one by one."""
    batch = _batch(sizes, device)
    eager, captured = _stepper(sizes, device, _fused), _stepper(sizes, device, _fused)
    captured = CapturedStep(captured, lambda batch: None, CudaGraphs())
    for _ in range(2 * WARM_UP):
        _check("captured step", (captured(batch),), (eager(batch),))
    _, fast = timed(lambda: captured(batch), runs)
    _, slow = timed(lambda: eager(batch), runs)
    return {"stage": "step, captured", **sizes._asdict(), "ours": fast, "eager": slow, "faster": ratio(slow, fast)}


def _batch(sizes: Sizes, device: torch.device) -> Batch:
    """Images that are there already."""
    images = torch.randn(sizes.B, 3, *sizes.size, device=device).to(memory_format=torch.channels_last)
    labels = _problem(sizes.B, sizes.C, 1, device)[2]
    return Batch((images,), labels, labels, labels)


def _stepper(sizes: Sizes, device: torch.device, form: Callable[..., Tensor]) -> Callable[[Batch], Tensor]:
    """A step of an encoder and a memory of its own, to the loss."""
    torch.manual_seed(0)
    amp = amp_dtype(device, True, sizes.size[1])
    encoder = Encoder(sizes.arch, "gem", min(64, sizes.B)).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(
        encoder.parameters(), lr=3.5e-4, weight_decay=5e-4, fused=True, capturable=device.type == "cuda"
    )
    memory = _problem(sizes.B, sizes.C, encoder.width, device)[1]

    def run(batch: Batch) -> Tensor:
        with torch.autocast(device.type, amp, enabled=amp is not None):
            x = encoder(batch.views[0])
        optimizer.zero_grad()
        loss = form(x, memory, batch.labels)
        optimizer.step()
        return loss.detach()

    return run


def _bare(x: Tensor, memory: Tensor, labels: Tensor) -> Tensor:
    """No memory: the encoder's own cost."""
    loss = x.sum()
    loss.backward()
    return loss


def _fused(x: Tensor, memory: Tensor, labels: Tensor) -> Tensor:
    """What the engine runs for a batch, and its backward."""
    loss = ops.cluster_step(x, memory, labels, TEMPERATURE, MOMENTUM)
    loss.backward()
    return loss


def _published(x: Tensor, memory: Tensor, labels: Tensor) -> Tensor:
    """The form of the published code: autograd's logits, then a loop over the batch from Python."""
    unit = F.normalize(x)
    loss = F.cross_entropy(unit @ memory.clone().T / TEMPERATURE, labels)
    loss.backward()
    for feature, label in zip(unit.detach(), labels.tolist(), strict=True):
        memory[label] = MOMENTUM * memory[label] + (1 - MOMENTUM) * feature
        memory[label] /= memory[label].norm()
    return loss


def _problem(B: int, C: int, D: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, D, generator=generator)
    memory = F.normalize(torch.randn(C, D, generator=generator))
    labels = torch.randperm(C, generator=generator)[: -(-B // INSTANCES)].repeat_interleave(INSTANCES)[:B]
    return x.to(device), memory.to(device), labels.to(device)


def _check(name: str, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-5, msg=lambda text: f"{name}: {text}")
