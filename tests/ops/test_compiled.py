"""Every kernel compiles ahead of time at training sizes: no registers are spilled, and products are pipelined."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_PER_BLOCK = {80: 163, 90: 227, 100: 227}  # KiB that one block may take
FOLDER = Path(__file__).parent
pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A row per kernel, type and architecture; float16 has bfloat16's layout and tiles."""
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parents[1]), environment.get("PYTHONPATH", "")])
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))  # what is judged is compiled now
    command = [sys.executable, FOLDER / "compiled.py", "float32", "bfloat16"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def named(row):
    return f"{row['kernel']} {row['dtype']} sm_{row['arch']}"


def test_every_kernel_is_compiled(rows):
    """For every architecture if it has products, else for one."""
    defined = {
        f"{path.stem}.{line.split('def ')[1].split('(')[0]}"
        for path in (FOLDER.parents[1] / "kernels").glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
    assert len(defined) > 12
    assert {row["kernel"].split()[0] for row in rows} == defined
    multiplying = {
        arch: {(row["kernel"].split()[0], row["dtype"]) for row in rows if row["products"] and row["arch"] == arch}
        for arch in (80, 90, 100)
    }
    assert len(multiplying[90]) > 12
    assert multiplying[80] == multiplying[90] == multiplying[100]


def test_no_kernel_spills_registers(rows):
    assert not [named(row) for row in rows if row["spilled_bytes"]]


def test_every_block_fits_the_shared_memory(rows):
    assert not [named(row) for row in rows if row["shared_bytes"] > SHARED_PER_BLOCK[row["arch"]] * 1024]


def test_operands_are_copied_while_others_are_multiplied(rows):
    """A buffer to fill beside the one that is read, and a wait that leaves the copies of a step on their way."""
    multiplying = [row for row in rows if row["products"]]
    assert not [named(row) for row in multiplying if row["buffers"] < 2 or row["ahead"] < 1]


def test_operands_are_copied_16_bytes_at_once(rows):
    """Except for dense targets, whose rows of C elements start anywhere."""
    aligned = [row for row in rows if row["products"] and "DENSE" not in row["kernel"]]
    assert not [named(row) for row in aligned if row["copy_bytes"] != 16]


def test_whole_rows_are_read_and_written_16_bytes_at_once(rows):
    narrow = [row for row in rows if re.search("update|step|finish_kernel GRAD", row["kernel"])]
    assert len(narrow) > 10
    assert not [named(row) for row in narrow if row["load_bytes"] != 16 or row["store_bytes"] != 16]
