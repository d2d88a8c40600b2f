"""The CUDA sources: compiled for every architecture without a spilled register."""

import re
import runpy
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_every_architecture_compiles_without_spills(tmp_path):
    setup = runpy.run_path(str(ROOT / "setup.py"))
    command = [*setup["nvcc_command"](Path(shutil.which("nvcc"))), "-Xptxas=-v", "-c"]

    def compiled(source):
        out = tmp_path / f"{source.stem}.o"
        return subprocess.run(
            [*command, source, "-o", out], cwd=ROOT, capture_output=True, text=True, check=True
        ).stderr

    with ThreadPoolExecutor() as pool:
        report = "".join(pool.map(compiled, sorted((ROOT / "csrc/cuda").glob("*.cu"))))
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", report)]
    targets = sum(flag.startswith("-gencode") and "code=sm_" in flag for flag in command)
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", report)
    assert len({arch for _, arch in kernels}) == targets >= 4
    assert len(spills) == 2 * len(kernels) > 40
    assert max(spills) == 0, report
