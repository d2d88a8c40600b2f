"""Fixtures of the op tests: the device the kernels run on, and memory that starts as NaN."""

import pytest
import torch

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(params=DEVICES)
def device(request):
    """Where the Triton kernels run: in the interpreter, or on a GPU."""
    return request.param


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Every buffer the launchers allocate starts as NaN: a value nobody wrote cannot pass."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out.fill_(-1)

    kernels = pytest.importorskip("reid_fast.kernels.tiles")
    monkeypatch.setattr(kernels.torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
