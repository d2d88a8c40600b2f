"""Transformers against values of the published code, and against their definition."""

import pytest
import torch
import torch.nn.functional as F
from inputs import near, sampled

from reid_fast.errors import UserError
from reid_fast.models.archs import Options
from reid_fast.models.archs.vit import ViTArch
from reid_fast.models.encoder import Encoder
from reid_fast.models.norm import split_domains
from reid_fast.models.stochastic_depth import set_keys

# TransReID-SSL's own forward on the formulas below: architecture, size, parameters with the neck; the normalised
# feature of image 1 of 3 in evaluation; its class token before the neck; the size of a batch in training, its image 3.
PUBLISHED = [
    (
        ("vit_small", (64, 32), 21_594_240),
        [0.069556, -0.090852, 0.114164, -0.085789, 0.039185, 0.009021],
        [1.48177, -1.90852, 2.1849, -1.60331],
        (8, [-0.071809, 0.070102, 0.019313, -0.02793, 0.007678, 0.029059]),
    ),
    (
        ("vit_small_ics", (64, 32), 22_955_712),
        [0.069011, -0.090622, 0.1142, -0.085901, 0.039137, 0.009693],
        [1.4699, -1.90367, 2.18548, -1.60527],
        (8, [0.069758, -0.029636, 0.003585, -0.006995, 0.021629, -0.042156]),
    ),
    (
        ("vit_small_ics", (256, 128), 23_001_792),
        [0.068476, -0.090445, 0.114173, -0.085769, 0.038727, 0.010805],
        [1.45826, -1.89993, 2.18486, -1.6028],
        (4, [-0.062587, 0.059582, 0.002073, 0.004762, -0.031675, 0.048817]),
    ),
    (
        ("vit_base", (64, 32), 85_655_808),
        [0.006904, 0.055541, 0.061016, -0.010657, -0.071391, -0.045278],
        [0.18874, 1.59698, 1.65125, -0.31648],
        (8, [0.020546, 0.027785, -0.016667, -0.025258, -0.001425, 0.038277]),
    ),
]


def by_formula(name, tensor):
    """A tensor of the published state dict."""
    x = torch.sin(0.37 * torch.arange(tensor.numel()).double() + 0.11 * len(name)).view(tensor.shape)
    if name.endswith("running_var"):
        x = 1 + 0.5 * x
    elif tensor.ndim == 1 and name.endswith(".weight"):
        x = 1 + 0.1 * x
    elif tensor.ndim > 1 and name not in ("pos_embed", "cls_token"):
        x = x * 1.5 / tensor[0].numel() ** 0.5
    else:
        x = 0.05 * x
    return x.float()


def images(B, H, W):
    n = torch.arange(B * 3 * H * W).double()
    return (torch.sin(0.013 * n) + 0.3 * torch.sin(0.0007 * n * (n % 97))).float().view(B, 3, H, W)


@pytest.mark.parametrize(
    ("which", "feature", "token", "trained"), sampled(PUBLISHED, *PUBLISHED[:2]), ids=lambda value: value[0]
)
@torch.no_grad()
def test_it_computes_what_the_published_code_computes(which, feature, token, trained):
    arch, size, count = which
    with torch.device("meta"):  # random weights would take a second
        encoder = Encoder(arch, options=Options(size))
    encoder.to_empty(device="cpu")
    assert sum(parameter.numel() for parameter in encoder.parameters()) == count
    for name, tensor in encoder.state_dict().items():
        if tensor.is_floating_point():
            published = name.removeprefix("backbone.").replace("neck.", "bottleneck.")
            tensor.copy_(by_formula(published, tensor))
    encoder.eval()
    pooled = encoder.pooled(images(3, *size))
    near(pooled[1, :4], token)
    near(F.normalize(encoder.necked(pooled))[1, :6], feature)
    B, feature = trained
    # BatchNorm over so few images makes rounding visible.
    near(encoder.train()(images(B, *size))[3, :6], feature, atol=5e-5)


TINY = ViTArch(24, depth=3, heads=4)


def plain_forward(network, x, scales):
    """The class token as the definition reads, every token through every block; scales: [6, B, 1, 1]."""
    state, (B, _, H, W) = dict(network.named_parameters()), x.shape

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        mean, var = x.mean(2, keepdim=True), x.var(2, keepdim=True, correction=0)
        return (x - mean) / (var + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attention(x, name):
        parts = linear(x, f"{name}.qkv").split(6, dim=2)  # of four heads: q, then k, then v
        heads = [
            (q @ k.transpose(1, 2) / 6**0.5).softmax(2) @ v
            for q, k, v in zip(parts[:4], parts[4:8], parts[8:], strict=True)
        ]
        return linear(torch.cat(heads, 2), f"{name}.proj")

    def mlp(x, name):
        y = linear(x, f"{name}.fc1")
        return linear(y * (1 + torch.erf(y / 2**0.5)) / 2, f"{name}.fc2")

    patches = x.reshape(B, 3, H // 16, 16, W // 16, 16).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    tokens = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"].repeat(B, 1, 1), tokens], 1) + state["pos_embed"]
    for i in range(3):
        x = x + scales[2 * i] * attention(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn")
        x = x + scales[2 * i + 1] * mlp(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp")
    return norm(x, "norm")[:, 0]


@pytest.mark.parametrize("rate", [0.0, 0.6])
@pytest.mark.parametrize("size", [(16, 16), (48, 32), (16, 80)])
def test_features_and_gradients_are_those_of_the_definition(size, rate):
    torch.manual_seed(0)
    network, x = TINY.build(Options(size, drop_path=rate)), torch.randn(5, 3, *size)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    scales = torch.ones(6, 5, 1, 1)
    if rate:
        set_keys(network, torch.arange(5) * 12345678)
        scales = network.drop_path()
        assert (scales[2:] == 0).any()
    upstream = torch.randn(5, 24)
    weights = list(network.parameters())
    results = [
        (y.detach(), *torch.autograd.grad(y, weights, upstream))
        for y in (network(x), plain_forward(network, x, scales))
    ]
    for actual, wanted in zip(*results, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("arch", ["vit_small", "vit_small_ics"])
@torch.no_grad()
def test_mixed_precision_stays_near(arch):
    torch.manual_seed(0)
    encoder, x = Encoder(arch, options=Options((64, 32))).eval(), torch.randn(2, 3, 64, 32)
    exact = encoder(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encoder(x)
    assert mixed.dtype == torch.float32
    assert (mixed - exact).norm() < 0.03 * exact.norm()


def test_batchnorm_of_the_stem_runs_over_groups_and_domains():
    """Two groups alike: the second half does not see the first; and the norms of two domains are their own."""
    torch.manual_seed(0)
    encoder = Encoder("vit_small_ics", bn_group=2, options=Options((32, 16)))
    x = torch.randn(4, 3, 32, 16)
    with torch.no_grad():
        both = encoder.train()(x)
        torch.testing.assert_close(both[2:], encoder(x[2:]), rtol=1e-4, atol=1e-5)
        split_domains(encoder)
        torch.testing.assert_close(encoder(x), both, rtol=1e-4, atol=1e-5)
    norms = {name.rpartition(".")[0] for name, _ in encoder.named_buffers() if name.endswith("target.running_mean")}
    places = {f"backbone.patch_embed.conv.{place}.target" for place in ("1.BN", "4.BN", "7")}
    assert norms == places | {"neck.target"}


@pytest.mark.parametrize("size", [(256, 120), (250, 128), (8, 16)])
def test_sizes_that_patches_do_not_divide(size):
    with pytest.raises(UserError, match=rf"patches of 16×16 pixels, which {size[0]}×{size[1]} is not made of"):
        Encoder("vit_small", options=Options(size))
