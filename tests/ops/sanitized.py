"""Every op once on awkward sizes: the program that `bench/gpu.py` runs under compute-sanitizer."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import reid_fast
from reid_fast import ops

B, C, D, N, HEADS = 9, 37, 70, 61, 2


def cases(device: str, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Calls of the ops by their names; each makes its own inputs."""
    new = lambda *shape: torch.randn(*shape, device=device).to(dtype)  # noqa: E731
    unit = lambda *shape: F.normalize(torch.randn(*shape, device=device)).to(dtype)  # noqa: E731
    pick = lambda n, of: torch.randint(-1, of, (n,), device=device)  # noqa: E731
    x, labels, owners = unit(B, D), pick(B, C), torch.arange(N, device=device) % C
    spans = torch.stack([labels.clamp(min=0) - 3, labels + 4], 1).clamp(0, C)
    offsets = torch.tensor([0, 1, 8, 40, N], device=device)
    maps = new(6, D, 5, 3).to(memory_format=torch.channels_last)
    norm = [torch.rand(D, device=device) for _ in range(4)]
    numbers = dict.fromkeys(("mean", "std", "fill"), (0.3, 0.4, 0.5))
    images = torch.randint(256, (N, 19, 11, 3), device=device, dtype=torch.uint8)
    index, flip = torch.arange(B, device=device), torch.arange(B, device=device) % 2 == 0
    rectangles = torch.tensor([[2, 3, 9, 4]], device=device, dtype=torch.int32).repeat(B, 1)
    picture = (images, index, flip, rectangles[:, :2], rectangles)

    def losses(*options: dict[str, object]) -> Callable[[], object]:
        return lambda: [differentiated(ops.cluster_nce, x, unit(C, D), labels, 0.05, **each) for each in options]  # type: ignore[arg-type]

    def updates() -> None:
        for mode in ("serial", "hard", "weighted", "pick"):
            ops.memory_update(unit(C, D), x, labels, 0.1, mode, 0.03, scores=x[:, 0])

    def step() -> None:
        differentiated(lambda x: ops.cluster_step(x, unit(C, D), labels, 0.05, 0.1), x)

    def hybrid(update: bool) -> None:
        memory, classes = unit(N, D), ops.class_means(unit(N, D), owners, C)
        if update:
            ops.hybrid_update(memory, owners, classes, x, pick(B, N), 0.2)
        else:
            differentiated(lambda x: ops.hybrid_nce(x, memory, owners, pick(B, N), 0.05, 4.0, classes=classes), x)

    def attention() -> None:
        q, k, scale = new(HEADS, N, 32), new(HEADS, N, 32), torch.tensor(3.0, device=device)
        differentiated(lambda q: ops.cluster_attention(q, k, unit(N, D), offsets, scale)[0].square().sum(), q)

    return {
        "augment": lambda: ops.augment(*picture, **numbers, blur=torch.rand(B, device=device) * 2, dtype=dtype),
        "bias_relu": lambda: ops.bias_relu(maps, norm[0], maps, True),
        "camera_nce": lambda: differentiated(ops.camera_nce, x, unit(N, D), owners, labels.clamp(min=0), 0.07, 5),
        "cluster_attention": attention,
        "cluster_nce": losses({}, {"smoothing": 0.1}, {"spans": spans}, {"targets": torch.rand(B, C, device=device)}),
        "cluster_step": step,
        "grouped_bn": lambda: differentiated(
            lambda x: ops.grouped_bn(x, *norm, 2, 0.1, 1e-5, residual=maps, relu=True).float().square().sum(), maps
        ),
        "hard_nce": lambda: differentiated(ops.hard_nce, x, unit(B, D), labels.clamp(min=0) % 3, 0.1),
        "hybrid_nce": lambda: hybrid(update=False),
        "hybrid_update": lambda: hybrid(update=True),
        "memory_update": updates,
        "soft_nce": lambda: differentiated(ops.soft_nce, x, unit(B, D), unit(B, D), 0.4),
    }


def differentiated(loss: Callable[..., Tensor], x: Tensor, *arguments: object, **options: object) -> None:
    """The loss of a leaf and its gradient."""
    loss(x.detach().requires_grad_(), *arguments, **options).backward()


def clustered(device: str) -> None:
    """Features to labels."""
    rows = F.normalize(torch.randn(N, D, device=device) + 4 * torch.eye(8, D, device=device).repeat(8, 1)[:N])
    reid_fast.dbscan(reid_fast.jaccard_graph(rows, 9, 3, 0.7), 0.7)


def main() -> None:
    """Run everything on the GPU, in float32 and bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        for name, call in cases("cuda", dtype).items():
            print(name, dtype, flush=True)
            call()
    clustered("cuda")
    torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
