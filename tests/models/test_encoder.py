"""Pooling in float64, the neck, and what an encoder returns."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reid_fast.models import norm
from reid_fast.models.archs.resnet import BasicBlock
from reid_fast.models.encoder import Encoder, GeM
from reid_fast.ops.grouped_bn import grouped_bn_ref


@pytest.mark.parametrize("p", [1.0, 3.0, 4.7])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 16, 8), (2, 7, 5, 3)])
def test_gem_equals_its_formula_in_float64(p, shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    wide = x.double().clamp(min=1e-6)
    expected = (wide**p).mean((2, 3)) ** (1 / p)
    torch.testing.assert_close(GeM(p)(x), expected.float(), rtol=1e-5, atol=1e-6)


def test_gem_has_one_trainable_exponent_that_begins_at_3():
    pool = GeM()
    assert [(p.shape, p.item(), p.requires_grad) for p in pool.parameters()] == [((1,), 3.0, True)]


def test_gem_gradients_equal_the_formulas_in_float64():
    torch.manual_seed(0)
    pool, x = GeM(), torch.rand(3, 5, 4, 3).requires_grad_()
    upstream = torch.randn(3, 5)
    pool(x).backward(upstream)
    wide = x.detach().double().requires_grad_()
    p = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)

    def formula(x, p):
        return x.clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)

    assert torch.autograd.gradcheck(formula, (wide, p))
    formula(wide, p).backward(upstream.double())
    torch.testing.assert_close(x.grad, wide.grad.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(pool.p.grad, p.grad.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pooling", ["avg", "gem"])
def test_pooling_accumulates_halves_in_float32(pooling, dtype):
    torch.manual_seed(0)
    pool = Encoder("resnet18_half", pooling).pool
    x = (10 * torch.rand(2, 5, 64, 64)).to(dtype)
    got = pool(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, pool(x.float()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_encoder_returns_normalised_float32_features(tiny, amp, training):
    x = torch.randn(5, 3, 32, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        got = tiny.train(training)(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double().norm(dim=1), torch.ones(5).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("training", [False, True])
def test_the_neck_stands_between_pooling_and_norm(tiny, training):
    tiny.train(training)
    tiny.neck.running_mean.uniform_(-1, 1)
    tiny.neck.running_var.uniform_(0.5, 2)
    tiny.neck.weight.data.uniform_(0.5, 2)
    x = torch.randn(6, 3, 32, 16)
    neck = copy.deepcopy(tiny.neck)
    u = copy.deepcopy(tiny).pooled(x)
    mean, var = (u.mean(0), u.var(0, correction=0)) if training else (neck.running_mean, neck.running_var)
    b = (u - mean) / (var + 1e-5).sqrt() * neck.weight
    torch.testing.assert_close(tiny(x), b / b.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_the_neck_bias_is_frozen_at_zero_and_all_else_trains(tiny):
    assert [name for name, p in tiny.named_parameters() if not p.requires_grad] == ["neck.bias"]
    assert not tiny.neck.bias.any()
    assert (tiny.neck.weight == 1).all()
    tiny(torch.randn(4, 3, 32, 16)).sum().backward()
    assert tiny.neck.bias.grad is None
    assert all(p.grad is not None for name, p in tiny.named_parameters() if name != "neck.bias")


class Traffic(TorchDispatchMode):
    """Counts operations that are not views, and the bytes of their arguments and results, each once."""

    def __init__(self):
        super().__init__()
        self.operations, self.bytes = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = {id(t): t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
            self.operations += 1
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return out


def traffic_of_a_step():
    """Of ResNet-50's features and gradients as on CUDA under autocast, from shapes alone; casts of weights left out."""
    encoder = Encoder("resnet50", bn_group=64).to("meta", memory_format=torch.channels_last)
    images = torch.empty(256, 3, 256, 128, dtype=torch.bfloat16, device="meta").to(memory_format=torch.channels_last)
    for layer in encoder.backbone.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.bfloat16()
    with Traffic() as traffic:
        encoder.neck(encoder.pool(encoder.backbone(images))).sum().backward()
    return traffic


def test_a_step_off_the_cpu_copies_no_groups(monkeypatch):
    """At the published batch: one operation for each norm both ways, instead of one a group and copies between."""
    fused = traffic_of_a_step()
    monkeypatch.setattr(norm, "grouped_bn", grouped_bn_ref)
    split = traffic_of_a_step()
    assert split.operations > 1300
    assert fused.operations < 310
    assert split.bytes > 86e9
    assert fused.bytes < 57e9


def test_a_block_compiles_whole():
    torch.manual_seed(0)
    block, images = BasicBlock(3, 4, 2, ibn=False), torch.randn(4, 3, 8, 6)
    norm.set_bn_group(block, 2)
    results = []
    for module in (copy.deepcopy(block), torch.compile(block, fullgraph=True, backend="aot_eager")):
        y = module(images)
        y.square().sum().backward()
        results.append([y.detach(), *(parameter.grad for parameter in module.parameters()), *module.buffers()])
    for actual, wanted in zip(*results, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("domains", [False, True])
@pytest.mark.parametrize("arch", ["resnet18_half", "resnet50", "resnet_ibn50a"])
def test_gpu_a_step_equals_the_cpus(arch, domains):
    torch.manual_seed(0)
    encoder, images = Encoder(arch, "gem", bn_group=4), torch.randn(16, 3, 64, 32)
    if domains:
        norm.split_domains(encoder)
    results = []
    for device in ("cpu", "cuda"):
        network = copy.deepcopy(encoder).to(device, memory_format=torch.channels_last)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            x = network(images.to(device))
            (x * torch.linspace(-1, 1, x.shape[1], device=device)).sum().backward()
        gradients = [parameter.grad.cpu() for parameter in network.parameters() if parameter.grad is not None]
        results.append([x.detach().cpu(), *gradients, *(buffer.cpu() for buffer in network.buffers())])
    for actual, wanted in zip(*results, strict=True):
        assert (actual.double() - wanted.double()).norm() <= 1e-3 * wanted.double().norm() + 1e-6
