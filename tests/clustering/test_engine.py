"""The C++ engine, its CUDA stages without a GPU, under the sanitisers: nothing to object to, no line left out."""

import gzip
import json
import shutil
import subprocess

import pytest
from engine_build import CPU_SOURCES, CSRC, SANITISERS, TESTS, objects, program, run

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
# dbscan.cu is included by the program that drives them.
CUDA_SOURCES = [CSRC / f"cuda/{name}.cu" for name in ("device", "graph", "weights")]


@pytest.mark.thorough
@pytest.mark.parametrize("sanitiser", SANITISERS)
def test_no_sanitiser_objects(sanitiser, tmp_path):
    flags = ["-O1", *SANITISERS[sanitiser]]
    cpu = objects(CPU_SOURCES, tmp_path / "cpu", flags)
    check(run(program(tmp_path / "engine", [*cpu, *objects([TESTS / "engine.cpp"], tmp_path, flags)], flags)))

    # Counters are no atomics, to which the thread sanitiser would object.
    counted = sanitiser != "thread"
    flags += ["--coverage"] * counted
    cuda = objects([*CUDA_SOURCES, TESTS / "cuda/stages.cpp"], tmp_path / "cuda", flags)
    check(run(program(tmp_path / "stages", [*cpu, *cuda], flags), *["thorough"] * counted))
    if counted:
        assert not unexecuted_lines(tmp_path / "cuda")


def check(finished):
    assert finished.returncode == 0, finished.stdout[-1000:] + finished.stderr[-4000:]


def unexecuted_lines(folder):
    """Lines of csrc/cuda that compiled to something and never ran."""
    notes = sorted(folder.glob("*.gcno"))
    subprocess.run(["gcov", "--json-format", *notes], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    counts = {}
    for report in folder.glob("*.gcov.json.gz"):
        for file in json.loads(gzip.decompress(report.read_bytes()))["files"]:
            if "csrc/cuda/" not in file["file"]:
                continue
            for line in file["lines"]:
                place = file["file"].split("csrc/cuda/")[1], line["line_number"]
                counts[place] = counts.get(place, 0) + line["count"]
    assert len(counts) > 200
    return [place for place, count in sorted(counts.items()) if count == 0]
