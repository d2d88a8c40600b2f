"""The C++ engine under the address and undefined-behaviour sanitisers, and under the thread sanitiser."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "tests/clustering/engine.cpp", *sorted((ROOT / "csrc/cpu").glob("*.cpp"))]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("sanitiser", ["address,undefined", "thread"])
def test_no_sanitiser_objects(sanitiser, tmp_path):
    program = tmp_path / "engine"
    flags = ["-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={sanitiser}", "-fno-sanitize-recover=all"]
    # The run-time choice between vector variants happens before a sanitiser is ready.
    build = ["g++", *flags, "-DREID_NO_VARIANTS", f"-I{ROOT / 'csrc'}", *SOURCES, "-o", program]
    subprocess.run(build, check=True)
    run = subprocess.run([program], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr[-4000:]
