"""bias_relu against the sum it names, its kernel against both."""

import pytest
import torch
from torch.library import opcheck

from reid_fast.kernels import bias_relu as kernel
from reid_fast.ops.bias_relu import _op, bias_relu

TAILS = [(False, False), (True, False), (False, True), (True, True)]  # with a ReLU, with a residual


def problem(shape, with_residual):
    return torch.randn(shape), torch.randn(shape[1]), torch.randn(shape) if with_residual else None


@pytest.mark.parametrize(("relu", "with_residual"), TAILS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 65, 5, 7), (5, 16, 31, 9), (7, 3), (0, 4, 2, 2)])
def test_equals_the_sum(shape, relu, with_residual, device):
    x, bias, residual = problem(shape, with_residual)
    expected = x + bias.view(-1, *[1] * (len(shape) - 2)) + (residual if with_residual else 0)
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(bias_relu(x, bias, residual, relu), expected)
    there = [None if tensor is None else tensor.to(device) for tensor in (x, bias, residual)]
    torch.testing.assert_close(kernel.bias_relu(*there, relu).cpu(), expected)


def test_any_strides_and_not_a_number(device):
    x = torch.randn(4, 6, 5, 8)[:, ::2, :, 1:4]
    x[1, 2, 3, 1] = torch.nan
    bias, residual = torch.randn(3, 2)[:, 0], torch.randn(4, 3, 5, 1).expand(x.shape)
    y = kernel.bias_relu(*(tensor.to(device) for tensor in (x, bias, residual)), True).cpu()
    torch.testing.assert_close(y, (x + bias[:, None, None] + residual).relu(), equal_nan=True)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_halves_are_rounded_once():
    x, bias, residual = problem((2, 5, 3, 4), True)
    low = [x.bfloat16(), bias, residual.bfloat16()]
    expected = (low[0].float() + bias[:, None, None] + low[2].float()).relu().bfloat16()
    assert torch.equal(bias_relu(*low, relu=True), expected)


def test_opcheck():
    opcheck(_op, (*problem((2, 5, 3, 4), True), True))
