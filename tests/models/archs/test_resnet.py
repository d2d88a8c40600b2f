"""Networks against torchvision's layout, and against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from inputs import sampled

from reid_fast.models.archs.resnet import ARCHS, ResNet

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


@pytest.mark.parametrize(
    ("arch", "channels"),
    sampled([("resnet50", 2048), ("resnet_ibn50a", 2048), ("resnet18_half", 256)], ("resnet18_half", 256)),
)
@pytest.mark.parametrize(("size", "expected"), [((256, 128), (16, 8)), ((224, 224), (14, 14)), ((65, 31), (5, 2))])
def test_the_last_stage_keeps_the_resolution(arch, channels, size, expected):
    network = ResNet(ARCHS[arch]).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, *size)).shape == (1, channels, *expected)
    assert network.c_out == channels


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
