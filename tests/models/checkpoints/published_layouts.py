"""State dicts of published code, made up by a formula, and what its modules compute of images, in functional calls.

Names, parts and their order follow the repositories that docs/checkpoints.md lists; nothing here comes from reid_fast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

WIDTH, LAYERS = 8, (2, 1, 1, 1)  # of every ResNet here
BN_SHAPES = {"weight": 1, "bias": 1, "running_mean": 1, "running_var": 1, "num_batches_tracked": 0}


def images(B=3, H=64, W=32):
    n = torch.arange(B * 3 * H * W).double()
    return (torch.sin(0.013 * n) + 0.3 * torch.sin(0.0007 * n * (n % 97))).float().view(B, 3, H, W)


def by_formula(shapes):
    """A tensor for each name and shape: no two are alike, and activations neither vanish nor explode."""
    return {name: _tensor(i, name, shape) for i, (name, shape) in enumerate(shapes.items())}


def _tensor(i, name, shape):
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7 + i)
    n = torch.arange(torch.Size(shape).numel()).double()
    x = torch.sin(1.3 * i + 0.7 * n + 0.013 * n * n).view(shape)
    if name.endswith("running_var"):
        x = 1 + 0.5 * x
    elif len(shape) > 1 and "pos_embed" not in name and "cls_token" not in name:
        x = x * 2 / x[0].numel() ** 0.5
    elif name.endswith("weight"):
        x = 1 + 0.1 * x
    else:
        x = 0.05 * x
    return x.float()


def bn(name, channels):
    return {f"{name}.{key}": (channels,) * dims for key, dims in BN_SHAPES.items()}


def linear(name, inputs, outputs, bias=True):
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def instance_norm(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


TORCHVISION = {part: part for part in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")}


def in_sequence(name, *places):
    """Names of a ResNet's parts that stand in an `nn.Sequential`."""
    return {part: f"{name}.{place}" for part, place in zip(TORCHVISION, places, strict=True)}


def below(name):
    return {part: f"{name}.{part}" for part in TORCHVISION}


def resnet_shapes(names, bottleneck=False, ibn=False):
    shapes = {f"{names['conv1']}.weight": (WIDTH, 3, 7, 7)} | bn(names["bn1"], WIDTH)
    before = WIDTH
    for stage, blocks in enumerate(LAYERS):
        width = WIDTH << stage
        after = 4 * width if bottleneck else width
        for i in range(blocks):
            block = f"{names[f'layer{stage + 1}']}.{i}"
            channels = [before, width, width, after] if bottleneck else [before, width, after]
            kernels = [1, 3, 1] if bottleneck else [3, 3]
            for j, kernel in enumerate(kernels):
                shapes[f"{block}.conv{j + 1}.weight"] = (channels[j + 1], channels[j], kernel, kernel)
                if ibn and j == 0 and stage < 3:
                    shapes |= instance_norm(f"{block}.bn1.IN", width // 2) | bn(f"{block}.bn1.BN", width // 2)
                else:
                    shapes |= bn(f"{block}.bn{j + 1}", channels[j + 1])
            if i == 0 and (stage > 0 or before != after):
                shapes[f"{block}.downsample.0.weight"] = (after, before, 1, 1)
                shapes |= bn(f"{block}.downsample.1", after)
            before = after
    return shapes


def normed(state, name, x):
    """Evaluation of a BatchNorm, by domain or not, or of IBN-a."""
    if f"{name}.IN.weight" in state:
        half = len(state[f"{name}.IN.weight"])
        first = F.instance_norm(x[:, :half], weight=state[f"{name}.IN.weight"], bias=state[f"{name}.IN.bias"])
        return torch.cat([first, normed(state, f"{name}.BN", x[:, half:])], dim=1)
    name = next((f"{name}.{copy}" for copy in ("BN_T", "dsbn.1", "T_bn") if f"{name}.{copy}.weight" in state), name)
    mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias)


def resnet(state, names, x, stem_relu=True):
    """[B, 3, H, W] -> the feature map of a ResNet whose last stage has stride 1."""
    x = normed(state, names["bn1"], F.conv2d(x, state[f"{names['conv1']}.weight"], stride=2, padding=3))
    x = F.max_pool2d(x.relu() if stem_relu else x, 3, 2, padding=1)
    for stage, blocks in enumerate(LAYERS):
        for i in range(blocks):
            block = f"{names[f'layer{stage + 1}']}.{i}"
            stride = 2 if i == 0 and stage in (1, 2) else 1
            kernels = [state[key] for j in (1, 2, 3) if (key := f"{block}.conv{j}.weight") in state]
            strided = 1 if len(kernels) == 3 else 0  # torchvision strides a bottleneck in its 3×3 convolution
            y = x
            for j, kernel in enumerate(kernels):
                y = F.conv2d(y, kernel, stride=stride if j == strided else 1, padding=kernel.shape[-1] // 2)
                y = normed(state, f"{block}.bn{j + 1}", y)
                y = y.relu() if j < len(kernels) - 1 else y
            if f"{block}.downsample.0.weight" in state:
                x = F.conv2d(x, state[f"{block}.downsample.0.weight"], stride=stride)
                x = normed(state, f"{block}.downsample.1", x)
            x = (x + y).relu()
    return x


def average(x):
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def gem(x, p):
    return F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(p), 1).pow(1 / p).flatten(1)
