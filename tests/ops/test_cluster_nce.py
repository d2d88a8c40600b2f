"""cluster_nce against a literal loss, its kernels against both, and the published golden values."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from inputs import near, phi, unit_phi
from torch.library import opcheck

from reid_fast.kernels import cluster_nce as kernel
from reid_fast.kernels import soft_targets, tiles
from reid_fast.ops import cluster_nce
from reid_fast.ops.cluster_nce import _op, cluster_nce_ref, launch

SHAPES = [(1, 1, 1), (3, 7, 5), (6, 97, 33), (67, 131, 67), (16, 257, 8)]
KINDS = ["plain", "raw", "smooth", "dense", "spans", "smooth spans"]


def literal(x, memory, labels, temperature, normalize=True, smoothing=0.0, targets=None, columns=None, weights=None):
    """Row by row, as the formula reads."""
    x = F.normalize(x) if normalize else x
    weights = torch.full((len(x),), 1 / len(x), dtype=x.dtype) if weights is None else weights
    loss = 0
    for i in range(len(x)):
        start, stop = (0, len(memory)) if columns is None else columns[i].tolist()
        log_p = (x[i] @ memory[start:stop].T / temperature).log_softmax(0)
        if targets is None:
            q = torch.full_like(log_p, smoothing / (stop - start))
            q[labels[i] - start] += 1 - smoothing
        else:
            q = targets[i, start:stop]
        loss = loss - weights[i] * (q * log_p).sum()
    return loss


def problem(B, C, D, kind, dtype=torch.float32):
    x, memory = torch.randn(B, D, dtype=dtype), F.normalize(torch.randn(C, D, dtype=dtype))
    labels = torch.randint(C, (B,))
    more = {"normalize": kind != "raw"}
    if "smooth" in kind:
        more["smoothing"] = 0.1
    if kind == "dense":
        more["targets"] = torch.rand(B, C, dtype=dtype)
    if "spans" in kind:
        more["columns"] = torch.stack([labels - torch.randint(3, (B,)), labels + 5], 1).clamp(0, C)
        more["weights"] = torch.rand(B, dtype=dtype)
    return x, memory, labels, 0.2, more


def positional(x, memory, labels, temperature, more, needs_grad=True):
    more = {"smoothing": 0.0, "targets": None, "columns": None, "weights": None, **more}
    options = (more["targets"], more["columns"], more["weights"])
    return x, memory, labels, *options, temperature, more["normalize"], more["smoothing"], needs_grad


def with_gradient(loss, *problem):
    x, memory, labels, temperature, more = problem
    x = x.clone().requires_grad_()
    value = loss(x, memory, labels, temperature, **more)
    value.backward()
    return value.detach(), x.grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cpu_matches_the_literal_loss(shape, kind):
    case = problem(*shape, kind, torch.float64)
    expected, gradient = with_gradient(literal, *case)
    for loss in (cluster_nce, cluster_nce_ref):
        value, by_x = with_gradient(loss, *case)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(by_x, gradient)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", [1, 97 * 4])
def test_cpu_holds_the_scores_of_some_rows_at_a_time(held, kind, monkeypatch):
    case = problem(6, 97, 33, kind, torch.float64)
    expected, gradient = with_gradient(literal, *case)
    monkeypatch.setattr(import_module("reid_fast.ops.cluster_nce"), "_SCORES", held)
    value, by_x = with_gradient(cluster_nce, *case)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(by_x, gradient)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_match_the_cpu(shape, kind, device):
    x, memory, labels, temperature, more = problem(*shape, kind)
    loss, gradient = _op(*positional(x, memory, labels, temperature, more))
    arguments = positional(x, memory, labels, temperature, more)
    loss_again, by_x = launch(*[a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments])
    torch.testing.assert_close(loss_again.cpu(), loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_x.cpu(), gradient, atol=2e-6, rtol=1e-4)
    arguments = (*arguments[:-1], False)
    again, none = launch(*[a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments])
    assert torch.equal(again, loss_again)
    assert none.numel() == 0


@pytest.mark.parametrize("split", [(1, 1), (1, 5), (3, 1), (2, 2)], ids=str)
def test_any_number_of_turns_and_parts(split, device, monkeypatch):
    """The same numbers whatever the number of programs that share the columns, and of turns through the workspace."""
    turn, parts = split
    x, memory, labels, temperature, _ = problem(5, 400, 9, "plain")
    expected, gradient = _op(*positional(x, memory, labels, temperature, {"normalize": True}))
    monkeypatch.setattr(kernel, "WORKSPACE", turn * 5 * 64 * 4)
    monkeypatch.setattr(tiles, "processors", lambda device: parts)
    for module, more in ((kernel, ()), (soft_targets, (None,))):
        loss, by_x = module.contrast(*(t.to(device) for t in (x, memory, labels)), *more, temperature)
        torch.testing.assert_close(loss.cpu(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(by_x.cpu(), gradient, atol=2e-6, rtol=1e-4)


def test_golden():
    raw, memory, labels = phi(6, 2.0), unit_phi(5, 0.5), torch.tensor([0, 0, 2, 2, 0, 3])
    loss, gradient = with_gradient(cluster_nce, raw, memory, labels, 0.05, {})
    near(loss, 5.964139)
    near(gradient.norm(), 4.908295)
    near(gradient[0], [0.199708, -0.663682, -0.992551, 0.490080, 0.521346, 0.304214, 0.714344, -0.574599])


@pytest.mark.parametrize(("smoothing", "expected", "norm"), [(0.3, 4.361873, 3.397842), (0.1, 5.430050, 4.393430)])
def test_golden_teacher_targets(smoothing, expected, norm):
    raw, memory, labels = phi(6, 2.0), unit_phi(5, 0.5), torch.tensor([0, 0, 2, 2, 0, 3])
    teacher = (unit_phi(6, 2.2) @ memory.T / 0.05).softmax(1)
    targets = (1 - smoothing) * F.one_hot(labels, 5) + smoothing * teacher
    loss, gradient = with_gradient(cluster_nce, raw, memory, labels, 0.05, {"targets": targets})
    near(loss, expected)
    near(gradient.norm(), norm)


def test_golden_smoothed_and_not_normalised():
    more = {"normalize": False, "smoothing": 0.1}
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    near(with_gradient(cluster_nce, phi(6, 2.0), 0.9 * unit_phi(5, 0.5), labels, 0.5, more)[0], 1.948568)


def test_confident_rows_keep_their_gradient_in_bfloat16(device):
    """p ≈ 1: the gradient is p - 1, which a bfloat16 p would round to 0 or to 2⁻⁸."""
    memory = F.normalize(torch.randn(9, 64)).bfloat16()
    labels = torch.arange(5)
    x = memory[:5].float() + 0.02 * torch.randn(5, 64)
    _, exact = _op(*positional(x.double(), memory.double(), labels, 0.12, {"normalize": True}))
    if device == "cpu":
        _, by_x = kernel.contrast(x, memory.float(), labels, 0.12)
    else:
        _, by_x = kernel.contrast(*(t.to(device) for t in (x.bfloat16(), memory, labels)), 0.12)
    assert (by_x.cpu() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("kind", ["plain", "smooth spans", "dense"])
def test_opcheck_and_gradcheck(kind):
    x, memory, labels, temperature, more = problem(4, 7, 5, kind, torch.float64)
    x.requires_grad_()
    opcheck(_op, positional(x, memory, labels, temperature, more))
    for loss in (cluster_nce, cluster_nce_ref):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, memory, labels, temperature, **more), x)


def test_a_label_outside_the_memory_is_no_loss(device):
    x, memory, _, temperature, _ = problem(3, 4, 5, "plain")
    loss, _ = kernel.contrast(*(t.to(device) for t in (x, memory, torch.tensor([0, 4, 1]))), temperature)
    assert loss.isnan()


def test_wrong_use():
    x, memory, labels, temperature, more = problem(3, 4, 5, "dense")
    with pytest.raises(ValueError, match="targets or smoothing"):
        cluster_nce(x, memory, labels, temperature, smoothing=0.1, **more)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_precision_and_bits(kind, dtype):
    """At most twice PyTorch's own error in the same type, and the same bits twice."""
    case = problem(256, 2000, 2048, kind, torch.float64)
    expected, gradient = with_gradient(cluster_nce_ref, *case)
    cast = lambda t: t.to("cuda", dtype if t.is_floating_point() else t.dtype)  # noqa: E731
    x, memory, labels, temperature, more = case
    more = {name: cast(t) if isinstance(t, torch.Tensor) else t for name, t in more.items()}
    low = cast(x), cast(memory), labels.cuda(), temperature, more
    value, by_x = with_gradient(cluster_nce, *low)
    again, by_x_again = with_gradient(cluster_nce, *low)
    assert torch.equal(value, again)
    assert torch.equal(by_x, by_x_again)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        torch_value, torch_by_x = with_gradient(cluster_nce_ref, *low)
    floor = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    error = lambda g: (g.cpu().double() - gradient).norm() / gradient.norm()  # noqa: E731
    assert error(by_x) <= max(2 * error(torch_by_x), floor)
    assert abs(value.cpu() - expected) <= max(2 * abs(torch_value.cpu() - expected), floor * expected)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(kind):
    *arguments, more = problem(67, 131, 67, kind)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = cluster_nce(*arguments, **more)
    assert torch.equal(under_autocast, cluster_nce(*arguments, **more))
