"""Every method of the folder: it trains, its loss falls, a killed run ends like a whole one, bad input is refused."""

import dataclasses
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import argv
from stubs import batch_of

from reid_fast import methods
from reid_fast.command_line import _help
from reid_fast.config import RECIPES
from reid_fast.data.sets.known import SIZES
from reid_fast.data.sets.records import ImageSet, TrainingSet
from reid_fast.data.synthetic.draw import synthetic_folder
from reid_fast.evaluate import main as evaluate
from reid_fast.methods import method_class, method_names, settings_class
from reid_fast.methods.settings import CameraSettings
from reid_fast.models.resnet import ARCHS, Arch, BasicBlock
from reid_fast.train import main as train

TINY = argv(
    recipe="small",
    arch="tiny",
    height=32,
    width=16,
    batch_size=16,
    iters=4,
    epochs=1,
    k1=8,
    k2=3,
    device="cpu",
    dataset="market1501",
    workers=1,
)


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
        *(["--camera-epoch", "0"] if "camera_epoch" in settings_class(method).__dataclass_fields__ else []),
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
    settings = {"arch": "tiny", "weights": "none", "height": 32, "width": 16, "bn_group": 0}
    if issubclass(settings_class(name), CameraSettings):
        settings["negatives"] = 3
    cams = np.tile([0, 1], 32)
    data = ImageSet(tuple(Path(f"{i}.jpg") for i in range(64)), np.zeros(64, np.int64), cams)
    method = method_class(name)(settings_class(name)(method=name, **settings), TrainingSet(data))
    pictures = torch.randn(64, 3, 32, 16)
    with torch.no_grad():
        features = method.extract_features(lambda encoder: encoder.eval()(pictures))
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
        loss = sum(method.training_step(batch).values())
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
    method.training_step(batch)
    method.finish_step(batch)
    other, _ = new_method(name)
    other.load_state_dict(method.state_dict())
    results = []
    for each in (method, other):
        losses = each.training_step(batch)
        each.finish_step(batch)
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
    finish_step = cls.finish_step

    def killed(self, batch):
        if batch.step == 7:  # a checkpoint was written after the sixth step, in the middle of the second epoch
            raise Killed
        finish_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "finish_step", killed)
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
def test_a_clustering_without_the_eps_that_a_method_needs(name, people, tmp_path, capsys):
    text = refused(capsys, flags(name, people, tmp_path / "run", "--cluster", "infomap"))
    assert f"--cluster is a setting of cap, cap-cc, cc, ice and rcl, which --method {name} does not read" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["cap", "cap_cc", "ice"])
def test_a_camera_method_on_a_set_without_camera_ids(name, people, tmp_path, capsys):
    crops = people / "bounding_box_train"
    argv = flags(name, crops, tmp_path / "run", "-d", "folder", "--pattern", r"(?P<pid>\d+)_")
    text = refused(capsys, argv)
    assert f"--method {name.replace('_', '-')} needs each image's camera" in text
    assert ".jpg" in text
    assert not (tmp_path / "run").exists()


def test_ice_without_cameras(people, tmp_path):
    crops = people / "bounding_box_train"
    train(flags("ice", crops, tmp_path, "-d", "folder", "--camera-agnostic"))
    assert rows_of(tmp_path)[-1]["clusters"] > 1


@pytest.mark.parametrize(
    ("name", "more", "text"),
    [
        ("spcl", ["--eps-gap", "0.7"], "--eps-gap 0.7"),
        ("cacl", ["--eps", "0.999"], "--eps-gap 0.005"),
        ("cap", ["--negatives", "129"], "--negatives must lie between 1 and 128, not 129"),
        ("ice", ["--camera-temp", "0"], "--camera-temp must be positive"),
        ("dccc", ["--ema", "1"], "--ema must lie between 0 and 1, 1 excluded"),
        ("dccc", ["--smoothing", "1.5"], "--smoothing"),
        ("rcl", ["--saa-lr", "nan"], "--saa-lr must be positive, not nan"),
        ("cc", ["--update-temp", "inf"], "--update-temp must be positive, not inf"),
    ],
)
def test_settings_out_of_range_of_a_method(name, more, text, people, tmp_path, capsys):
    assert text in refused(capsys, flags(name, people, tmp_path / "run", *more))


def test_adding_a_method_with_a_setting_is_one_file(people, tmp_path, monkeypatch, capsys):
    """The example of the README, as it stands there."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = re.search(r"```python\n# reid_fast/methods/mine.py.*?\n(.*?)```", readme, re.DOTALL)[1]
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "mine.py").write_text(example)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(extra)])
    with pytest.raises(SystemExit):
        train(["--help"])
    assert "mine" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train(["--method", "mine", "--help"])
    assert "--sharpness" in capsys.readouterr().out
    train(flags("mine", people, tmp_path / "run", "--sharpness", "2.5"))
    config = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert (config["method"], config["momentum"], config["sharpness"]) == ("mine", 0.2, 2.5)
    assert np.isfinite(rows_of(tmp_path / "run")[-1]["loss"])
    assert "--sharpness must be positive" in refused(capsys, flags("mine", people, tmp_path / "no", "--sharpness", "0"))


def test_the_readmes_method_passes_the_linter(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(# reid_fast/methods/mine.py.*?)```", readme, re.DOTALL)
    (tmp_path / "mine.py").write_text(example)
    settings = Path(__file__).parents[2] / "pyproject.toml"
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", settings, tmp_path / "mine.py"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_flag_of_another_method_is_refused(people, tmp_path, capsys):
    text = refused(capsys, flags("cc", people, tmp_path / "run", "--hps-guard", "0.5"))
    assert text == "error: --hps-guard is a setting of rcl, which --method cc does not read"
    assert not (tmp_path / "run").exists()


def test_a_flag_that_nobody_knows_is_refused(people, tmp_path, capsys):
    text = refused(capsys, flags("cc", people, tmp_path / "run", "--num-instance=4"))
    assert "--num-instance is no setting: did you mean --num-instances?" in text


@pytest.mark.parametrize("name", method_names())
def test_a_recipe_sets_what_the_method_reads(name):
    known = {field.name for field in dataclasses.fields(settings_class(name))}
    for place, overlay in method_class(name).recipes.items():
        assert place in {*SIZES, *RECIPES}
        assert set(overlay) <= known


@pytest.mark.parametrize("name", method_names())
def test_every_setting_is_documented_and_grouped(name, capsys):
    with pytest.raises(SystemExit):
        train(["--method", name, "--help"])
    shown = capsys.readouterr().out
    for field in dataclasses.fields(settings_class(name)):
        assert re.search(rf"--{field.name.replace('_', '-')}\b", shown), field.name
        assert _help(settings_class(name), field.name), field.name
