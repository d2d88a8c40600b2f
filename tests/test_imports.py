"""The directions of the house: who may import whom, and what is imported only where it is used."""

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "reid_fast"
LEAVES = {
    "checkpoint",
    "clock",
    "config",
    "console",
    "device",
    "drawing",
    "errors",
    "marks",
    "metrics",
    "metrics_log",
    "ranks",
    "run_folder",
    "settings_file",
    "sinks",
    "stop",
    "whole_file",
}
BELOW = {  # what each room may import, beside itself and the leaves
    "__main__": {"commands"},
    "commands": {"doctor", "report", "train", "evaluate", "export", "command_line", "retrieval", "data", "pages"},
    "doctor": {"models", "data", "clustering", "ops"},
    "report": {"run", "evaluate", "command_line", "methods", "labels", "models", "data", "pages"},
    "retrieval": {"evaluate", "labels", "models", "data", "clustering", "pages"},
    "export": {"evaluate", "command_line", "models"},
    "train": {"rehearsal", "epoch", "run", "evaluate", "command_line", "labels", "models"},
    "rehearsal": {"epoch", "run", "methods", "memories", "labels", "data"},
    "epoch": {"run", "captured", "evaluate", "labels", "models", "data", "clustering"},
    "run": {"captured", "gradients", "evaluate", "methods", "labels", "models", "data"},
    "captured": {"data"},
    "gradients": {"data"},
    "evaluate": {"command_line", "labels", "models", "data", "clustering"},
    "compat": {"clustering", "ops"},
    "command_line": {"methods", "models", "data"},
    "methods": {"memories", "labels", "models", "data", "clustering", "ops"},
    "memories": {"ops"},
    "labels": {"models", "data", "clustering", "ops"},
    "models": {"ops"},
    "data": {"ops"},
    "clustering": {"_C"},
    "ops": {"kernels"},
    "kernels": set(),
    "pages": set(),
}
MODULES = {
    ".".join(("reid_fast", *path.relative_to(PACKAGE).with_suffix("").parts)): ast.parse(path.read_text())
    for path in [*PACKAGE.glob("**/*.py"), *(PACKAGE / "kernels").glob("**/*.py")]  # a glob follows no link
}


def imports(module):
    """What a module names in an import, or as a module of this project in a string."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and str(node.value).startswith("reid_fast."):
            yield node.value


def rooms_imported(module):
    parts = (name.split(".") for name in imports(module))
    return {part[1] for part in parts if part[0] == "reid_fast" and len(part) > 1}


def modules_below(package):
    return sorted(name for name in MODULES if name.split(".")[1] == package)


def test_every_module_stands_in_a_known_room():
    assert {name.split(".")[1] for name in MODULES} - {"__init__"} <= set(BELOW) | LEAVES
    assert {f"reid_fast.{room}" for room in LEAVES} <= set(MODULES)


def test_the_documentation_has_the_same_rooms_and_directions():
    lines = (ROOT / "docs/how-it-is-built.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    said = {tuple(re.findall(r"`(\w+)`", rooms)): set(re.findall(r"\w+", below)) for rooms, _, below in rows}
    assert said == {(room,): below for room, below in BELOW.items()} | {tuple(sorted(LEAVES)): set()}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "reid_fast.__init__"])
def test_imports_point_one_way(module):
    room = module.split(".")[1]
    allowed = LEAVES if room in LEAVES else LEAVES | BELOW[room] | {room}
    assert rooms_imported(module) <= allowed


@pytest.mark.parametrize(("compiled", "users"), [("kernels", {"ops", "kernels"}), ("_C", {"clustering"})])
def test_compiled_code_has_one_user(compiled, users):
    assert {name.split(".")[1] for name in MODULES if compiled in rooms_imported(name)} <= users


def test_methods_do_not_import_one_another():
    for module in modules_below("methods"):
        names = {name.split(".")[2] for name in imports(module) if name.startswith("reid_fast.methods.")}
        assert names <= {"base", "settings", "Method"}, module


def test_methods_know_no_loader():
    for module in modules_below("methods"):
        loaders = {f"reid_fast.data.images.{name}" for name in ("ImageStream", "Loader", "open_loader")}
        assert not loaders & set(imports(module)), module


@pytest.mark.parametrize("house", ["sets", "survey", "synthetic", "images"])
def test_a_house_of_data_is_entered_by_its_door(house):
    door = f"reid_fast.data.{house}"
    for module in MODULES:
        if not module.startswith(door):
            assert not {name for name in imports(module) if name.startswith(f"{door}.") and name in MODULES}, module


@pytest.mark.parametrize("house", ["sets", "survey", "synthetic", "images"])
def test_a_door_names_what_it_exports(house):
    door = import_module(f"reid_fast.data.{house}")
    tree = MODULES[f"reid_fast.data.{house}.__init__"]
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(door.__all__) == imported


def test_no_file_has_a_name_that_says_nothing():
    words = {"util", "utils", "helper", "helpers", "core", "common", "misc", "tools"}
    assert not {name for name in MODULES if words & set(name.split("."))}


OPTIONAL = (
    "nvidia",
    "nvidia.dali",
    "faiss",
    "cupy",
    "cupyx",
    "infomap",
    "tyro",
    "yaml",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "wandb",
    "tensorboard",
    "PIL",
)
WITHOUT = """
import sys
from pathlib import Path
for name in {names!r}:
    sys.modules[name] = None
import torch
import reid_fast
from reid_fast import ops
torch.manual_seed(0)
x = torch.nn.functional.normalize(torch.randn(40, 8) + 4 * torch.eye(8).repeat(5, 1))
index, similarity = reid_fast.knn(x, 5)
assert index.shape == similarity.shape == (40, 5)
labels = torch.from_numpy(reid_fast.dbscan(reid_fast.jaccard_graph(x, 10, 3, 0.7), 0.7))
assert reid_fast.jaccard_distance(x, 10, 3).shape == (40, 40)
memory = x[:8].clone()
ops.cluster_nce(x.requires_grad_(), memory, torch.arange(40) % 8, 0.05).backward()
ops.memory_update(memory, x.detach(), torch.arange(40) % 8, 0.1)
from reid_fast.methods import method_names, settings_class
for name in method_names():
    assert settings_class(name)(method=name).batch_size > 0
assert not any(sys.modules.get(name) for name in {names!r})
"""


def run(code):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_the_ops_work_without_the_optional_packages():
    done = run(WITHOUT.format(names=OPTIONAL))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "code", "sentence"),
    [
        (
            "nvidia.dali",
            "from reid_fast.data.images import ImageStream; ImageStream([], (8, 8))",
            "nvidia-dali-cuda120",
        ),
        ("tyro", "from reid_fast.command_line import parse; parse([])", "pip install tyro"),
    ],
)
def test_a_missing_package_is_one_clear_sentence(name, code, sentence):
    code = f"import sys; sys.modules[{name!r}] = None\nfrom reid_fast.errors import exit_on_user_error\n" + (
        f"with exit_on_user_error():\n    {code}"
    )
    done = run(code)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
