"""target_nce, asked for by cluster_nce's `smoothing` and `targets`: a literal loss, its kernels, golden values."""

import pytest
import torch
import torch.nn.functional as F
from contrast import SHAPES, check_cpu, check_gpu_precision_and_bits, check_kernels, on, problem, with_gradient
from inputs import near, phi, unit_phi
from torch.library import opcheck

from reid_fast.kernels import target_nce as kernel
from reid_fast.kernels import tiles
from reid_fast.ops import _numerics, cluster_nce
from reid_fast.ops.cluster_nce import cluster_nce_ref
from reid_fast.ops.target_nce import target_nce

KINDS = ["smooth", "dense", "smooth spans"]


def positional(x, memory, labels, temperature, options, needs_grad=True):
    found = (options.get(name) for name in ("targets", "spans", "weights"))
    return x, memory, labels, temperature, options["normalize"], options.get("smoothing", 0.0), *found, needs_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cpu_matches_the_literal_loss(shape, kind):
    check_cpu(shape, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", [1, 97 * 4])
def test_cpu_holds_the_logits_of_some_rows_at_a_time(held, kind, monkeypatch):
    monkeypatch.setattr(_numerics, "_LOGITS", held)
    check_cpu((6, 97, 33), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_match_the_cpu_with_and_without_the_gradient(shape, kind, device):
    check_kernels(target_nce, kernel.target_nce, positional(*problem(*shape, kind)), device)


@pytest.mark.parametrize("split", [(1, 1), (1, 5), (3, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("kind", ["plain", "dense", "smooth spans"])
def test_any_number_of_turns_and_parts(kind, split, device, monkeypatch):
    """The same numbers whatever the number of programs that share the columns, and of turns through the workspace."""
    turn, parts = split
    arguments = positional(*problem(5, 400, 9, kind))
    expected, gradient = target_nce(*arguments)
    monkeypatch.setattr(tiles, "WORKSPACE", turn * 5 * 64 * 4)
    monkeypatch.setattr(tiles, "processors", lambda device: parts)
    loss, by_x = kernel.target_nce(*on(device, *arguments))
    torch.testing.assert_close(loss.cpu(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_x.cpu(), gradient, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(("smoothing", "expected", "norm"), [(0.3, 4.361873, 3.397842), (0.1, 5.430050, 4.393430)])
def test_golden_teacher_targets(smoothing, expected, norm):
    raw, memory, labels = phi(6, 2.0), unit_phi(5, 0.5), torch.tensor([0, 0, 2, 2, 0, 3])
    teacher = (unit_phi(6, 2.2) @ memory.T / 0.05).softmax(1)
    targets = (1 - smoothing) * F.one_hot(labels, 5) + smoothing * teacher
    loss, gradient = with_gradient(cluster_nce, raw, memory, labels, 0.05, targets=targets)
    near(loss, expected)
    near(gradient.norm(), norm)


def test_golden_smoothed_and_not_normalised():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    near(cluster_nce(phi(6, 2.0), 0.9 * unit_phi(5, 0.5), labels, 0.5, normalize=False, smoothing=0.1), 1.948568)


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind):
    x, *rest = positional(*problem(4, 7, 5, kind, torch.float64))
    opcheck(target_nce, (x.requires_grad_(), *rest))


@pytest.mark.parametrize("loss", [cluster_nce, cluster_nce_ref])
@pytest.mark.parametrize("kind", ["smooth spans", "dense"])
def test_gradcheck(kind, loss):
    x, *rest, options = problem(4, 7, 5, kind, torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, *rest, **options), x.requires_grad_())


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(kind):
    *case, options = problem(67, 131, 67, kind)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = cluster_nce(*case, **options)
    assert torch.equal(under_autocast, cluster_nce(*case, **options))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_precision_and_bits(kind, dtype):
    check_gpu_precision_and_bits(cluster_nce, cluster_nce_ref, kind, dtype)
