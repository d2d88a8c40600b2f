"""cluster_step is cluster_nce, then memory_update: the same loss, gradient and memory."""

import pytest
import torch
import torch.nn.functional as F
from contrast import on
from inputs import near, phi, unit_phi
from torch.library import opcheck

from reid_fast.kernels import cluster_step as kernel
from reid_fast.kernels import one_target
from reid_fast.ops import cluster_nce, cluster_step, memory_update
from reid_fast.ops.cluster_step import _op


def problem(B, C, D):
    return torch.randn(B, D), F.normalize(torch.randn(C, D)), torch.randint(C, (B,))


MODES = [("serial", None), ("hard", None), ("weighted", 0.2), ("pick", None)]


def case(mode):
    """(x, memory, labels, scores), and the loss, gradient and memory of the two parts."""
    x, memory, labels = problem(11, 13, 19)
    scores = torch.rand(11) if mode[0] == "pick" else None
    updated, leaf = memory.clone(), x.clone().requires_grad_()
    loss = cluster_nce(leaf, memory, labels, 0.1)
    loss.backward()
    memory_update(updated, F.normalize(x), labels, 0.2, *mode, scores=scores)
    return (x, memory, labels, scores), (loss.detach(), leaf.grad, updated)


@pytest.mark.parametrize("mode", MODES)
def test_is_its_two_parts(mode):
    (x, memory, labels, scores), expected = case(mode)
    leaf = x.clone().requires_grad_()
    loss = cluster_step(leaf, memory, labels, 0.1, 0.2, mode[0], update_temperature=mode[1], scores=scores)
    loss.backward()
    torch.testing.assert_close((loss.detach(), leaf.grad, memory), expected)


@pytest.mark.parametrize("mode", MODES)
def test_kernels_are_its_two_parts(mode, device):
    (x, memory, labels, scores), (loss, gradient, updated) = case(mode)
    fused = memory.to(device, copy=True)
    total, by_x = kernel.cluster_step(*on(device, x, fused, labels, 0.1, 0.2, *mode, scores, True))
    torch.testing.assert_close(total.cpu(), loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_x.cpu(), gradient, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(fused.cpu(), updated, atol=5e-7, rtol=1e-5)


class Counted:
    """A kernel that notes each launch."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        self.launches.append(grid)
        return self.kernel[grid]


def test_three_launches(device, monkeypatch):
    x, memory, labels = (t.to(device) for t in problem(11, 13, 19))
    launches = []
    for module, name in ((one_target, "logits"), (one_target, "gradient"), (kernel, "step")):
        monkeypatch.setattr(module, f"{name}_kernel", Counted(getattr(module, f"{name}_kernel"), launches))
    kernel.cluster_step(x, memory, labels, 0.1, 0.2, "serial", None, None, True)
    assert len(launches) == 3


def test_golden():
    raw, memory, labels = phi(6, 2.0).requires_grad_(), unit_phi(5, 0.5), torch.tensor([0, 0, 2, 2, 0, 3])
    loss = cluster_step(raw, memory, labels, 0.05, 0.1)
    loss.backward()
    near(loss.detach(), 5.964139)
    near(raw.grad.norm(), 4.908295)
    near(memory[0], [0.255825, -0.540230, 0.223888, 0.273359, -0.438084, 0.273275, 0.109844, -0.489073])


def test_opcheck():
    x, memory, labels = problem(5, 4, 6)
    opcheck(_op, (x, memory, labels, 0.1, 0.2, "serial", None, None, True))


def test_compiles_whole():
    """A training step around the op traces without a break and changes the memory like the eager one."""
    x, memory, labels = problem(8, 9, 16)
    weight = torch.randn(16, 16)

    def step(weight, memory):
        return 2 * cluster_step(x @ weight, memory, labels, 0.1, 0.2)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf, bank = weight.clone().requires_grad_(), memory.clone()
        loss = function(leaf, bank)
        loss.backward()
        results.append((loss.detach(), leaf.grad, bank))
    torch.testing.assert_close(results[1], results[0])
    assert not torch.equal(results[0][2], memory)


def test_without_gradient_it_still_updates():
    x, memory, labels = problem(4, 5, 6)
    before = memory.clone()
    loss = cluster_step(x, memory, labels, 0.1, 0.2)
    assert not loss.requires_grad
    assert not torch.equal(memory, before)


@pytest.mark.parametrize("temperature", [0.0, -0.05])
def test_a_temperature_that_is_not_positive_is_refused_before_anything_changes(temperature):
    x, memory, labels = problem(4, 5, 6)
    before = memory.clone()
    with pytest.raises(ValueError, match=f"must be positive, not {temperature}"):
        cluster_step(x, memory, labels, temperature, 0.2)
    with pytest.raises(ValueError, match=f"must be positive, not {temperature}"):
        cluster_step(x, memory, labels, 0.1, 0.2, "weighted", update_temperature=temperature)
    assert torch.equal(memory, before)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_bits(dtype):
    x, memory, labels = (t.cuda() for t in problem(256, 2000, 2048))
    x, memory = x.to(dtype), memory.to(dtype)
    runs = []
    for _ in range(2):
        leaf, bank = x.clone().requires_grad_(), memory.clone()
        loss = cluster_step(leaf, bank, labels, 0.05, 0.1)
        loss.backward()
        runs.append((loss.detach(), leaf.grad, bank))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.gpu
def test_gpu_launches():
    x, memory, labels = (t.cuda() for t in problem(256, 2000, 2048))
    leaf = x.requires_grad_()
    cluster_step(leaf, memory, labels, 0.05, 0.1)  # compiles
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        cluster_step(leaf, memory, labels, 0.05, 0.1)
        torch.cuda.synchronize()
    kernels = [e for e in profile.events() if e.device_type == torch.profiler.DeviceType.CUDA]
    assert len(kernels) <= 3, [e.name for e in kernels]
