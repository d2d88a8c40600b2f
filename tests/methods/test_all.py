"""Every method of the folder: it trains, its loss falls, a killed run ends like a whole one, bad input is refused."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from stubs import batch_of

from reid_fast import methods
from reid_fast.config import Config
from reid_fast.data.sets.records import ImageSet
from reid_fast.data.synthetic.draw import synthetic_folder
from reid_fast.evaluate import main as evaluate
from reid_fast.methods import method_class, method_names
from reid_fast.models.resnet import ARCHS, Arch, BasicBlock
from reid_fast.train import main as train

TINY = ["--recipe", "small", "--height", "32", "--width", "16", "-b", "16", "--iters", "4", "--epochs", "1",
        "--k1", "8", "--k2", "3", "--device", "cpu", "-d", "market1501", "--workers", "1", "--arch", "tiny",
        "--camera-epoch", "0"]  # fmt: skip


@pytest.fixture(autouse=True)
def tiny_arch(monkeypatch):
    """One block of eight channels a stage."""
    monkeypatch.setitem(ARCHS, "tiny", Arch(BasicBlock, (1, 1, 1, 1), width=8))


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A small set with the layout and the camera count of Market-1501."""
    return synthetic_folder(tmp_path_factory.mktemp("people"), train_ids=12, test_ids=4)


def flags(method, people, folder, *more):
    return [
        *TINY,
        "--method",
        method.replace("_", "-"),
        "--data-dir",
        str(people),
        "--logs-dir",
        str(folder),
        *more,
    ]


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", method_names())
def test_it_trains_an_epoch_and_its_export_scores_alike(name, people, tmp_path):
    train(flags(name, people, tmp_path, "--cache", "0"))  # other tests hold the decoded pictures
    before, after = rows_of(tmp_path)
    assert np.isfinite(after["loss"])
    assert after["clusters"] > 1
    scores = {f"{other}mAP" for other in {"dccc": ["", "teacher_"], "ice": ["", "student_"]}.get(name, [""])}
    for row in (before, after):
        assert {key for key in row if key.endswith("mAP")} == scores
    assert all(0 < after[score] <= 1 for score in scores)
    evaluate([str(tmp_path), "-d", "market1501", "--data-dir", str(people), "--device", "cpu", "-j", "1"])
    assert json.loads((tmp_path / "evaluate-market1501.json").read_text())["mAP"] == pytest.approx(after["mAP"])


def new_method(name):
    """Eight people of eight pictures under two cameras, 32×16 pixels of noise, and an encoder to be trained."""
    torch.manual_seed(0)
    settings = method_class(name).defaults | {
        "arch": "tiny", "weights": "none", "height": 32, "width": 16, "bn_group": 0, "negatives": 3,
    }  # fmt: skip
    cams = np.tile([0, 1], 32)
    data = ImageSet(tuple(Path(f"{i}.jpg") for i in range(64)), np.zeros(64, np.int64), cams)
    method = method_class(name)(Config(method=name, **settings), data)
    pictures = torch.randn(64, 3, 32, 16)
    with torch.no_grad():
        features = method.features(lambda encoder: encoder.eval()(pictures))
    labels = np.repeat(np.arange(8), 8)
    method.fill_memory(features, labels)
    index = torch.arange(0, 64, 4) + torch.arange(16) % 2  # two pictures of each, one per camera
    views = [pictures[index] for _ in method.views]
    return method.train(), batch_of(views, labels[index], index, cams[index], epoch=5)


@pytest.mark.parametrize("name", method_names())
def test_its_loss_falls_and_reaches_every_trained_weight(name):
    method, batch = new_method(name)
    weights = {key: weight for key, weight in method.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.Adam(weights.values(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss = sum(method.loss(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert [key for key, weight in weights.items() if weight.grad is None] == []


@pytest.mark.parametrize("name", method_names())
def test_steps_depend_on_nothing_that_is_not_saved(name):
    """Two steps in a row, and the second one by a method that has loaded the state after the first."""
    method, batch = new_method(name)
    method.loss(batch)
    method.after_step(batch)
    other, _ = new_method(name)
    other.load_state_dict(method.state_dict())
    results = []
    for each in (method, other):
        losses = each.loss(batch)
        each.after_step(batch)
        results.append({key: loss.item() for key, loss in losses.items()})
    assert results[0] == results[1]
    assert_same_state(method.state_dict(), other.state_dict())


def assert_same_state(state, expected):
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor.nan_to_num(), expected[name].nan_to_num()), name


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", method_names())
def test_killed_in_the_second_epoch_and_resumed_it_ends_with_the_same_bits(name, people, tmp_path, monkeypatch):
    more = ["--epochs", "2", "--save-steps", "2", "--eval-step", "2", "--amp"]
    train(flags(name, people, tmp_path / "whole", *more))
    cls = method_class(name)
    after_step = cls.after_step

    def killed(self, batch):
        if batch.step == 7:  # a checkpoint was written after the sixth step, in the middle of the second epoch
            raise Killed
        after_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "after_step", killed)
        with pytest.raises(Killed):
            train(flags(name, people, tmp_path / "killed", *more))
    state = torch.load(tmp_path / "killed/last.pt", weights_only=True)
    assert (state["at"]["epoch"], state["at"]["step"], state["at"]["steps_before"]) == (1, 2, 4)
    train(flags(name, people, tmp_path / "killed", *more, "--resume"))

    whole, resumed = (torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("whole", "killed"))
    assert_same_state(resumed["method"], whole["method"])
    for run in (tmp_path / "whole", tmp_path / "killed"):
        assert [row["epoch"] for row in rows_of(run)] == [0, 1, 2]
    assert rows_of(tmp_path / "killed")[-1]["loss"] == rows_of(tmp_path / "whole")[-1]["loss"]
    assert (tmp_path / "killed/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def refused(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        train(argv)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("cluster", ["hdbscan", "infomap"])
def test_another_clustering(cluster, people, tmp_path):
    if cluster == "infomap" and find_spec("infomap") is None:
        pytest.skip("infomap is not installed")
    train(flags("cc", people, tmp_path, "--cluster", cluster))
    assert rows_of(tmp_path)[-1]["clusters"] > 1


@pytest.mark.parametrize("name", ["cacl", "dccc", "spcl"])
def test_a_clustering_without_the_radius_that_a_method_needs(name, people, tmp_path, capsys):
    text = refused(capsys, flags(name, people, tmp_path / "run", "--cluster", "infomap"))
    assert "use --cluster dbscan" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["cap", "cap_cc", "ice"])
def test_a_camera_method_on_a_set_without_camera_ids(name, people, tmp_path, capsys):
    crops = people / "bounding_box_train"
    argv = flags(name, crops, tmp_path / "run", "-d", "folder", "--pattern", r"(?P<pid>\d+)_")
    text = refused(capsys, argv)
    assert f"--method {name.replace('_', '-')} needs each picture's camera" in text
    assert ".jpg" in text
    assert not (tmp_path / "run").exists()


def test_ice_without_cameras(people, tmp_path):
    crops = people / "bounding_box_train"
    train(flags("ice", crops, tmp_path, "-d", "folder", "--camera-agnostic"))
    assert rows_of(tmp_path)[-1]["clusters"] > 1


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--method", "spcl", "--eps-gap", "0.7"], "--eps-gap 0.7"),
        (["--method", "cacl", "--eps", "0.999"], "--eps-gap 0.005"),
        (["--negatives", "129"], "--negatives must be at most 128"),
        (["--camera-temp", "0"], "--camera-temp must be positive"),
        (["--ema", "1"], "--ema must lie in [0, 1)"),
        (["--smoothing", "1.5"], "--smoothing"),
    ],
)
def test_settings_out_of_range(more, text, people, tmp_path, capsys):
    assert text in refused(capsys, flags("cc", people, tmp_path / "run", *more))


MINE = '''
"""Cluster Contrast with a plain batch mean as prototype update."""

from reid_fast.methods.base import Method


class Mine(Method):
    defaults = {"momentum": 0.7}

    def update_rule(self, x, batch):
        return {"mode": "weighted", "update_temperature": float("inf")}
'''


def test_adding_a_method_is_one_file(people, tmp_path, monkeypatch, capsys):
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "mine.py").write_text(MINE)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(extra)])
    with pytest.raises(SystemExit):
        train(["--help"])
    assert "mine" in capsys.readouterr().out
    train(flags("mine", people, tmp_path / "run"))
    config = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert (config["method"], config["momentum"]) == ("mine", 0.7)
    assert np.isfinite(rows_of(tmp_path / "run")[-1]["loss"])
