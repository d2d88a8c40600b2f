"""Every method of the folder: it trains, its loss falls, a killed run ends like a whole one, bad input is refused."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import TINY, argv, refused, rows_of, sampled
from stubs import batch_of, drawn_for

from reid_fast import methods
from reid_fast.config import Config
from reid_fast.data.sets import ImageSet, TrainingSet
from reid_fast.evaluate import main as evaluate
from reid_fast.methods import method_class, method_names, settings_class
from reid_fast.methods.settings import CameraSettings
from reid_fast.train import main as train

pytestmark = pytest.mark.usefixtures("tiny_arch")
RUN = argv(**TINY, arch="tiny", iters=4, epochs=1, workers=1)


def flags(method, people, folder, *more):
    return [
        *RUN,
        "--method",
        method.replace("_", "-"),
        "--data-dir",
        str(people),
        "--logs-dir",
        str(folder),
        *(["--camera-epoch", "0"] if "camera_epoch" in settings_class(method).__dataclass_fields__ else []),
        *more,
    ]


@pytest.mark.parametrize("name", method_names())
def test_it_trains_an_epoch_and_its_export_scores_alike(name, people, tmp_path):
    train(flags(name, people, tmp_path, "--cache", "0"))  # other tests hold the decoded images
    before, after = rows_of(tmp_path)
    assert np.isfinite(after["loss"])
    assert after["clusters"] > 1
    scores = {f"{other}mAP" for other in {"dccc": ["", "teacher_"], "ice": ["", "student_"]}.get(name, [""])}
    for row in (before, after):
        assert {key for key in row if key.endswith("mAP")} == scores
    assert all(0 < after[score] <= 1 for score in scores)
    evaluate([str(tmp_path), "-d", "market1501", "--data-dir", str(people), "--device", "cpu", "-j", "1"])
    assert json.loads((tmp_path / "evaluate-market1501.json").read_text())["mAP"] == pytest.approx(after["mAP"])


def new_method(name, arch="tiny"):
    """Eight people of eight images under two cameras, 32×16 pixels of noise, and an encoder to be trained."""
    torch.manual_seed(0)
    settings = {"arch": arch, "weights": "none", "height": 32, "width": 16, "bn_group": 0}
    if issubclass(settings_class(name), CameraSettings):
        settings["negatives"] = 3
    cams = np.tile([0, 1], 32)
    data = ImageSet(tuple(Path(f"{i}.jpg") for i in range(64)), np.zeros(64, np.int64), cams)
    method = method_class(name)(settings_class(name)(method=name, **settings), TrainingSet(data))
    images = torch.randn(64, 3, 32, 16)
    with torch.no_grad():
        features = method.extract_features(lambda encoder: encoder.eval()(images))
    labels = np.repeat(np.arange(8), 8)
    method.fill_memory(features, labels)
    index = torch.arange(0, 64, 4) + torch.arange(16) % 2  # two images of each, one per camera
    views = [images[index] for _ in method.views]
    return method.train(), drawn_for(method, batch_of(views, labels[index], index, cams[index], epoch=5))


@pytest.mark.parametrize("arch", sampled(["tiny", "tiny_vit"], "tiny"))
@pytest.mark.parametrize("name", method_names())
def test_its_loss_falls_and_reaches_every_trained_weight(name, arch):
    method, batch = new_method(name, arch)
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


@pytest.mark.parametrize("name", sampled(method_names(), "cc", "cacl"))
def test_it_reaches_every_weight_of_an_osnet(name):
    method, batch = new_method(name, "tiny_osnet")
    sum(method.training_step(batch).values()).backward()
    for key, weight in method.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, key
            assert weight.grad.isfinite().all(), key
            assert weight.grad.any() or ".gate." in key, key  # so narrow a gate may be shut


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


@pytest.mark.parametrize("name", sampled(method_names(), "cc", "ice", "rcl"))
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


@pytest.mark.parametrize("cluster", ["hdbscan", "infomap"])
def test_another_clustering(cluster, people, tmp_path):
    if cluster == "infomap" and find_spec("infomap") is None:
        pytest.skip("infomap is not installed")
    train(flags("cc", people, tmp_path, "--cluster", cluster))
    assert rows_of(tmp_path)[-1]["clusters"] > 1


@pytest.mark.parametrize("name", ["cacl", "dccc", "spcl"])
def test_a_clustering_without_the_eps_that_a_method_needs(name, people, tmp_path, capsys):
    text = refused(capsys, train, *flags(name, people, tmp_path / "run", "--cluster", "infomap"))
    assert f"--cluster is a setting of cap, cap-cc, cc, ice and rcl, which --method {name} does not read" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["cap", "cap_cc", "ice"])
def test_a_camera_method_on_a_set_without_camera_ids(name, people, tmp_path, capsys):
    crops = people / "bounding_box_train"
    argv = flags(name, crops, tmp_path / "run", "-d", "folder", "--pattern", r"(?P<pid>\d+)_")
    text = refused(capsys, train, *argv)
    assert f"--method {name.replace('_', '-')} needs each image's camera" in text
    assert ".jpg" in text
    assert not (tmp_path / "run").exists()


def test_ice_without_cameras(people, tmp_path):
    crops = people / "bounding_box_train"
    train(flags("ice", crops, tmp_path, "-d", "folder", "--camera-agnostic"))
    assert rows_of(tmp_path)[-1]["clusters"] > 1


def test_the_engines_settings_alone_make_no_method():
    with pytest.raises(TypeError, match="method spcl takes its settings as SpclConfig, not Config"):
        methods.new_method(Config(method="spcl"), TrainingSet(ImageSet((), np.zeros(0, int), np.zeros(0, int))))
