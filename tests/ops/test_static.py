"""Every kernel compiles ahead of time for every architecture, without spilled registers, at training sizes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_kernels_compile_without_spills():
    pytest.importorskip("triton")
    # A process of its own: this one may have its kernels in the interpreter.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, ROOT / "bench" / "ops.py", "--static", "--gate"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "cluster_nce.score_kernel" in done.stdout
