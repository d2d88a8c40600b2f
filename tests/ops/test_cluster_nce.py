"""cluster_nce against a literal loss, its kernels against both, and the published golden values."""

import pytest
import torch
import torch.nn.functional as F
from compiled import cuda_autocast
from contrast import SHAPES, check_cpu, check_gpu_precision_and_bits, check_kernels, on, problem, with_gradient
from inputs import near, phi, unit_phi
from torch.library import opcheck

from reid_fast.kernels import cluster_nce as kernel
from reid_fast.kernels import tiles
from reid_fast.ops import _numerics, cluster_nce
from reid_fast.ops.cluster_nce import _op, cluster_nce_ref

KINDS = ["plain", "raw", "spans"]
GOLDEN_LABELS = torch.tensor([0, 0, 2, 2, 0, 3])


def positional(x, memory, labels, temperature, options, needs_grad=True):
    options = (options["normalize"], options.get("spans"), options.get("weights"))
    return x, memory, labels, temperature, *options, needs_grad


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
    check_kernels(_op, kernel.cluster_nce, positional(*problem(*shape, kind)), device)


@pytest.mark.parametrize("split", [(1, 1), (1, 5), (3, 1), (2, 2)], ids=str)
def test_any_number_of_turns_and_parts(split, device, monkeypatch):
    """The same numbers whatever the number of programs that share the columns, and of turns through the workspace."""
    turn, parts = split
    arguments = positional(*problem(5, 400, 9, "plain"))
    expected, gradient = _op(*arguments)
    monkeypatch.setattr(tiles, "WORKSPACE", turn * 5 * 64 * 4)
    monkeypatch.setattr(tiles, "processors", lambda device: parts)
    loss, by_x = kernel.cluster_nce(*on(device, *arguments))
    torch.testing.assert_close(loss.cpu(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_x.cpu(), gradient, atol=2e-6, rtol=1e-4)


def test_golden():
    loss, gradient = with_gradient(cluster_nce, phi(6, 2.0), unit_phi(5, 0.5), GOLDEN_LABELS, 0.05)
    near(loss, 5.964139)
    near(gradient.norm(), 4.908295)
    near(gradient[0], [0.199708, -0.663682, -0.992551, 0.490080, 0.521346, 0.304214, 0.714344, -0.574599])


def test_confident_rows_keep_their_gradient_in_bfloat16(device):
    """p ≈ 1: the gradient is p - 1, which a bfloat16 p would round to 0 or to 2⁻⁸."""
    memory, labels = F.normalize(torch.randn(9, 64)).bfloat16(), torch.arange(5)
    x = memory[:5].float() + 0.02 * torch.randn(5, 64)
    options = (labels, 0.12, True, None, None, True)
    _, exact = _op(x.double(), memory.double(), *options)
    # The interpreter has no bfloat16 products.
    x, memory = (x, memory.float()) if device == "cpu" else (x.bfloat16(), memory)
    _, by_x = kernel.cluster_nce(*on(device, x, memory, *options))
    assert (by_x.cpu() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("kind", ["plain", "spans"])
def test_opcheck(kind):
    x, *rest = positional(*problem(4, 7, 5, kind, torch.float64))
    opcheck(_op, (x.requires_grad_(), *rest))


@pytest.mark.parametrize("loss", [cluster_nce, cluster_nce_ref])
@pytest.mark.parametrize("kind", ["plain", "spans"])
def test_gradcheck(kind, loss):
    x, *rest, options = problem(4, 7, 5, kind, torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, *rest, **options), x.requires_grad_())


def test_a_label_outside_the_memory_is_no_loss(device):
    x, memory, _, temperature, options = problem(3, 4, 5, "plain")
    arguments = positional(x, memory, torch.tensor([0, 4, 1]), temperature, options)
    assert kernel.cluster_nce(*on(device, *arguments))[0].isnan()


def test_targets_together_with_smoothing_are_refused():
    *case, options = problem(3, 4, 5, "dense")
    with pytest.raises(ValueError, match="targets or smoothing"):
        cluster_nce(*case, smoothing=0.1, **options)


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


def test_under_autocast_float32_is_multiplied_in_its_type(device):
    """In float16, which the interpreter multiplies too."""
    arguments = on(device, *positional(*problem(9, 70, 33, "raw")))
    x, memory, *rest = arguments
    exact = kernel.cluster_nce(*arguments)
    with cuda_autocast(torch.float16):
        lowered = kernel.cluster_nce(*arguments)
        full = kernel.cluster_nce(x, memory.half(), *rest)  # types that differ decide for themselves
    for ours, theirs in zip(lowered, kernel.cluster_nce(x.half(), memory, *rest), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(lowered, exact, strict=True):
        assert not torch.equal(ours, theirs)
    torch.testing.assert_close(lowered, exact, atol=3e-2, rtol=3e-2)
    assert torch.equal(full[0], kernel.cluster_nce(x, memory.half(), *rest)[0])
