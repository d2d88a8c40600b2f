"""Position embeddings at another size, against values of the published code."""

import pytest
import torch

from reid_fast.models.checkpoints.positions import grid_of, resized, without_distillation


def test_values_of_the_published_code():
    positions = torch.sin(0.21 * torch.arange(129 * 4).double()).float().view(1, 129, 4)
    found = resized(positions, (16, 8), (12, 4))
    assert found.shape == (1, 49, 4)
    assert torch.equal(found[0, 0], positions[0, 0])
    torch.testing.assert_close(found[0, 5], torch.tensor([0.839045, 0.757869, 0.643393, 0.500647]), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[0, 48], torch.tensor([0.191669, 0.371003, 0.534036, 0.673605]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("n", "size", "grid"),
    [
        (128, None, (16, 8)),  # pretrained at 256×128
        (196, None, (14, 14)),  # at 224×224
        (2, None, (2, 1)),
        (1, None, (1, 1)),
        (192, None, None),  # 24×8, which only its size tells
        (192, (384, 128), (24, 8)),
        (8, (32, 64), (2, 4)),
        (3, (50, 16), (3, 1)),  # 50 pixels hold three patches
        (8, (64, 64), None),
    ],
)
def test_the_grid_is_told_by_the_count_or_by_the_size(n, size, grid):
    assert grid_of(n, size) == grid


def test_the_second_token_of_a_distilled_network_is_dropped():
    positions = torch.arange(5.0).view(1, 5, 1)
    assert without_distillation(positions).flatten().tolist() == [0, 2, 3, 4]
