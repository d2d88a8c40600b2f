"""The ops, with their gradients, beside the formulas of the papers in double precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from reid_fast import ops

_B, _C, _D, _TAU = 24, 11, 40, 0.1
Loss = Callable[[Tensor], Tensor]


def op_cases(device: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """Names, and what says how far an op is from its formula, relative to the formula's largest value."""
    make = torch.Generator().manual_seed(0)
    x = torch.randn(_B, _D, generator=make)
    memory, teacher, weak, rows = (F.normalize(torch.randn(n, _D, generator=make)) for n in (_C, _B, _B, 5 * _C))
    labels, owner = torch.arange(_B) * 7 % _C, torch.arange(5 * _C) % _C
    m, t, w, r, y, o = (tensor.to(device) for tensor in (memory, teacher, weak, rows, labels, owner))
    losses: dict[str, tuple[Loss, Loss]] = {
        "cluster_nce": (lambda x: ops.cluster_nce(x, m, y, _TAU), partial(_nce, memory, labels)),
        "cluster_nce, smoothed": (
            lambda x: ops.cluster_nce(x, m, y, _TAU, smoothing=0.1),
            partial(_nce, memory, labels, smoothing=0.1),
        ),
        "soft_nce": (lambda x: ops.soft_nce(x, t, w, 0.4), partial(_soft, teacher, weak)),
        "hard_nce": (lambda x: ops.hard_nce(x, t, y, _TAU), partial(_hard, teacher, labels)),
        "hybrid_nce": (lambda x: ops.hybrid_nce(x, r, o, y, _TAU), partial(_hybrid, rows, owner, labels)),
        "camera_nce": (lambda x: ops.camera_nce(x, r, o, y, _TAU, 9), partial(_camera, rows, owner, labels)),
    }
    for name, (op, formula) in losses.items():
        yield name, partial(_loss, op, formula, x, device)
    yield "cluster_step", partial(_step, x, memory, labels, device)
    for mode in ("serial", "hard"):
        yield f"memory_update, {mode}", partial(_update, mode, x, memory, labels, device)
    yield "hybrid_update", partial(_hybrid_update, rows, owner, x, device)
    yield "cluster_attention", partial(_attention, torch.randn(2, 2, _B, 8, generator=make), device)
    yield "grouped_bn", partial(_norm, torch.randn(_B, 6, 5, 3, generator=make), device)
    yield "bias_relu", partial(_bias, torch.randn(4, 6, 5, 3, generator=make), device)
    yield "augment", partial(_augment, torch.randint(0, 256, (5, 12, 7, 3), generator=make, dtype=torch.uint8), device)


def _apart(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    pairs = [(a.detach().cpu().double(), b.detach().double()) for a, b in zip(found, wanted, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def _loss(op: Loss, formula: Loss, x: Tensor, device: str) -> float:
    """Of the loss and its gradient."""
    ours, wanted = x.to(device, copy=True).requires_grad_(), x.double().requires_grad_()
    found, loss = op(ours), formula(wanted)
    return _apart([found, *torch.autograd.grad(found, ours)], [loss, *torch.autograd.grad(loss, wanted)])


def _nce(memory: Tensor, labels: Tensor, x: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(F.normalize(x) @ memory.double().T / _TAU, labels, label_smoothing=smoothing)


def _soft(teacher: Tensor, weak: Tensor, x: Tensor) -> Tensor:
    q = (weak.double() @ weak.double().T / 0.4).softmax(1)
    p = (F.normalize(x) @ teacher.double().T / 0.4).log_softmax(1)
    return (q * (q.log() - p)).sum() / len(x)


def _hard(teacher: Tensor, labels: Tensor, x: Tensor) -> Tensor:
    g = F.normalize(x) @ teacher.double().T
    same = labels[:, None] == labels
    hardest = g.masked_fill(~same, torch.inf).amin(1, keepdim=True)
    against = torch.cat([hardest, g.masked_fill(same, -torch.inf)], 1) / _TAU
    return -against.log_softmax(1)[:, 0].mean()


def _hybrid(rows: Tensor, owner: Tensor, index: Tensor, x: Tensor) -> Tensor:
    means = torch.stack([rows[owner == label].double().mean(0) for label in range(_C)])
    scores = (F.normalize(x) @ means.T / _TAU).exp()
    p = scores / (scores.sum(1, keepdim=True) + 1e-6)
    return -(p.gather(1, owner[index][:, None]) + 1e-6).log().mean()


def _camera(rows: Tensor, owner: Tensor, labels: Tensor, x: Tensor) -> Tensor:
    losses = []
    for a, label in zip(F.normalize(x) @ rows.double().T / _TAU, labels, strict=True):
        positive, negative = a[owner == label], a[owner != label].topk(9).values
        losses.append((torch.cat([positive, negative]).logsumexp(0) - positive).mean())
    return torch.stack(losses).mean()


def _moved(memory: Tensor, x: Tensor, labels: Tensor, mode: str = "serial") -> Tensor:
    """The rows behind an update with momentum 0.2, one sample after the other, or each by its least similar one."""
    rows, x = memory.double().clone(), F.normalize(x.double())
    members = [[i for i in range(len(x)) if labels[i] == label] for label in range(len(rows))]
    hardest = (min(some, key=lambda i: float(x[i] @ rows[labels[i]])) for some in members if some)
    for i in hardest if mode == "hard" else range(len(x)):
        rows[labels[i]] = F.normalize(0.2 * rows[labels[i]] + 0.8 * x[i], dim=0)
    return rows


def _step(x: Tensor, memory: Tensor, labels: Tensor, device: str) -> float:
    m, y, ours = memory.to(device, copy=True), labels.to(device), x.to(device, copy=True).requires_grad_()
    found = ops.cluster_step(ours, m, y, _TAU, 0.2)
    wanted = x.double().requires_grad_()
    loss = _nce(memory, labels, wanted)
    gradients = *torch.autograd.grad(found, ours), *torch.autograd.grad(loss, wanted)
    return _apart([found, gradients[0], m], [loss, gradients[1], _moved(memory, x, labels)])


def _update(mode: str, x: Tensor, memory: Tensor, labels: Tensor, device: str) -> float:
    m = memory.to(device, copy=True)
    ops.memory_update(m, F.normalize(x).to(device), labels.to(device), 0.2, mode)
    return _apart([m], [_moved(memory, x, labels, mode)])


def _hybrid_update(rows: Tensor, owner: Tensor, x: Tensor, device: str) -> float:
    index = torch.arange(len(x)) * 3 % len(rows)
    r, o = rows.to(device, copy=True), owner.to(device)
    classes = ops.class_means(r, o)
    ops.hybrid_update(r, o, classes, F.normalize(x).to(device), index.to(device), 0.2)
    wanted = _moved(rows, x, index)
    means = torch.stack([wanted[owner == label].mean(0) for label in range(_C)])
    return _apart([r, classes.means], [wanted, means])


def _attention(qk: Tensor, device: str) -> float:
    sizes = [1, 7, 9, 7]
    offsets = F.pad(torch.tensor(sizes).cumsum(0), (1, 0))
    ours, wanted = qk.to(device, copy=True).requires_grad_(), qk.double().requires_grad_()
    found = ops.received_attention(ours[0], ours[1], offsets.to(device), torch.tensor(2.0, device=device))
    weights = []
    for start, n in zip(offsets.tolist(), sizes, strict=False):
        q, k = wanted[:, :, start : start + n]
        logits = (2 * q @ k.mT).masked_fill(torch.eye(n, dtype=torch.bool), -torch.inf)
        weights.append(logits.softmax(-1).mean(0).mean(0) if n > 1 else torch.ones(1))
    formula = torch.cat(weights)
    push = torch.linspace(-1, 1, len(formula))
    by_ours = torch.autograd.grad(found @ push.to(device), ours)
    return _apart([found, *by_ours], [formula, *torch.autograd.grad(formula @ push.double(), wanted)])


def _norm(x: Tensor, device: str) -> float:
    C, group = x.shape[1], 10
    weight, bias = torch.linspace(0.5, 2, C), torch.linspace(-1, 1, C)
    ours, wanted = x.to(device, copy=True).requires_grad_(), x.double().requires_grad_()
    mean, var = torch.zeros(C, device=device), torch.ones(C, device=device)
    found = ops.grouped_bn(ours, weight.to(device), bias.to(device), mean, var, group, 0.1, 1e-5, relu=True)
    parts = [F.batch_norm(part, None, None, weight.double(), bias.double(), True) for part in wanted.split(group)]
    formula = torch.cat(parts).relu()
    push = torch.linspace(-1, 1, x.numel()).view(x.shape)
    by_ours = torch.autograd.grad((found * push.to(device)).sum(), ours)
    first = x[:group].double()
    running = [0.1 * first.mean((0, 2, 3)), 0.9 + 0.1 * first.var((0, 2, 3))]
    by_x = torch.autograd.grad((formula * push.double()).sum(), wanted)
    return _apart([found, *by_ours, mean, var], [formula, *by_x, *running])


def _bias(x: Tensor, device: str) -> float:
    bias, residual = torch.linspace(-1, 1, x.shape[1]), x.flip(0)
    found = ops.bias_relu(x.to(device), bias.to(device), residual.to(device), True)
    return _apart([found], [(x.double() + bias.double()[:, None, None] + residual.double()).relu()])


def _augment(images: Tensor, device: str) -> float:
    """Two images, the second one flipped and shifted; a part of the first one erased."""
    mean, std, fill = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), (0.1, -0.2, 0.3)
    index, flip = torch.tensor([3, 1]), torch.tensor([False, True])
    crop = torch.tensor([[0, 0], [2, -1]], dtype=torch.int32)
    erase = torch.tensor([[4, 2, 5, 3], [0, 0, 0, 0]], dtype=torch.int32)
    given = [tensor.to(device) for tensor in (images, index, flip, crop, erase)]
    found = ops.augment(*given, mean=mean, std=std, fill=fill)
    second = F.pad(images[1].flip(1)[2:, :-1].permute(2, 0, 1), (1, 0, 0, 2))
    pixels = torch.stack([images[3].permute(2, 0, 1), second]).double() / 255
    wanted = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    wanted[0, :, 4:9, 2:5] = torch.tensor(fill).double()[:, None, None]
    return _apart([found], [wanted])
