"""What all ops promise: they trace without a break, import no kernel until CUDA asks, and say what is missing."""

import subprocess
import sys
from contextlib import contextmanager, nullcontext
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from reid_fast import ops
from reid_fast.ops import augment, camera_nce, cluster_nce, memory_update
from reid_fast.ops._registration import launcher


def contrast_and_update(x, memory, labels):
    loss = cluster_nce(x, memory, labels, 0.1)
    memory_update(memory, F.normalize(x), labels, 0.2)
    return loss


def camera(x, memory, labels):
    return camera_nce(2 * x, memory, torch.arange(9), labels, 0.1, 3)


def image(x, memory, labels):
    images = torch.arange(4 * 6 * 5 * 3).view(4, 6, 5, 3).to(torch.uint8)
    numbers = torch.zeros(8, 4, dtype=torch.int32)
    third = (0.5, 0.5, 0.5)
    out = augment(images, labels % 4, labels > 4, numbers[:, :2], numbers, mean=third, std=third, fill=third)
    return (out.mean((1, 2, 3)) * x.sum(1)).sum()


@pytest.mark.parametrize("step", [contrast_and_update, camera, image])
def test_a_step_compiles_whole(step):
    results = []
    weight, x, start, labels = (
        torch.randn(16, 16),
        torch.randn(8, 16),
        F.normalize(torch.randn(9, 16)),
        torch.arange(8),
    )
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf, memory = weight.clone().requires_grad_(), start.clone()
        loss = function(x @ leaf, memory, labels)
        loss.backward()
        results.append((loss.detach(), leaf.grad, memory))
    torch.testing.assert_close(results[1], results[0])


def test_kernels_launch_on_the_device_of_their_tensors(monkeypatch):
    """Triton launches on the current device: that of the first tensor is current then, and no longer after."""
    current, seen = ["first"], []

    @contextmanager
    def device(of):
        current.append(of)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    kernels = import_module("reid_fast.kernels.memory_update")
    monkeypatch.setattr(kernels, "memory_update", lambda *arguments: seen.append((current[-1], arguments)))
    memory = torch.empty(2, device="meta")
    launcher("memory_update", "memory_update")(memory, 3)
    assert seen == [(memory.device, (memory, 3))]
    assert current == ["first"]


@pytest.mark.parametrize(
    ("file", "name", "op"),
    [
        ("grouped_bn", "grouped_bn", "_op"),
        ("grouped_bn", "grouped_bn_backward", "_backward"),
        ("bias_relu", "bias_relu", "_op"),
    ],
)
def test_maps_reach_their_launcher_as_they_lie(file, name, op, monkeypatch):
    """channels_last is not contiguous: making it so would move every map once more."""
    seen = []
    monkeypatch.setattr(import_module(f"reid_fast.kernels.{file}"), name, lambda x, *_: seen.append(x.stride()))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    maps = torch.randn(2, 8, 3, 5).to(memory_format=torch.channels_last)
    op = getattr(import_module(f"reid_fast.ops.{file}"), op)
    op._backend_fns["cuda"](maps, *(10 * [[]]))
    assert seen == [maps.stride()]


LOSSES = {
    "cluster_nce": lambda x, memory, labels: cluster_nce(x, memory, labels, 0.05),
    "smoothing": lambda x, memory, labels: cluster_nce(x, memory, labels, 0.05, smoothing=0.1),
    "cluster_step": lambda x, memory, labels: ops.cluster_step(x, memory.clone(), labels, 0.05, 0.1),
    "camera_nce": lambda x, memory, labels: camera_nce(x, memory, torch.arange(9), labels, 0.07, 3),
    "hybrid_nce": lambda x, memory, labels: ops.hybrid_nce(x, memory, torch.arange(9), labels, 0.05, 4.0),
    "soft_nce": lambda x, memory, labels: ops.soft_nce(x, x + 1, 2 * x + 1, 0.4),
    "hard_nce": lambda x, memory, labels: ops.hard_nce(x, x + 1, labels, temperature=0.1),
    "attention": lambda x, *_: ops.cluster_attention(x[None], x[None], x, OFFSETS, SCALE)[0].square().sum(),
}
OFFSETS, SCALE = torch.tensor([0, 3, 8]), torch.tensor(3.0)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name):
    """The caller's types decide, not the region it calls from."""
    x, memory, labels = torch.randn(8, 64), F.normalize(torch.randn(9, 64)), torch.arange(8)
    results = []
    for enabled in (False, True):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = LOSSES[name](leaf, memory, labels)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


TEMPERATURES = {
    "cluster_nce": lambda x, t: cluster_nce(x, x, OWN, t),
    "smoothing": lambda x, t: cluster_nce(x, x, OWN, t, smoothing=0.1),
    "cluster_step": lambda x, t: ops.cluster_step(x, x.clone(), OWN, t, 0.1),
    "memory_update": lambda x, t: memory_update(x.clone(), x, OWN, 0.1, "weighted", t),
    "camera_nce": lambda x, t: camera_nce(x, x, OWN, OWN, t, 3),
    "hybrid_nce": lambda x, t: ops.hybrid_nce(x, x, OWN, OWN, t),
    "soft_nce": lambda x, t: ops.soft_nce(x, x, x, t),
    "hard_nce": lambda x, t: ops.hard_nce(x, x, OWN, t),
}
OWN = torch.arange(4)


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan")])
@pytest.mark.parametrize("name", TEMPERATURES)
def test_a_temperature_that_is_not_positive_is_refused(name, temperature):
    with pytest.raises(ValueError, match="the temperature must be positive"):
        TEMPERATURES[name](F.normalize(torch.randn(4, 6)), temperature)


def test_ops_import_no_kernel():
    program = "import sys, reid_fast.ops; sys.exit(any(m.startswith('reid_fast.kernels') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_without_triton_the_error_names_the_way_out(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("reid_fast.kernels.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeError, match="pip install 'triton"):
        launcher("cluster_nce", "cluster_nce")(torch.empty(1))
