"""Which architecture some tensors are of."""

import pytest
import torch

from reid_fast.models.archs import ARCHS, Options
from reid_fast.models.checkpoints import architecture_of
from reid_fast.models.encoder import Encoder

# Large ones take long to fill with random numbers; their shapes are compared all the same.
SMALL = [name for name in ARCHS if name not in ("resnet101", "vit_base", "vit_base_ics")]


@pytest.mark.parametrize("arch", SMALL)
def test_each_architecture_knows_its_tensors(arch):
    tensors = Encoder(arch, options=Options(size=(64, 32))).state_dict()
    assert architecture_of(tensors) == arch
    without_counters = {name: tensor for name, tensor in tensors.items() if "num_batches" not in name}
    assert architecture_of(without_counters) == arch


@pytest.mark.parametrize("change", [{"backbone.conv1.weight": torch.ones(3)}, {"backbone.more": torch.ones(3)}])
def test_tensors_of_none_are_of_none(tiny, change):
    assert architecture_of(tiny.state_dict() | change) is None
    assert architecture_of({}) is None
