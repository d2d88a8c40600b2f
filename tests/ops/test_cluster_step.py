"""cluster_step is cluster_nce, then memory_update: the same loss, gradient and memory."""

import pytest
import torch
import torch.nn.functional as F
from inputs import near, phi, unit_phi
from torch.library import opcheck

from reid_fast.kernels import cluster_nce as cluster_kernel
from reid_fast.kernels import cluster_step as kernel
from reid_fast.ops import cluster_nce, cluster_step, memory_update
from reid_fast.ops.cluster_step import _op


def problem(B, C, D):
    return torch.randn(B, D), F.normalize(torch.randn(C, D)), torch.randint(C, (B,))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("mode", "temperature"), [("serial", None), ("hard", None), ("weighted", 0.2)])
def test_is_its_two_parts(mode, temperature, normalize, device):
    x, memory, labels = problem(11, 13, 19)
    x = x if normalize else F.normalize(x)
    expected, by_x = memory.clone(), x.clone().requires_grad_()
    loss = cluster_nce(by_x, memory, labels, 0.1, normalize=normalize)
    loss.backward()
    memory_update(expected, F.normalize(x), labels, 0.2, mode, temperature)

    actual, leaf = memory.clone(), x.clone().requires_grad_()
    step = cluster_step(leaf, actual, labels, 0.1, 0.2, mode, update_temperature=temperature, normalize=normalize)
    step.backward()
    torch.testing.assert_close(step, loss)
    torch.testing.assert_close(leaf.grad, by_x.grad)
    torch.testing.assert_close(actual, expected)

    on = lambda t: t.clone().to(device)  # noqa: E731
    fused = on(memory)
    total, gradient = kernel.step(on(x), fused, on(labels), 0.1, 0.2, mode, temperature, normalize=normalize)
    torch.testing.assert_close(total.cpu(), loss.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient.cpu(), by_x.grad, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(fused.cpu(), expected, atol=5e-7, rtol=1e-5)


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
    for module, name in ((cluster_kernel, "score"), (cluster_kernel, "gradient"), (kernel, "step")):
        monkeypatch.setattr(module, f"{name}_kernel", Counted(getattr(module, f"{name}_kernel"), launches))
    kernel.step(x, memory, labels, 0.1, 0.2, "serial")
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
    opcheck(_op, (x, memory, labels, None, None, None, 0.1, True, 0.0, 0.2, "serial", None, None, True))


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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_bits_and_launches(dtype):
    x, memory, labels = (t.cuda() for t in problem(256, 2000, 2048))
    x, memory = x.to(dtype), memory.to(dtype)
    runs = []
    for _ in range(2):
        leaf, bank = x.clone().requires_grad_(), memory.clone()
        loss = cluster_step(leaf, bank, labels, 0.05, 0.1)
        loss.backward()
        runs.append((loss.detach(), leaf.grad, bank))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    leaf = x.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        cluster_step(leaf, memory, labels, 0.05, 0.1)
        torch.cuda.synchronize()
    kernels = [e for e in profile.events() if e.device_type == torch.profiler.DeviceType.CUDA]
    assert len(kernels) <= 3, [e.name for e in kernels]
