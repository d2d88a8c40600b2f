"""hard_nce and soft_nce against the formulas row by row, and the golden values of ICE."""

import pytest
import torch
import torch.nn.functional as F
from inputs import near, phi, unit_phi

from reid_fast.ops import cluster_nce, hard_nce, soft_nce


def literal_hard(x, teacher, labels, temperature):
    x, y, loss = F.normalize(x), F.normalize(teacher), 0
    for i in range(len(x)):
        positive = min((x[i] @ y[j] for j in range(len(x)) if labels[j] == labels[i]), key=torch.Tensor.item)
        others = [x[i] @ y[j] for j in range(len(x)) if labels[j] != labels[i]]
        exp = (torch.stack([positive, *others]) / temperature).exp()
        loss = loss - (exp[0] / exp.sum()).log() / len(x)
    return loss


def literal_soft(x, teacher, weak, temperature):
    x, y, w = F.normalize(x), F.normalize(teacher), F.normalize(weak)
    p, q = (x @ y.T / temperature).softmax(1), (w @ w.T / temperature).softmax(1)
    return (q * (q.log() - p.log())).sum() / len(x)


@pytest.mark.parametrize("B", [1, 2, 7, 32])
def test_match_the_literal_losses(B):
    x, teacher, weak = (torch.randn(B, 5, dtype=torch.float64) for _ in range(3))
    labels = torch.randint(3, (B,))
    for loss, literal, third in ((hard_nce, literal_hard, labels), (soft_nce, literal_soft, weak)):
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        value, expected = loss(leaves[0], teacher, third, 0.4), literal(leaves[1], teacher, third, 0.4)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, leaves[0]), torch.autograd.grad(expected, leaves[1]))


def test_golden_ice():
    raw, labels = phi(6, 2.0).requires_grad_(), torch.tensor([0, 0, 1, 1, 2, 2])
    strong, weak = phi(6, 2.4), phi(6, 2.7)
    classes = cluster_nce(raw, 0.9 * unit_phi(5, 0.5), labels, 0.5, normalize=False, smoothing=0.1)
    hard = hard_nce(raw, strong, labels, 0.1)
    soft = 10 * soft_nce(raw, strong, weak, 0.4)
    near(classes.detach(), 1.948568)
    near(hard.detach(), 9.857420)
    near(soft.detach(), 0.105449)
    near(torch.autograd.grad(classes + hard + soft, raw)[0].norm(), 1.894352)


def test_compiles_whole():
    x, teacher, weak, labels = *(torch.randn(6, 4) for _ in range(3)), torch.arange(6) // 2

    def step(x):
        return hard_nce(x, teacher, labels, 0.1) + soft_nce(x, teacher, weak, 0.4)

    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(x), step(x))


@pytest.mark.gpu
def test_gpu_matches_the_cpu():
    x, teacher, weak, labels = *(torch.randn(32, 2048) for _ in range(3)), torch.arange(32) // 4
    for loss, third in ((hard_nce, labels), (soft_nce, weak)):
        expected = loss(x, teacher, third, 0.4)
        runs = [loss(x.cuda(), teacher.cuda(), third.cuda(), 0.4) for _ in range(2)]
        assert torch.equal(*runs)
        torch.testing.assert_close(runs[0].cpu(), expected, atol=1e-5, rtol=1e-4)
