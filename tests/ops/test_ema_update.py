"""ema_update against the formula, one tensor at a time."""

import pytest
import torch

from reid_fast.ops import ema_update

SHAPES = [(), (1,), (7, 3), (64, 3, 7, 7)]


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999, 1.0])
def test_matches_the_formula(momentum, where):
    teacher, student = ([torch.randn(shape, device=where, requires_grad=True) for shape in SHAPES] for _ in range(2))
    expected = [momentum * t.detach() + (1 - momentum) * s.detach() for t, s in zip(teacher, student, strict=True)]
    ema_update(iter(teacher), student, momentum)
    for actual, value, leaf in zip(teacher, expected, student, strict=True):
        torch.testing.assert_close(actual.detach(), value)
        if momentum == 0:
            assert torch.equal(actual, leaf)


def test_different_networks_are_refused():
    with pytest.raises(ValueError, match="1 tensors and the student 2"):
        ema_update([torch.ones(1)], [torch.ones(1)] * 2, 0.9)
