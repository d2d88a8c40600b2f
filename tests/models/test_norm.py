"""BatchNorm over groups against splitting the batch, by domain against one for each half."""

import copy

import pytest
import torch
from torch import nn

from reid_fast.models.encoder import Encoder
from reid_fast.models.norm import IBN, GroupedBatchNorm1d, GroupedBatchNorm2d, set_bn_group, split_domains, target_state

BN = {"weight": 1, "bias": 1, "running_mean": 1, "running_var": 1, "num_batches_tracked": 0}


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
def test_ibn_normalises_each_image_in_its_first_half_and_the_batch_in_the_rest(channels_last):
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


@pytest.mark.parametrize("group", [0, 4])
def test_batchnorm_by_domain_is_one_of_each_half(group):
    torch.manual_seed(0)
    layer = torch.nn.Sequential(GroupedBatchNorm1d(5))
    layer[0].group = group
    split_domains(layer)
    literal = [GroupedBatchNorm1d(5) for _ in range(2)]
    for part in literal:
        part.group = group
    x = torch.randn(16, 5) * 3 + 1
    expected = torch.cat([literal[0](x[:8]), literal[1](x[8:])])
    assert torch.equal(layer(x), expected)
    for own, other in zip((layer[0].source, layer[0].target), literal, strict=True):
        assert torch.equal(own.running_mean, other.running_mean)
    assert torch.equal(layer.eval()(x), literal[1].eval()(x))


def test_ibn_by_domain_is_ibn_of_each_half():
    torch.manual_seed(0)
    layer = torch.nn.Sequential(IBN(6))
    halves = [copy.deepcopy(layer[0]) for _ in range(2)]
    split_domains(layer)
    x = torch.randn(8, 6, 3, 2)
    expected = torch.cat([half(part) for half, part in zip(halves, x.chunk(2), strict=True)])
    torch.testing.assert_close(layer(x), expected)


TAILS = [(False, False), (True, False), (False, True), (True, True)]  # with a residual, with a ReLU


@pytest.mark.parametrize(("with_residual", "relu"), TAILS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("domains", [False, True])
def test_residual_and_relu_follow_the_norm(domains, training, with_residual, relu):
    torch.manual_seed(0)
    layer = torch.nn.Sequential(GroupedBatchNorm2d(3))
    set_bn_group(layer, 2)
    if domains:
        split_domains(layer)
    layer.train(training)
    x = torch.randn(8, 3, 4, 2)
    residual = torch.randn_like(x) if with_residual else None
    expected = copy.deepcopy(layer)[0](x)
    expected = expected + residual if with_residual else expected
    expected = expected.relu() if relu else expected
    assert torch.equal(layer[0](x, residual, relu), expected)


@pytest.mark.parametrize("relu", [True, False])
def test_relu_follows_both_halves_of_ibn(relu):
    torch.manual_seed(0)
    layer, x = IBN(6), torch.randn(4, 6, 3, 2)
    expected = copy.deepcopy(layer)(x)
    assert torch.equal(layer(x, relu=relu), expected.relu() if relu else expected)


def test_the_target_state_is_a_plain_encoder():
    torch.manual_seed(0)
    encoder, plain = Encoder("resnet18_half", "gem"), Encoder("resnet18_half", "gem")
    split_domains(encoder)
    images = torch.randn(8, 3, 32, 16)
    encoder(images)  # moves the statistics of both domains apart
    plain.load_state_dict(target_state(encoder))
    assert torch.equal(plain.eval()(images), encoder.eval()(images))
    assert target_state(plain).keys() == plain.state_dict().keys()
