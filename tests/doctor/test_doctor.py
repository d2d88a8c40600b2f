"""`reid-fast doctor`: sees what is broken, does not end by it, and says what a set needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from inputs import refused, write_splits

from reid_fast import ops
from reid_fast.commands.doctor import main
from reid_fast.doctor import needs, parts, self_test
from reid_fast.doctor.clustering_cases import clustering_cases
from reid_fast.doctor.op_cases import op_cases
from reid_fast.models.archs import ARCHS
from reid_fast.models.archs.vit import ViTArch
from reid_fast.models.encoder import Encoder

ROOT = Path(__file__).parents[2]
# Not ops of their own: what others are given, and what is made of `received_attention`.
PARTS = {"ClassMeans", "class_means", "camera_weights", "received_attention"}
WITHOUT = """
import sys
for name in {names!r}:
    sys.modules[name] = None
from reid_fast.__main__ import main
main(["doctor"])
"""


def without(*names):
    code = WITHOUT.format(names=names)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_what_works_is_found_to_work(capsys):
    main(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert not [one for group in found.values() for one in group if one["promised"] and one["state"] != "ok"]
    names = {one["name"] for one in found["packages"]}
    assert names >= {
        "Python",
        "reid-fast",
        "torch",
        "triton",
        "numpy",
        "scipy",
        "scikit-learn",
        "DALI",
        "faiss",
        "CuPy",
    }
    assert names >= {"tyro", "safetensors", "_C"}
    assert len(found["self test"]) > 15


def test_every_op_is_tested():
    tested = {name.partition(",")[0] for name, _ in op_cases("cpu")}
    assert tested == set(ops.__all__) - PARTS


@pytest.mark.gpu
def test_every_kernel_works_on_the_gpu():
    assert not [one for one in self_test() if one.state != "ok"]


def spoilt(function, place):
    """The function with one of the tensors that it returns or changes off by a per cent."""

    def run(*arguments, **options):
        found = function(*arguments, **options)
        if place is not None:
            arguments[place].mul_(1.01)
            return found
        return 1.01 * found

    return run


CHANGES = {"cluster_step": 1, "memory_update": 0, "hybrid_update": 0}


@pytest.mark.parametrize("name", sorted(set(ops.__all__) - PARTS))
def test_an_op_that_is_off_by_a_per_cent_is_seen(monkeypatch, name):
    patched = "received_attention" if name == "cluster_attention" else name
    monkeypatch.setattr(ops, patched, spoilt(getattr(ops, patched), CHANGES.get(name)))
    cases = [case for called, case in op_cases("cpu") if called.partition(",")[0] == name]
    assert cases
    assert all(case() > 5e-3 for case in cases)


@pytest.mark.parametrize("name", ["search_by", "knn_ivf", "jaccard_graph", "dbscan"])
def test_a_stage_that_is_wrong_is_seen(monkeypatch, name):
    from reid_fast.doctor import clustering_cases as module

    stage = getattr(module, name)

    def wrong(*arguments, **options):
        found = stage(*arguments, **options)
        if name == "jaccard_graph":
            found.data[:] = 1.01 * found.data + 0.005
        elif name == "dbscan":
            found[3] = -1
        else:
            found[0][5, 2] = found[0][200, 0]  # not among the neighbours of row 5
        return found

    monkeypatch.setattr(module, name, wrong)
    cases = [case for called, case in clustering_cases("cpu") if called.startswith(name.replace("search_by", "knn by"))]
    assert cases
    assert all(case() > 1e-3 for case in cases)


def test_a_wrong_result_and_a_failing_op_are_findings(monkeypatch):
    monkeypatch.setattr(ops, "augment", spoilt(ops.augment, None))
    monkeypatch.setattr(ops, "bias_relu", lambda *_: 1 / 0)
    found = {one.name: one for one in self_test()}
    wrong, failing = found.pop("augment on cpu"), found.pop("bias_relu on cpu")
    assert wrong.fault
    assert "off by 0.01 of the largest value" in wrong.said
    assert failing.fault
    assert "ZeroDivisionError" in failing.said
    assert not [one for one in found.values() if one.state != "ok"]


@pytest.mark.parametrize(
    ("names", "first"), [(("torch", "rich", "tyro"), "torch"), (("reid_fast._C", "nvidia.dali"), "_C")]
)
def test_something_promised_that_is_missing_is_one_sentence(names, first):
    done = without(*names)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {first} does not work")
    assert done.stderr.count("\n") == 1
    assert "install" in done.stderr
    assert f"!! {first}" in done.stdout or f"-- {first}" in done.stdout
    assert "ok numpy" in done.stdout


def test_an_optional_package_that_is_missing_is_no_fault(monkeypatch):
    for name in ("faiss", "cupy", "infomap", "yaml"):
        monkeypatch.setitem(sys.modules, name, None)
    found = {one.name: one for one in parts()}
    for name in ("faiss", "CuPy", "infomap", "pyyaml"):
        assert found[name].state == "missing"
        assert "pip install" in found[name].way_out
        assert not found[name].fault
    assert not [one for one in found.values() if one.fault]


def test_needs_are_those_of_the_files(tmp_path):
    arch, N, size = "resnet18_half", 1234, (64, 32)
    encoder = Encoder(arch)
    optimizer = torch.optim.Adam(encoder.parameters())
    encoder(torch.rand(4, 3, *size)).sum().backward()
    encoder.neck.bias.grad = torch.zeros_like(encoder.neck.bias)
    optimizer.step()
    torch.save({"method": encoder.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "last.pt")
    torch.save(encoder.state_dict(), tmp_path / "model")
    found = needs(N, size, arch)
    for key, name in (("checkpoint_gib", "last.pt"), ("export_gib", "model")):
        assert found[key] * 2**30 == pytest.approx((tmp_path / name).stat().st_size, rel=0.02)
    assert found["decoded_gib"] * 2**30 == N * 64 * 32 * 3
    assert found["instances_gib"] * 2**30 == N * encoder.width * 4
    assert found["labels_gib"] * 2**30 > N * encoder.width * 4


def test_minutes_are_measured(monkeypatch):
    monkeypatch.setattr("reid_fast.doctor.estimate._seconds", lambda work, cuda: 2.0)
    found = needs(8000, (16, 8), "resnet18_half", batch=64, iters=10, measure=True)
    assert found["epoch_minutes"] * 60 == 8000 * 2 / 8 + 640 * 2 / 8 + 2 * 2.0**2
    assert "processor" in found["measured_on"]


def test_what_a_set_would_need_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("reid_fast.commands.doctor.self_test", list)
    main(["--dataset", "market1501", "--data-dir", str(write_splits(tmp_path))])
    assert "3 images of 256×128 pixels with resnet50 need" in capsys.readouterr().out
    main(["--images", "1000", "--width", "64", "--json", "--full", "--height", "32", "-a", "resnet18_half"])
    found = json.loads(capsys.readouterr().out)["needs"]
    assert found["epoch_minutes"] > 0
    assert found["images"] == 1000
    main(["--dataset", "synthetic", "--data-dir", str(write_splits(tmp_path))])
    assert "3 images of" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--dataset", "market", "--json"])
    assert json.loads(capsys.readouterr().out)["machine"]


def test_minutes_of_a_transformer_at_its_own_size(monkeypatch):
    monkeypatch.setitem(ARCHS, "tiny_vit", ViTArch(16, depth=1, heads=2))
    monkeypatch.setattr("reid_fast.doctor.estimate._seconds", lambda work, cuda: (work(), 1.0)[1])
    assert needs(10, (48, 48), "tiny_vit", measure=True)["epoch_minutes"] > 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--dataset", "market"], "--dataset market is not known"),
        (["--dataset", "market1501"], "needs --data-dir"),
        (["--dataset", "market1501", "--data-dir", "nowhere"], "nowhere does not exist"),
        (["--images", "0"], "--images must lie between 1 and 1,000,000,000, not 0"),
        (["--images", "5", "--arch", "resnet9000"], "--arch resnet9000 is not known"),
        (["--images", "5", "--arch", "vit_small", "--height", "250"], "250×128 is not made of"),
    ],
)
def test_bad_input(capsys, monkeypatch, flags, sentence):
    monkeypatch.setattr("reid_fast.commands.doctor.self_test", list)
    assert sentence in refused(capsys, main, *flags)
