"""The ops at training sizes: the published form or the reference, the fused op, and the least the hardware must do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reid_fast import ops
from reid_fast.models.encoder import GeM
from reid_fast.ops.camera_nce import camera_nce_ref
from reid_fast.ops.cluster_attention import received_attention_ref
from reid_fast.ops.cluster_nce import cluster_nce_ref
from reid_fast.ops.grouped_bn import grouped_bn_ref
from reid_fast.ops.hybrid_nce import hybrid_nce_ref
from reid_fast.ops.memory_update import memory_update_ref

D, TAU = 2048, 0.05


class Case(NamedTuple):
    """Functions of no argument that do the same; each returns what is compared, a scalar where `leaf` is given."""

    name: str
    sizes: str
    reference: Callable[[], Tensor]
    fused: Callable[[], Tensor] | None
    leaf: Tensor | None  # its gradient is compared and timed too
    bytes: float  # that must move through global memory, forward and backward
    operations: float  # multiplications and additions, forward and backward
    launches: int  # of the fused op, forward and gradient
    tolerance: float = 1e-4
    compiled: bool = True  # whether torch.compile of the reference says anything


def cases(device: str, dtype: torch.dtype, large: bool) -> Iterator[Case]:
    """All cases on one device in one type; `large` adds C = 100,000."""
    torch.manual_seed(0)
    tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    size = dtype.itemsize
    rows = lambda n, width=D: F.normalize(torch.randn(n, width, device=device)).to(dtype)  # noqa: E731
    pick = lambda n, of: torch.randint(of, (n,), device=device)  # noqa: E731
    for B, C in [(256, 2000), *([(256, 100_000)] if large else [])]:
        x, memory, labels = rows(B).requires_grad_(), rows(C), pick(B, C)
        moved, work = size * D * (B + C) + 4 * D * B, 4 * B * C * D
        case = partial(Case, sizes=f"B={B} C={C} D={D}", leaf=x, tolerance=tolerance)
        teacher = torch.rand(B, C, device=device).softmax(1)
        for name, options, launches in (
            ("cluster_nce", {}, 3),
            ("target_nce smoothed", {"smoothing": 0.1}, 3),
            ("target_nce dense", {"targets": teacher}, 3),
        ):
            yield case(
                name,
                reference=partial(cluster_nce_ref, x, memory, labels, TAU, **options),
                fused=partial(ops.cluster_nce, x, memory, labels, TAU, **options),
                bytes=moved + (4 * B * C if "targets" in options else 0),
                operations=work,
                launches=launches,
            )
        yield _step(case, x, memory, labels, moved, work)
    yield from _updates(rows, pick, size, tolerance)
    yield from _method_losses(rows, pick, size, tolerance)
    yield from _images(device, dtype)
    if device != "cpu":  # where the reference is what runs
        yield from _norms(device, dtype, tolerance)


def _step(case: Callable[..., Case], x: Tensor, memory: Tensor, labels: Tensor, moved: float, work: float) -> Case:
    """Cluster Contrast's whole step beside its published form."""
    # Groups of 16, as the sampler draws them.
    labels = labels[::16].repeat_interleave(16)[: len(x)]
    published_memory, fused_memory = memory.clone(), memory.clone()

    def published() -> Tensor:
        scores = PublishedMemory.apply(F.normalize(x.float()), labels, published_memory)
        return F.cross_entropy(scores / TAU, labels)

    return case(
        "cluster_step",
        reference=published,
        fused=lambda: ops.cluster_step(x, fused_memory, labels, TAU, 0.1),
        bytes=moved + 2 * 16 * D * memory.element_size(),
        operations=work,
        launches=3,
        compiled=False,
    )


class PublishedMemory(torch.autograd.Function):
    """Scores, and in backward the gradient and then the update: where the published code has them."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, labels: Tensor, memory: Tensor) -> Tensor:
        ctx.save_for_backward(x, labels)
        ctx.memory = memory
        return x @ memory.to(x.dtype).T

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, by_scores: Tensor) -> tuple[Tensor, None, None]:
        x, labels = ctx.saved_tensors
        by_x = by_scores @ ctx.memory.to(x.dtype)
        published_update(ctx.memory, x, labels, 0.1)
        return by_x, None, None


def published_update(memory: Tensor, x: Tensor, labels: Tensor, momentum: float) -> None:
    """The update as published: three operations a sample, one sample after another."""
    for row, label in zip(x, labels, strict=True):
        memory[label] = momentum * memory[label] + (1 - momentum) * row
        memory[label] /= memory[label].norm()


def _updates(rows: Callable[..., Tensor], pick: Callable, size: int, tolerance: float) -> Iterator[Case]:
    x, memory, scores = rows(256), rows(2000), rows(256, 1)[:, 0]
    labels = pick(16, 2000).repeat_interleave(16)
    for mode in ("serial", "hard", "weighted", "pick"):
        theirs, mine = memory.clone(), memory.clone()
        extra = scores if mode == "pick" else None
        if mode == "serial":
            reference = partial(published_update, theirs, x, labels, 0.1)
        else:
            reference = partial(memory_update_ref, theirs, x, labels, 0.1, mode, 0.03, extra)
        fused = partial(ops.memory_update, mine, x, labels, 0.1, mode, 0.03, scores=extra)
        yield Case(
            f"memory_update {mode}",
            f"B=256 in 16 clusters D={D}",
            _returning(theirs, reference),
            _returning(mine, fused),
            None,
            bytes=size * D * (256 + 32),
            operations=5 * 256 * D,
            launches=1,
            tolerance=tolerance,
            compiled=False,
        )


def _returning(memory: Tensor, update: Callable[[], None]) -> Callable[[], Tensor]:
    """The update as a function of the memory it leaves."""

    def call() -> Tensor:
        update()
        return memory

    return call


def _method_losses(rows: Callable[..., Tensor], pick: Callable, size: int, tolerance: float) -> Iterator[Case]:
    N, C = 12936, 1500
    x, memory, labels, index = rows(64).requires_grad_(), rows(N), pick(N, C), pick(64, N)
    classes = ops.class_means(memory, labels, C)
    yield Case(
        "hybrid_nce",
        f"B=64 N={N} classes={C} D={D}",
        lambda: hybrid_nce_ref(x, memory, labels, index, TAU),
        lambda: ops.hybrid_nce(x, memory, labels, index, TAU, classes=classes),
        x,
        bytes=4 * D * C + size * D * 64 * 2,
        operations=4 * 64 * C * D,
        launches=3,
        tolerance=tolerance,
    )
    image, proxies, owners = rows(32).requires_grad_(), rows(3300), pick(3300, 700)
    camera = (image, proxies, owners, owners[:32], 0.07)
    yield Case(
        "camera_nce",
        f"B=32 C=3300 D={D} negatives=50",
        lambda: camera_nce_ref(*camera),
        lambda: ops.camera_nce(*camera),
        image,
        bytes=size * D * (3300 + 32) + 4 * 32 * D + 8 * 32 * 3300,
        operations=2 * 32 * (3300 + 55) * D,
        launches=4,
        tolerance=tolerance,
    )
    student, teacher, weak = rows(32).requires_grad_(), rows(32), rows(32)
    yield Case(
        "soft_nce",
        f"B=32 D={D}",
        lambda: _soft_plain(student, teacher, weak, 0.4),
        lambda: ops.soft_nce(student, teacher, weak, 0.4),
        student,
        bytes=size * D * 32 * 4,
        operations=6 * 32 * 32 * D,
        launches=13,
        tolerance=tolerance,
    )
    sizes = torch.randint(2, 40, (60,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]).to(x.device)
    n, heads, width = int(sizes.sum()), 8, 256
    q, k = (rows(heads * n, width).view(heads, n, width) for _ in range(2))
    scale = torch.tensor(10.0, device=x.device)
    q.requires_grad_()
    pairs = int((sizes * sizes).sum()) * heads
    yield Case(
        "cluster_attention",
        f"60 clusters N={n} heads={heads} D={width}",
        lambda: received_attention_ref(q, k, offsets, scale).square().sum(),
        lambda: ops.received_attention(q, k, offsets, scale).square().sum(),
        q,
        bytes=size * heads * n * width * 6,
        operations=8 * pairs * width,
        launches=11,
        tolerance=tolerance,
        compiled=False,
    )


def _soft_plain(x: Tensor, teacher: Tensor, weak: Tensor, temperature: float) -> Tensor:
    x, teacher, weak = (F.normalize(t.float()) for t in (x, teacher, weak))
    log_p = (x @ teacher.T / temperature).log_softmax(1)
    q = (weak @ weak.T / temperature).softmax(1)
    return F.kl_div(log_p, q, reduction="batchmean")


def _norms(device: str, dtype: torch.dtype, tolerance: float) -> Iterator[Case]:
    """BatchNorms of ResNet-50 with the ReLU and the shortcut behind them, forward and backward; group 0 is cuDNN's."""
    B = 256
    for C, H, W, group, shortcut in (
        (64, 64, 32, 64, False),
        (256, 64, 32, 64, True),
        (2048, 16, 8, 64, True),
        (256, 64, 32, 0, True),
    ):
        new = partial(torch.randn, B, C, H, W, device=device, dtype=dtype)
        x, residual, by_y = (new().contiguous(memory_format=torch.channels_last) for _ in range(3))
        problem = (x, torch.rand(C, device=device), torch.rand(C, device=device), residual if shortcut else None)
        both_ways = partial(_norm_both_ways, *problem, group, by_y)
        yield Case(
            "grouped_bn",
            f"B={B} {C}x{H}x{W} groups of {group or B}{' shortcut' if shortcut else ''}, both ways",
            lambda run=both_ways: run(grouped_bn_ref),
            lambda run=both_ways: run(ops.grouped_bn),
            None,
            bytes=(11 if shortcut else 8) * x.numel() * x.element_size(),
            operations=20 * x.numel(),
            launches=4,
            tolerance=tolerance,
            compiled=False,
        )


def _norm_both_ways(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    group: int,
    by_y: Tensor,
    norm: Callable[..., Tensor],
) -> Tensor:
    """The gradient of x, with those of all else taken too."""
    leaves = [t.requires_grad_() for t in (x, weight, bias, residual) if t is not None]
    running = torch.zeros_like(weight), torch.ones_like(weight)
    with torch.enable_grad():
        y = norm(x, weight, bias, *running, group, 0.1, 1e-5, residual=residual, relu=True)
        return torch.autograd.grad(y, leaves, by_y)[0]


def _images(device: str, dtype: torch.dtype) -> Iterator[Case]:
    B, H, W = 64, 256, 128
    images = torch.randint(256, (4 * B, H, W, 3), dtype=torch.uint8, device=device)
    index, flip = torch.randperm(4 * B, device=device)[:B], torch.rand(B, device=device) < 0.5
    crop = torch.randint(-10, 11, (B, 2), device=device, dtype=torch.int32)
    erase = torch.tensor([[20, 30, 60, 40]], device=device, dtype=torch.int32).repeat(B, 1)
    numbers = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "fill": (0.485, 0.456, 0.406)}
    arguments = (images, index, flip, crop, erase)
    yield Case(
        "augment",
        f"B={B} {H}x{W}",
        lambda: _augment_plain(*arguments, **numbers).to(dtype),
        lambda: ops.augment(*arguments, **numbers, dtype=dtype),
        None,
        bytes=B * H * W * 3 * (1 + dtype.itemsize),
        operations=2 * B * H * W * 3,
        launches=1,
        tolerance=1e-2,
        compiled=False,
    )
    features = torch.rand(B, D, 16, 8, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    # There is no fused op: clamp, power, mean and norm are what torch.compile fuses by itself. This row shows it.
    gem = GeM().to(device)
    yield Case(
        "gem_pool",
        f"B={B} D={D} 16x8",
        lambda: F.normalize(gem(features)).square().sum(),
        None,
        features.requires_grad_(),
        bytes=4 * features.numel() * features.element_size(),
        operations=20 * features.numel(),
        launches=0,
    )


def _augment_plain(
    images: Tensor,
    index: Tensor,
    flip: Tensor,
    crop: Tensor,
    erase: Tensor,
    mean: tuple,
    std: tuple,
    fill: tuple,
) -> Tensor:
    """Image by image, as a list of transforms does it."""
    augmented = []
    mean, std, fill = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (mean, std, fill))
    for i, mirrored, (top, left), (y, x, height, width) in zip(
        index.tolist(), flip.tolist(), crop.tolist(), erase.tolist(), strict=True
    ):
        image = images[i].permute(2, 0, 1)
        image = image.flip(2) if mirrored else image
        image = F.pad(image, [10] * 4)[:, top + 10 :, left + 10 :][:, : images.shape[1], : images.shape[2]]
        image = (image.float() / 255 - mean) / std
        image[:, y : y + height, x : x + width] = fill
        augmented.append(image)
    return torch.stack(augmented)
