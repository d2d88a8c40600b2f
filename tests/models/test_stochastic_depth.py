"""Which branches images skip: as often as asked, by what the hash is of, and by nothing else."""

import numpy as np
import pytest
import torch
from torch import nn

from reid_fast.data.images.augmentation import draw_keys
from reid_fast.models.stochastic_depth import StochasticDepth, set_keys
from reid_fast.models.teacher import new_teacher


def keys(n, epoch=0, seed=1):
    return torch.from_numpy(draw_keys(np.arange(n), seed=seed, epoch=epoch))


def drawn(rate, blocks, n, **of):
    layer = StochasticDepth(rate, blocks)
    set_keys(layer, keys(n, **of))
    return layer()


def test_it_is_the_hash_that_its_documentation_names():
    """In Python's integers, without a limit of their own."""
    rows, keyed = drawn(0.6, 4, 7), keys(7).tolist()

    def mixed(z):
        for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
            z = (z ^ z >> shift) * factor % 2**32
        return z ^ z >> 15

    for branch in range(8):
        rate = 0.6 * (branch // 2) / 3
        for image in range(7):
            skips = mixed((mixed(keyed[image]) + 0x9E3779B9 * branch) % 2**32) < rate * 2**32
            assert rows[branch, image].item() == pytest.approx(0 if skips else 1 / (1 - rate))


def test_each_branch_is_skipped_as_often_as_asked_and_independently_of_the_others():
    n = 20_000
    rows = drawn(0.4, 5, n)[:, :, 0, 0]
    rates = np.repeat([0, 0.1, 0.2, 0.3, 0.4], 2)
    skipped = (rows == 0).double()
    assert np.abs(skipped.mean(1).numpy() - rates).max() < 4 * (0.25 / n) ** 0.5
    assert (rows[:2] == 1).all()
    off = torch.corrcoef(skipped[2:]) - torch.eye(8)
    assert off.abs().max() < 4.5 / n**0.5
    # Neighbouring images too.
    assert torch.corrcoef(torch.stack([skipped[9, 1:], skipped[9, :-1]]))[0, 1].abs() < 4 / n**0.5


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 2}])
def test_other_epochs_and_seeds_skip_others(other):
    assert not torch.equal(drawn(0.5, 3, 64), drawn(0.5, 3, 64, **other))


def test_an_image_skips_the_same_whichever_others_it_comes_with():
    layer = StochasticDepth(0.5, 3)
    set_keys(layer, keys(64))
    whole = layer()
    set_keys(layer, keys(64)[17:40])
    assert torch.equal(layer(), whole[:, 17:40])


def test_two_networks_of_a_step_skip_independently():
    both = nn.ModuleList([StochasticDepth(0.5, 40), StochasticDepth(0.5, 40)])
    set_keys(both, keys(500))
    one, other = ((layer()[40:] == 0).double().flatten() for layer in both)
    assert torch.corrcoef(torch.stack([one, other]))[0, 1].abs() < 0.03


def test_evaluation_rate_0_and_teachers_skip_nothing_and_need_no_keys():
    layer = StochasticDepth(0.5, 3)
    assert layer.eval()() is None
    assert StochasticDepth(0, 3)() is None
    assert new_teacher(layer.train())() is None
    with pytest.raises(RuntimeError, match="call set_keys"):
        layer()


def test_it_saves_nothing_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    drawn(0.5, 3, 64)
    assert torch.equal(torch.get_rng_state(), before)
    assert StochasticDepth(0.5, 3).state_dict() == {}
