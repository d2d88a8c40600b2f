"""Features of a folded encoder against those of the encoder it was made of."""

import copy

import pytest
import torch
from inputs import sampled
from torch import nn

from reid_fast.models import fold
from reid_fast.models.archs import ARCHS, Options
from reid_fast.models.encoder import Encoder
from reid_fast.models.fold import Folded, folded
from reid_fast.models.norm import split_domains

SIZE = 48, 32


def trained(arch, pooling="avg", domains=False, **options):
    """An encoder whose norms have weights and statistics of their own, and images for it."""
    torch.manual_seed(0)
    encoder = Encoder(arch, pooling, options=Options(SIZE, **options))
    if domains:
        split_domains(encoder)
    for layer in encoder.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_var.uniform_(0.5, 2)
            for tensor in (layer.running_mean, layer.weight.data, layer.bias.data):
                tensor.add_(0.2 * torch.randn(len(tensor)))
    return encoder.to(memory_format=torch.channels_last).eval(), torch.randn(2, 3, *SIZE)


@pytest.fixture(params=[True, False], ids=["bias in the convolution", "bias behind it"])
def bias_anywhere(request, monkeypatch):
    """Both forms, as the CPU and CUDA have them."""
    monkeypatch.setattr(fold, "adds_bias", lambda device: request.param)


@torch.no_grad()
def assert_same_features(encoder, images, monkeypatch):
    expected = encoder(images)
    for in_convolution in (True, False):
        monkeypatch.setattr(fold, "adds_bias", lambda device, adds=in_convolution: adds)
        torch.testing.assert_close(folded(encoder)(images), expected, rtol=0, atol=1e-5)


ALIKE = [arch for arch in ARCHS if not arch.startswith("vit_base")]  # which are large, and folded as the others


@pytest.mark.parametrize("arch", sampled(ALIKE, "resnet18_half", "resnet_ibn50a", "osnet_x0_25", "vit_small"))
def test_every_architecture_makes_the_same_features(arch, monkeypatch):
    assert_same_features(*trained(arch), monkeypatch)


@pytest.mark.parametrize(
    "arch", sampled(["resnet18_half", "resnet_ibn50a", "osnet_ain_x1_0", "vit_small_ics"], "resnet18_half")
)
def test_domains_and_a_stem_without_relu_make_the_same_features(arch, monkeypatch):
    assert_same_features(*trained(arch, "gem", domains=True, stem_relu=False), monkeypatch)


@torch.no_grad()
def test_bfloat16_errs_about_as_much_as_without_folding(bias_anywhere):
    encoder, images = trained("resnet18_half")
    exact, network = encoder(images), folded(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, unfolded = network(images), encoder(images)
    assert (mixed - exact).norm() <= 1.5 * (unfolded - exact).norm()


def test_no_batchnorm_is_left_in_the_backbone_and_the_encoder_stays_as_it_was(bias_anywhere):
    encoder, _ = trained("resnet_ibn50a", domains=True)
    encoder.train()
    before = copy.deepcopy(encoder.state_dict())
    network = folded(encoder)
    assert not [layer for layer in network.backbone.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert sum(isinstance(layer, Folded) for layer in network.modules()) == 53
    assert encoder.training
    assert not network.training
    assert not [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("arch", ["resnet18_half", "resnet50", "resnet_ibn50a"])
@torch.no_grad()
def test_gpu_makes_the_same_features(arch):
    encoder, images = trained(arch)
    encoder, images = encoder.cuda(), images.cuda()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = encoder(images)
        torch.testing.assert_close(folded(encoder)(images), exact, rtol=0, atol=1e-5)
    with torch.autocast("cuda", torch.bfloat16):
        mixed, unfolded = folded(encoder)(images), encoder(images)
    assert (mixed - exact).norm() <= 1.5 * (unfolded - exact).norm()
