"""The training step of Cluster Contrast: the engine's ops beside the published form, alone and behind the encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from report import Row, timed
from torch import Tensor

from reid_fast import ops
from reid_fast.device import amp_dtype
from reid_fast.models.encoder import Encoder

TEMPERATURE, MOMENTUM, INSTANCES = 0.05, 0.1, 16


def step(smoke: bool) -> list[Row]:
    """Rows for the memory's part at the paper's sizes, and for whole steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    runs = 3 if smoke else 15
    sizes = [(64, 100, 256)] if smoke else [(64, 100, 256), (256, 700, 2048), (256, 2000, 2048)]
    rows = [_memory_part(*size, device, runs) for size in sizes]
    if device.type == "cuda" and not smoke:
        return [*rows, _whole_step("resnet50", (256, 128), 256, 2000, device, runs)]
    return [*rows, _whole_step("resnet18_half", (64, 32), 64, 100, device, runs)]


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


def _whole_step(arch: str, size: tuple[int, int], B: int, C: int, device: torch.device, runs: int) -> Row:
    """Forward, loss, backward, Adam and memory update on images that are there already."""
    amp = amp_dtype(device, True, size[1])
    images = torch.randn(B, 3, *size, device=device).to(memory_format=torch.channels_last)

    def stepper(form: Callable[..., Tensor]) -> Callable[[], Tensor]:
        torch.manual_seed(0)
        encoder = Encoder(arch, "gem").to(device, memory_format=torch.channels_last).train()
        optimizer = torch.optim.Adam(encoder.parameters(), lr=3.5e-4, weight_decay=5e-4, fused=True)
        _, memory, labels = _problem(B, C, encoder.width, device)

        def run() -> Tensor:
            with torch.autocast(device.type, amp):
                x = encoder(images)
            optimizer.zero_grad()
            loss = form(x, memory, labels)
            optimizer.step()
            return loss.detach()

        return run

    ours, theirs = stepper(_fused), stepper(_published)
    _check("whole step", (ours(),), (theirs(),))
    _, fast = timed(ours, runs)
    _, slow = timed(theirs, runs)
    return {
        "stage": "step, whole",
        "arch": arch,
        "size": size,
        "B": B,
        "C": C,
        "device": device.type,
        "amp": str(amp),
        "ours": fast,
        "published": slow,
        "faster": round(slow["seconds"] / fast["seconds"], 2),
        "images_per_second": round(B / fast["seconds"]),
    }


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
