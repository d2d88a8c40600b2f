"""What is installed by `make` and run by the workflow: pinned to the byte."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"faiss-gpu", "cupy-cuda12x"}  # for machines with a GPU: `make` does not install them


def pins(text):
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


LOCKED = {path.name: path.read_text() for path in (ROOT / "requirements").glob("*.txt")}


def test_every_package_has_one_version_and_the_hashes_of_its_files():
    assert set(LOCKED) == {"test.txt", "torch.txt", "torch-cuda.txt"}
    for file, text in LOCKED.items():
        for block in re.split(r"\n(?=\S)", text.strip()):
            first, *hashes = block.split(" \\\n")
            assert re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", first), f"{file}: {first}"
            assert hashes, f"{file}: {first}"
            assert all(re.fullmatch(r" {4}--hash=sha256:[0-9a-f]{64}", line.strip("\n")) for line in hashes), first


def test_the_hashes_are_of_the_versions_in_the_constraints():
    constrained, locked = pins((ROOT / "constraints.txt").read_text()), pins("".join(LOCKED.values()))
    assert {name: locked.get(name) for name in constrained.keys() - ELSEWHERE} == {
        name: version for name, version in constrained.items() if name not in ELSEWHERE
    }


def test_every_dependency_is_locked():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    wanted += [need for extra in ("test", "docs", "onnx", "tensorboard", "yaml") for need in extras[extra]]
    names = {re.match(r"[\w.-]+", need)[0].lower() for need in wanted} - {"reid-fast"}
    assert names <= pins("".join(LOCKED.values())).keys()


def test_the_workflow_names_its_actions_by_commit():
    used = re.findall(r"uses: (\S+)", (ROOT / ".github/workflows/ci.yml").read_text())
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in used)
