"""Where a run computes: devices and types that are not there, or not sound."""

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


@pytest.mark.parametrize("width", [16, 17, 32])
def test_what_is_not_refused_is_computed_in_bfloat16_as_in_float32(width):
    """The strided convolution of the third stage, between buffers of NaN that a read past the end would meet."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(32, 64, 3, 2, 1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(96, 32, 4, -(-width // 8)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = conv(x)
        for _ in range(4):
            torch.full((4_000_000,), torch.nan)  # freed at once, and handed out again
            with torch.autocast("cpu", amp_dtype(CPU, True, width)):
                found = conv(x).float()
            assert (found - expected).norm() < 0.02 * expected.norm()
