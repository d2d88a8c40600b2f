"""How much memory something takes at its peak, where Linux tells."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import pytest


def peak_bytes(work: Callable[[], object]) -> int:
    """Resident bytes of this process that `work` needs at its peak, above what is there before."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator keeps would hide what the work takes
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pytest.skip("only Linux measures a peak anew")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
