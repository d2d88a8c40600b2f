"""Every kernel compiles ahead of time for every architecture, without spilled registers, at training sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_PER_BLOCK = {80: 163, 90: 227, 100: 227}  # KiB that one block may take
FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def rows():
    """A row per kernel, type and architecture; float16 has bfloat16's layout and tiles."""
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parents[1]), environment.get("PYTHONPATH", "")])
    command = [sys.executable, FOLDER / "compiled.py", "float32", "bfloat16"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def named(row):
    return f"{row['kernel']} {row['dtype']} sm_{row['arch']}"


def test_every_kernel_is_compiled_for_every_architecture(rows):
    defined = {
        f"{path.stem}.{line.split('def ')[1].split('(')[0]}"
        for path in (FOLDER.parents[1] / "kernels").glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
    assert len(defined) > 12
    for arch in (80, 90, 100):
        assert {row["kernel"].split()[0] for row in rows if row["arch"] == arch} == defined


def test_no_kernel_spills_registers(rows):
    assert not [named(row) for row in rows if row["spilled_bytes"]]


def test_every_block_fits_the_shared_memory(rows):
    assert not [named(row) for row in rows if row["shared_bytes"] > SHARED_PER_BLOCK[row["arch"]] * 1024]
