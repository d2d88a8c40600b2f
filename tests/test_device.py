"""Where a run computes: devices and types that are not there, or not sound."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reid_fast.device import amp_dtype
from reid_fast.errors import UserError

CPU = torch.device("cpu")
ISA = "ONEDNN_MAX_CPU_ISA"


@pytest.fixture
def processor_with_amx(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.delenv(ISA, raising=False)


def test_narrow_images_are_refused_where_their_convolutions_are_wrong(processor_with_amx):
    with pytest.raises(UserError, match="--width 16 wrongly"):
        amp_dtype(CPU, True, 16)
    assert amp_dtype(CPU, False, 16) is None
    assert amp_dtype(CPU, True, 17) is torch.bfloat16


def test_narrow_images_without_amx(processor_with_amx, monkeypatch):
    monkeypatch.setenv(ISA, "AVX512_CORE_BF16")
    assert amp_dtype(CPU, True, 16) is torch.bfloat16


CONVOLVE = """
import torch
from reid_fast.device import amp_dtype

torch.manual_seed(0)
cpu = torch.device("cpu")
conv = torch.nn.Conv2d(32, 64, 3, 2, 1, bias=False).to(memory_format=torch.channels_last)  # as in the third stage
x = torch.randn(96, 32, 4, -(-{width} // 8)).to(memory_format=torch.channels_last).requires_grad_()
expected = conv(x)
upstream = torch.randn_like(expected)
gradients = torch.autograd.grad(expected, (x, conv.weight), upstream)
for _ in range(4):
    torch.full((4_000_000,), torch.nan)  # freed at once, and handed out again: a read past the end would meet it
    with torch.autocast("cpu", amp_dtype(cpu, True, {width})):
        found = conv(x)
    found = (found, *torch.autograd.grad(found, (x, conv.weight), upstream.bfloat16()))
    for ours, theirs in zip(found, (expected, *gradients)):
        assert (ours.float() - theirs).norm() < 0.03 * theirs.norm()
"""


@pytest.mark.parametrize("width", [17, 32])
def test_what_is_not_refused_is_computed_in_bfloat16_as_in_float32(width):
    """In a process of its own, where nothing keeps oneDNN from this processor's instructions."""
    environment = {name: value for name, value in os.environ.items() if name != ISA}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    code = CONVOLVE.format(width=width)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
