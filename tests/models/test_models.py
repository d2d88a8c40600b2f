"""Networks against torchvision's layout, BatchNorm against splitting the batch, pooling in float64."""

import copy
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reid_fast.errors import UserError
from reid_fast.models.encoder import Encoder, GeM
from reid_fast.models.norm import IBN, GroupedBatchNorm1d, GroupedBatchNorm2d, set_bn_group
from reid_fast.models.resnet import ARCHS, ResNet
from reid_fast.models.weights import load_weights

BN = {"weight": 1, "bias": 1, "running_mean": 1, "running_var": 1, "num_batches_tracked": 0}
TORCHVISION = {  # convolutions of a block, blocks of each stage, parameters in all without the classifier
    "resnet18": (2, (2, 2, 2, 2), 11_176_512),
    "resnet34": (2, (3, 4, 6, 3), 21_284_672),
    "resnet50": (3, (3, 4, 6, 3), 23_508_032),
    "resnet101": (3, (3, 4, 23, 3), 42_500_160),
}


def expected_layout(convolutions, layers):
    """Names and shapes of torchvision's ResNets, from the architecture's definition."""
    shapes = {"conv1.weight": (64, 3, 7, 7)}

    def norm(name, channels):
        shapes.update({f"{name}.{key}": (channels,) * dims for key, dims in BN.items()})

    norm("bn1", 64)
    before = 64
    for stage, blocks in enumerate(layers):
        width = 64 * 2**stage
        after = width if convolutions == 2 else 4 * width
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            kernels = [3, 3] if convolutions == 2 else [1, 3, 1]
            channels = [before, *[width] * (convolutions - 1), after]
            for i, kernel in enumerate(kernels):
                shapes[f"{name}.conv{i + 1}.weight"] = (channels[i + 1], channels[i], kernel, kernel)
                norm(f"{name}.bn{i + 1}", channels[i + 1])
            if block == 0 and (stage > 0 or before != after):
                shapes[f"{name}.downsample.0.weight"] = (after, before, 1, 1)
                norm(f"{name}.downsample.1", after)
            before = after
    return shapes


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def parameters_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Encoder("resnet18_half", "avg")


@pytest.mark.parametrize("arch", TORCHVISION)
def test_parameters_are_named_and_shaped_like_torchvisions(arch):
    convolutions, layers, count = TORCHVISION[arch]
    with torch.device("meta"):
        network = ResNet(ARCHS[arch])
    assert shapes_of(network) == expected_layout(convolutions, layers)
    assert parameters_of(network) == count


def test_ibn_a_splits_the_first_norm_of_every_block_of_stages_1_to_3():
    expected = expected_layout(3, (3, 4, 6, 3))
    for stage, blocks in enumerate((3, 4, 6)):
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}.bn1"
            (width,) = expected[f"{name}.weight"]
            for key, dims in BN.items():
                del expected[f"{name}.{key}"]
                expected[f"{name}.BN.{key}"] = (width // 2,) * dims
            expected |= {f"{name}.IN.{key}": (width // 2,) for key in ("weight", "bias")}
    with torch.device("meta"):
        assert shapes_of(ResNet(ARCHS["resnet_ibn50a"])) == expected


@pytest.mark.parametrize(("arch", "channels"), [("resnet50", 2048), ("resnet_ibn50a", 2048), ("resnet18_half", 256)])
@pytest.mark.parametrize(("size", "expected"), [((256, 128), (16, 8)), ((224, 224), (14, 14)), ((65, 31), (5, 2))])
def test_the_last_stage_keeps_the_resolution(arch, channels, size, expected):
    network = ResNet(ARCHS[arch]).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, *size)).shape == (1, channels, *expected)
    assert network.c_out == channels


def plain_forward(network, x):
    """ResNet-50 as its definition reads, in functional calls."""
    state = network.state_dict()

    def norm(x, name):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], False, 0, 1e-5)

    x = norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if block == 0 and stage in (2, 3) else 1
            y = norm(F.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1").relu()
            y = F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1)
            y = F.conv2d(norm(y, f"{name}.bn2").relu(), state[f"{name}.conv3.weight"])
            y = norm(y, f"{name}.bn3")
            if block == 0:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{name}.downsample.1")
            x = (x + y).relu()
    return x


def test_resnet50_computes_what_its_definition_says():
    torch.manual_seed(0)
    network = ResNet(ARCHS["resnet50"]).eval()
    for name, tensor in network.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    x = torch.randn(2, 3, 48, 33)
    with torch.no_grad():
        expected = plain_forward(network, x)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_the_stem_without_relu_lets_negative_values_into_the_pooling():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 16)
    for stem_relu in (True, False):
        network = ResNet(ARCHS["resnet18_half"], stem_relu).eval()
        seen = []
        network.maxpool.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].min().item()))
        network(x)
        assert (seen[0] >= 0) == stem_relu


def shaped(kind, batch):
    x = torch.randn(batch, 6) if kind is nn.BatchNorm1d else torch.randn(batch, 6, 5, 3)
    return 3 * x + 1


def a_norm(kind, group):
    """Our layer with random weights, and PyTorch's with the same ones."""
    ours = {nn.BatchNorm1d: GroupedBatchNorm1d, nn.BatchNorm2d: GroupedBatchNorm2d}[kind](6)
    for tensor in (ours.weight.data, ours.bias.data, ours.running_mean, ours.running_var):
        tensor.copy_(torch.rand(6) + 0.5)
    theirs = kind(6)
    theirs.load_state_dict(ours.state_dict())
    set_bn_group(ours, group)
    return ours, theirs


@pytest.mark.parametrize(
    ("kind", "channels_last"), [(nn.BatchNorm1d, False), (nn.BatchNorm2d, False), (nn.BatchNorm2d, True)]
)
@pytest.mark.parametrize(("batch", "group"), [(12, 4), (11, 4), (8, 3), (5, 7), (6, 6), (6, 0), (6, 2)])
def test_grouped_norm_equals_one_norm_for_each_slice(kind, batch, group, channels_last):
    torch.manual_seed(batch * 10 + group)
    ours, theirs = a_norm(kind, group)
    x = shaped(kind, batch)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    copy_of_x = x.detach().clone().requires_grad_()
    parts = copy_of_x.split(group or batch)
    devices = [theirs, *(copy.deepcopy(theirs) for _ in parts[1:])]
    for device in devices:
        device.weight, device.bias = theirs.weight, theirs.bias
    expected = torch.cat([device(part) for device, part in zip(devices, parts, strict=True)])
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    got = ours(x)
    got.backward(upstream)

    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, copy_of_x.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, rtol=1e-4, atol=1e-4)
    # The first device's buffers are the ones that are kept.
    torch.testing.assert_close(ours.running_mean, devices[0].running_mean)
    torch.testing.assert_close(ours.running_var, devices[0].running_var)
    assert ours.num_batches_tracked == 1


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_groups_mean_nothing_in_evaluation(kind):
    torch.manual_seed(0)
    ours, theirs = a_norm(kind, 2)
    before = ours.running_mean.clone()
    x = shaped(kind, 7)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert torch.equal(ours.running_mean, before)
    assert ours.num_batches_tracked == 0


def test_grouped_norm_keeps_the_memory_format():
    ours, _ = a_norm(nn.BatchNorm2d, 2)
    x = shaped(nn.BatchNorm2d, 5).contiguous(memory_format=torch.channels_last)
    assert ours(x).is_contiguous(memory_format=torch.channels_last)


def test_the_group_reaches_every_norm_of_an_encoder_and_a_negative_one_is_refused():
    encoder = Encoder("resnet_ibn50a", bn_group=16)
    norms = [layer for layer in encoder.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert {layer.group for layer in norms} == {16}
    assert len(norms) == 54  # 53 of the backbone, of which 13 stand beside an instance norm, and the neck
    with pytest.raises(ValueError, match="-1"):
        set_bn_group(encoder, -1)


def test_one_encoder_with_groups_equals_encoding_each_slice_alone(tiny):
    x = torch.randn(10, 3, 32, 16)
    alone = torch.cat([copy.deepcopy(tiny)(part) for part in x.split(4)])
    set_bn_group(tiny, 4)
    torch.testing.assert_close(tiny(x), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_ibn_normalises_each_picture_in_its_first_half_and_the_batch_in_the_rest(channels_last):
    torch.manual_seed(0)
    layer = IBN(7)
    x = 2 * torch.randn(5, 7, 4, 3) + 1
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    layer.IN.weight.data.uniform_(0.5, 2)
    layer.BN.bias.data.uniform_(0.5, 2)
    instance, batch = x[:, :3], x[:, 3:]
    deviation = (instance.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    instance = (instance - instance.mean((2, 3), keepdim=True)) / deviation * layer.IN.weight[:, None, None]
    deviation = (batch.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    batch = (batch - batch.mean((0, 2, 3), keepdim=True)) / deviation + layer.BN.bias[:, None, None]
    torch.testing.assert_close(layer(x), torch.cat([instance, batch], 1), rtol=1e-4, atol=1e-5)


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
def test_the_encoder_returns_unit_float32_rows(tiny, amp, training):
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


def saved_like_torchvision(arch):
    torch.manual_seed(1)
    state = ResNet(ARCHS[arch]).state_dict()
    state = {name: torch.rand(t.shape) if t.is_floating_point() else t for name, t in state.items()}
    return state | {"fc.weight": torch.rand(1000, 256), "fc.bias": torch.rand(1000)}


@pytest.mark.parametrize("wrapping", ["plain", "state_dict", "data_parallel", "without counters", "safetensors"])
def test_weights_with_torchvisions_names_load(tiny, tmp_path, wrapping):
    state = saved_like_torchvision("resnet18_half")
    path, content = tmp_path / "weights.pth", state
    if wrapping == "state_dict":
        content = {"state_dict": state, "epoch": 3}
    elif wrapping == "data_parallel":
        content = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    elif wrapping == "without counters":
        content = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    if wrapping == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    else:
        torch.save(content, path)
    load_weights(tiny, "resnet18_half", str(path))
    loaded = tiny.backbone.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)


def test_without_weights_the_encoder_stays_as_it_is(tiny):
    before = copy.deepcopy(tiny.state_dict())
    load_weights(tiny, "resnet18_half", "none")
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.state_dict().items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("layer2.0.conv1.weight"), "missing: layer2.0.conv1.weight"),
        (lambda state: state.update(head=torch.ones(1)), "unknown: head"),
        (lambda state: state.update({"bn1.bias": torch.ones(9)}), "of another shape: bn1.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_name(tiny, tmp_path, change, named):
    state = saved_like_torchvision("resnet18_half")
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    before = copy.deepcopy(tiny.state_dict())
    with pytest.raises(UserError, match=named) as caught:
        load_weights(tiny, "resnet18_half", str(tmp_path / "weights.pth"))
    assert "weights.pth" in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.state_dict().items())


def test_another_architectures_weights_name_a_few_keys_and_count_the_rest(tiny, tmp_path):
    torch.save(saved_like_torchvision("resnet34"), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"unknown: layer1\.2\.conv1\.weight.* and \d+ more"):
        load_weights(tiny, "resnet18_half", str(tmp_path / "weights.pth"))


def test_a_missing_weights_file_is_named(tiny, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pth: there is no such file"):
        load_weights(tiny, "resnet18_half", str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 half an archive"])
def test_a_file_that_holds_no_weights_is_named_in_one_line(tiny, tmp_path, suffix, content):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights\.{suffix} is not a file of") as caught:
        load_weights(tiny, "resnet18_half", str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {"layer": "text"}, {1: torch.ones(2)}])
def test_a_file_of_something_else_than_weights_is_a_user_error(tiny, tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth"):
        load_weights(tiny, "resnet18_half", str(tmp_path / "weights.pth"))


def test_imagenet_weights_offline_say_where_to_put_the_file(tmp_path, monkeypatch):
    def offline(url, path):
        assert url.startswith("https://download.pytorch.org/models/resnet18-")
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as caught:
        load_weights(Encoder("resnet18"), "resnet18", "imagenet")
    assert str(tmp_path / "checkpoints" / "resnet18-f37072fd.pth") in str(caught.value)


def test_imagenet_weights_are_downloaded_once(tmp_path, monkeypatch):
    downloads = []

    def download(url, path):
        downloads.append(url)
        state = saved_like_torchvision("resnet18")
        torch.save(state, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for _ in range(2):
        encoder = Encoder("resnet18")
        load_weights(encoder, "resnet18", "imagenet")
        assert torch.equal(encoder.backbone.conv1.weight, saved_like_torchvision("resnet18")["conv1.weight"])
    assert len(downloads) == 1


def test_an_architecture_without_published_weights_says_so(tiny):
    with pytest.raises(UserError, match="resnet18_half"):
        load_weights(tiny, "resnet18_half", "imagenet")
