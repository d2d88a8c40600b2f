"""A small encoder for the tests of its parts."""

import pytest
import torch

from reid_fast.models.encoder import Encoder


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Encoder("resnet18_half", "avg")
