"""hybrid_nce and hybrid_update against the published form over all rows, and the published golden values."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from contrast import on, with_gradient
from inputs import near, phi, unit_phi
from torch.library import opcheck

from reid_fast.kernels import hybrid_nce as kernel
from reid_fast.ops import class_means, hybrid_nce, hybrid_update, memory_update
from reid_fast.ops.hybrid_nce import EPSILON, _op, _update, hybrid_nce_ref

SHAPES = [(1, 1, 1, 1), (5, 23, 7, 9), (17, 300, 150, 33)]  # B, N, C, D


def literal(x, memory, memory_labels, index, temperature, focal=0.0):
    x, loss = F.normalize(x), 0
    for i in range(len(x)):
        exp = {c: (memory[memory_labels == c] @ x[i] / temperature).mean().exp() for c in set(memory_labels.tolist())}
        p = exp[int(memory_labels[index[i]])] / (sum(exp.values()) + EPSILON)
        loss = loss - (1 - p) ** focal * (p + EPSILON).log() / len(x)
    return loss


def problem(B, N, C, D, dtype=torch.float32):
    """With an empty class wherever there are two: label 0 is moved away."""
    memory, labels = F.normalize(torch.randn(N, D, dtype=dtype)), torch.randint(C, (N,))
    labels[labels == 0] = C - 1
    return torch.randn(B, D, dtype=dtype), memory, labels, torch.randint(N, (B,))


@pytest.mark.parametrize("focal", [0.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_literal_loss(shape, focal):
    case = (*problem(*shape, torch.float64), 0.1, focal)
    expected, gradient = with_gradient(literal, *case)
    for loss in (hybrid_nce, hybrid_nce_ref):
        value, by_x = with_gradient(loss, *case)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(by_x, gradient)


@pytest.mark.parametrize("focal", [0.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_match_the_literal_loss(shape, focal, device):
    x, memory, labels, index = problem(*shape)
    expected, gradient = with_gradient(literal, x.double(), memory.double(), labels, index, 0.1, focal)
    arguments = (x, *class_means(memory, labels), labels, index, 0.1, focal, EPSILON, True, True)
    loss, by_x = kernel.hybrid_nce(*on(device, *arguments))
    torch.testing.assert_close(loss.cpu(), expected.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_x.cpu(), gradient.float(), atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_update_moves_members_and_means(shape, device):
    x, memory, labels, index = problem(*shape)
    x = F.normalize(x)
    index[len(index) // 2 :] = index[0]  # repetitions
    expected = memory.clone()
    memory_update(expected, x, index, 0.2)
    classes = class_means(memory, labels)
    fused, means = memory.to(device, copy=True), classes.means.to(device, copy=True)
    kernel.hybrid_update(fused, means, *on(device, classes.counts, labels, x, index), 0.2)
    hybrid_update(memory, labels, classes, x, index, 0.2)
    assert torch.equal(memory, expected)
    torch.testing.assert_close(fused.cpu(), expected, atol=5e-7, rtol=1e-5)
    for actual in (classes.means, means.cpu()):
        torch.testing.assert_close(actual, class_means(expected, labels).means, atol=1e-6, rtol=1e-5)


def test_means_drift_less_than_rounding_matters():
    """An epoch of SpCL: 400 steps of 64 images. The loss reads the means to about 1e-6."""
    _, memory, labels, _ = problem(1, 500, 60, 32)
    classes = class_means(memory, labels)
    for _ in range(400):
        hybrid_update(memory, labels, classes, F.normalize(torch.randn(64, 32)), torch.randint(500, (64,)), 0.2)
    exact = class_means(memory.double(), labels).means.float()
    torch.testing.assert_close(classes.means, exact, atol=5e-6, rtol=0)


@pytest.mark.parametrize("values", [1, 500 * 5])
def test_means_are_the_same_bits_however_many_columns_are_sorted_at_once(values, monkeypatch):
    _, memory, labels, _ = problem(1, 500, 60, 32)
    whole = class_means(memory, labels)
    monkeypatch.setattr(importlib.import_module("reid_fast.ops.hybrid_nce"), "_SORTED", values)
    assert torch.equal(class_means(memory, labels).means, whole.means)
    assert torch.equal(whole.counts, torch.bincount(labels[labels >= 0], minlength=len(whole.counts)))


def test_golden_spcl():
    memory, labels = unit_phi(10, 0.5), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4, 5, 3])
    raw, index = phi(4, 2.0), torch.tensor([0, 4, 0, 9])
    loss, gradient = with_gradient(hybrid_nce, raw, memory, labels, index, 0.05)
    near(loss, 3.825642)
    near(gradient.norm(), 3.005418)
    hybrid_update(memory, labels, class_means(memory, labels), F.normalize(raw), index, 0.2)
    near(memory[0], [-0.258934, 0.335242, 0.353063, -0.348374, -0.509425, 0.195217, 0.524140, -0.046918])
    near(memory[9], [0.347239, 0.315354, -0.605677, 0.145420, 0.371409, -0.213502, -0.310988, 0.334283])


def test_golden_cacl():
    labels, index = torch.tensor([0, 0, 0, 1, 1, 3, 3, 4, 5, 3]), torch.tensor([0, 4, 0, 9])
    colour, grey, predicted = (phi(4, s).requires_grad_() for s in (2.0, 2.4, 1.1))
    second = unit_phi(10, 0.8)
    loss = hybrid_nce(colour, unit_phi(10, 0.5), labels, index, 0.05, 4.0)
    near(loss.detach(), 3.355211)
    cross = hybrid_nce(grey, second, labels, index, 0.05, 4.0)
    for target in (class_means(second, labels).means[labels[index]], grey.detach()):
        cross = cross - F.cosine_similarity(target, predicted).mean()
    near(cross.detach(), 4.073133)
    (loss + cross).backward()
    for leaf, norm in ((colour, 3.584335), (grey, 4.249959), (predicted, 0.251120)):
        near(leaf.grad.norm(), norm)


def test_opcheck():
    x, memory, labels, index = problem(4, 9, 5, 6, torch.float64)
    classes = class_means(memory, labels)
    opcheck(_op, (x.requires_grad_(), *classes, labels, index, 0.3, 2.0, EPSILON, True, True))
    opcheck(_update, (memory, *classes, labels, F.normalize(x.detach()), index, 0.2))


@pytest.mark.parametrize("loss", [hybrid_nce, hybrid_nce_ref])
def test_gradcheck(loss):
    x, *rest = problem(4, 9, 5, 6, torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, *rest, 0.3, 2.0), x.requires_grad_())


def test_compiles_whole():
    x, memory, labels, index = problem(4, 9, 5, 6, torch.float64)
    classes = class_means(memory, labels)
    x.requires_grad_()

    def step(x):
        loss = hybrid_nce(2 * x, memory, labels, index, 0.3, classes=classes)
        hybrid_update(memory, labels, classes, F.normalize(x), index, 0.2)
        return loss

    before = memory.clone()
    expected = hybrid_nce(2 * x, memory, labels, index, 0.3)
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(x), expected)
    assert not torch.equal(memory, before)


@pytest.mark.gpu
def test_gpu_training_size_and_bits():
    """SpCL on Market-1501: 12,936 instances, 64 a batch."""
    x, memory, labels, index = (t.cuda() for t in problem(64, 12936, 1500, 2048))
    classes = class_means(memory, labels)
    expected, gradient = with_gradient(hybrid_nce_ref, x, memory, labels, index, 0.05)
    runs = [with_gradient(hybrid_nce, x, memory, labels, index, 0.05, classes=classes) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    torch.testing.assert_close(runs[0][0], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(runs[0][1], gradient, atol=1e-5, rtol=1e-3)
    hybrid_update(memory, labels, classes, F.normalize(x), index, 0.2)
    torch.testing.assert_close(classes.means, class_means(memory, labels).means, atol=1e-6, rtol=1e-5)
