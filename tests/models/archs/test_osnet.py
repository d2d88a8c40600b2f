"""OSNets against torchreid's names and published sizes, and against their definition."""

import pytest
import torch
import torch.nn.functional as F
from inputs import sampled

from reid_fast.errors import UserError
from reid_fast.models.archs import Options
from reid_fast.models.archs.osnet import ARCHS, OSNet
from reid_fast.models.norm import set_bn_group

SMALL = Options((64, 32))
PUBLISHED = 2_193_616  # parameters of osnet_x1_0 as torchreid's compute_model_complexity counts them


def names_of(widths, ain):
    """torchreid's names of osnet.py and osnet_ain.py without the classifier: weights with their shapes, norms."""
    weights, norms = {}, {}

    def conv(name, c_in, c_out, kernel=1, norm="bn", groups=1):
        weights[f"{name}.conv.weight"] = (c_out, c_in, kernel, kernel)
        if norm:
            norms[f"{name}.{norm}"] = c_out

    def light(name, width):
        weights[f"{name}.conv1.weight"] = (width, width, 1, 1)
        weights[f"{name}.conv2.weight"] = (width, 1, 3, 3)
        norms[f"{name}.bn"] = width

    def block(name, c_in, c_out, instance):
        width, few = c_out // 4, c_out // 64
        conv(f"{name}.conv1", c_in, width)
        for depth in range(4):
            for layer in range(depth + 1):
                if ain:
                    light(f"{name}.conv2.{depth}.layers.{layer}", width)
                else:
                    light(f"{name}.conv2{'abcd'[depth]}" + (f".{layer}" if depth else ""), width)
        weights.update({f"{name}.gate.fc1.weight": (few, width, 1, 1), f"{name}.gate.fc1.bias": (few,)})
        weights.update({f"{name}.gate.fc2.weight": (width, few, 1, 1), f"{name}.gate.fc2.bias": (width,)})
        conv(f"{name}.conv3", width, c_out, norm=None if instance else "bn")
        if instance:
            weights.update({f"{name}.IN.{key}": (c_out,) for key in ("weight", "bias")})
        if c_in != c_out:
            conv(f"{name}.downsample", c_in, c_out)

    conv("conv1", 3, widths[0], 7, norm=None if ain else "bn")
    if ain:
        weights.update({f"conv1.bn.{key}": (widths[0],) for key in ("weight", "bias")})
    of_instance = iter([True, True, False, True, True, False])
    for stage in (2, 3, 4):
        before, width = widths[stage - 2 : stage]
        block(f"conv{stage}.0", before, width, ain and next(of_instance))
        block(f"conv{stage}.1", width, width, ain and next(of_instance))
        if stage < 4:
            conv(f"pool{stage}.0" if ain else f"conv{stage}.2.0", width, width)
    conv("conv5", widths[3], widths[3])
    weights.update({"fc.0.weight": (512, widths[3]), "fc.0.bias": (512,)})
    norms["fc.1"] = 512
    for name, width in norms.items():
        weights.update({f"{name}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")})
        weights[f"{name}.num_batches_tracked"] = ()
    return weights


@pytest.mark.parametrize("arch", ARCHS)
def test_parameters_are_named_and_shaped_like_torchreids(arch):
    widths = {"x1_0": (64, 256, 384, 512), "x0_75": (48, 192, 288, 384), "x0_5": (32, 128, 192, 256)}
    widths["x0_25"] = (16, 64, 96, 128)
    state = ARCHS[arch].build(Options()).state_dict()
    expected = names_of(widths[arch.split("_", 1)[1].removeprefix("ain_")], "ain" in arch)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


@pytest.mark.parametrize("arch", ["osnet_x1_0", "osnet_ain_x1_0"])
def test_it_has_as_many_parameters_as_published(arch):
    """torchreid counts the gate of a block once for each of the four streams."""
    network = ARCHS[arch].build(Options())
    gates = sum(weight.numel() for name, weight in network.named_parameters() if ".gate." in name)
    assert sum(weight.numel() for weight in network.parameters()) + 3 * gates == PUBLISHED


def plain_forward(state, x, ain, training):
    """The network as its papers read, a stream after the other, from a state dict."""

    def bn(x, name):
        mean, var = state[f"{name}.running_mean"].clone(), state[f"{name}.running_var"].clone()
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], training, 0.1, 1e-5)

    def instance(x, name):
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, correction=0)
        weight, bias = (state[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv(x, name, norm=bn):
        return norm(F.conv2d(x, state[f"{name}.conv.weight"]), f"{name}.bn")

    def light(x, name):
        x = F.conv2d(x, state[f"{name}.conv1.weight"])
        weight = state[f"{name}.conv2.weight"]
        return bn(F.conv2d(x, weight, padding=1, groups=len(weight)), f"{name}.bn").relu()

    def gated(x, name):
        y = F.conv2d(F.adaptive_avg_pool2d(x, 1), state[f"{name}.fc1.weight"], state[f"{name}.fc1.bias"]).relu()
        return x * F.conv2d(y, state[f"{name}.fc2.weight"], state[f"{name}.fc2.bias"]).sigmoid()

    def block(x, name):
        y, total = conv(x, f"{name}.conv1").relu(), 0
        for depth in range(4):
            z = y
            for layer in range(depth + 1):
                plain = f"{name}.conv2{'abcd'[depth]}" + (f".{layer}" if depth else "")
                z = light(z, f"{name}.conv2.{depth}.layers.{layer}" if ain else plain)
            total = total + gated(z, f"{name}.gate")
        if f"{name}.IN.weight" in state:
            y = instance(F.conv2d(total, state[f"{name}.conv3.conv.weight"]), f"{name}.IN")
        else:
            y = conv(total, f"{name}.conv3")
        return (y + (conv(x, f"{name}.downsample") if f"{name}.downsample.conv.weight" in state else x)).relu()

    x = F.conv2d(x, state["conv1.conv.weight"], stride=2, padding=3)
    x = F.max_pool2d((instance if ain else bn)(x, "conv1.bn").relu(), 3, 2, 1)
    for stage in (2, 3, 4):
        x = block(block(x, f"conv{stage}.0"), f"conv{stage}.1")
        if stage < 4:
            x = F.avg_pool2d(conv(x, f"pool{stage}.0" if ain else f"conv{stage}.2.0").relu(), 2)
    x = conv(x, "conv5").relu().mean((2, 3))
    return bn(x @ state["fc.0.weight"].T + state["fc.0.bias"], "fc.1").relu()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("arch", sampled(["osnet_x0_25", "osnet_x1_0", "osnet_ain_x1_0"], "osnet_x0_25"))
@torch.no_grad()
def test_it_computes_what_its_papers_say(arch, training):
    torch.manual_seed(0)
    network = ARCHS[arch].build(SMALL).train(training)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + (0.5 if name.endswith(("weight", "var")) else -0.5))
    x = torch.randn(4, 3, 79, 37)
    expected = plain_forward(network.state_dict(), x, "ain" in arch, training)
    assert expected.shape == (4, 512)
    assert (expected > 0).double().mean() > 0.2
    torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-4 * expected.max().item())


def test_batchnorm_runs_over_groups():
    torch.manual_seed(0)
    network, x = ARCHS["osnet_x0_25"].build(SMALL), torch.randn(12, 3, 64, 32)
    set_bn_group(network, 6)
    whole = network(x)
    torch.testing.assert_close(whole[6:], network(x[6:]), rtol=1e-3, atol=1e-3)
    set_bn_group(network, 0)
    assert (network(x) - whole).abs().max() > 0.1


@pytest.mark.parametrize(("arch", "size"), [("osnet_x0_25", (256, 12)), ("osnet_ain_x1_0", (28, 28))])
def test_images_too_small_for_it(arch, size):
    with pytest.raises(UserError, match=rf"pixels of images of {size[0]}×{size[1]} and needs"):
        ARCHS[arch].build(Options(size))


@pytest.mark.parametrize(("arch", "size"), [("osnet_x0_25", (13, 13)), ("osnet_ain_x1_0", (29, 13))])
def test_the_smallest_images_it_takes(arch, size):
    network: OSNet = ARCHS[arch].build(Options(size))
    assert network(torch.randn(3, 3, *size)).shape == (3, 512)
