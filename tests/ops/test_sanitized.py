"""What runs under compute-sanitizer: all ops, and here on the CPU."""

import pytest
import torch
from sanitized import cases, clustered

from reid_fast import ops

WITHOUT_KERNELS = {"ClassMeans", "camera_weights", "class_means", "received_attention"}


def test_every_op_is_there():
    assert set(cases("cpu", torch.float32)) == set(ops.__all__) - WITHOUT_KERNELS


@pytest.mark.parametrize("name", sorted(set(ops.__all__) - WITHOUT_KERNELS))
def test_it_runs(name):
    for dtype in (torch.float32, torch.bfloat16):
        cases("cpu", dtype)[name]()


def test_clustering_runs():
    clustered("cpu")
