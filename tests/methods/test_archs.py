"""Every method with a transformer and an OSNet: a killed run ends like a whole one, every weight is reached."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from inputs import TINY, argv, rows_of, sampled
from torch.utils._pytree import tree_leaves

from reid_fast.command_line import parse
from reid_fast.evaluate import main as evaluate
from reid_fast.methods import method_class, method_names, settings_class
from reid_fast.train import train

pytestmark = pytest.mark.usefixtures("tiny_arch")
RUN = TINY | {"iters": 2, "epochs": 1, "save_steps": 1, "workers": 1}
TRANSFORMER = {"arch": "tiny_vit", "drop_path": 0.5, "optimizer": "sgd", "image_norm": "half", "lr": 0.05}
OSNET = {"arch": "tiny_osnet", "optimizer": "adamw"}


@pytest.fixture
def settings(people, market_folder, tmp_path):
    """The settings of a system's smallest run."""

    def settings(system, family):
        name = system.split()[0]
        flags = RUN | family | {"method": name.replace("_", "-"), "data_dir": people, "logs_dir": tmp_path / "whole"}
        if "camera_epoch" in settings_class(name).__dataclass_fields__:
            flags |= {"camera_epoch": 0}
        if "source" in system:
            flags |= {"source": "market1501", "source_dir": market_folder}
        return parse(argv(**flags))[0]

    return settings


class Killed(Exception):
    pass


def assert_same_bits(one, other):
    for ours, theirs in zip(tree_leaves(one), tree_leaves(other), strict=True):
        if torch.is_tensor(ours):
            assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
        else:
            assert ours == theirs


SYSTEMS = [*method_names(), "cc with a source", "spcl with a source"]


@pytest.mark.parametrize("system", sampled(SYSTEMS, "cc with a source", "ice"))
def test_a_transformer_that_skips_branches_resumes_with_the_same_bits(system, settings, tmp_path, monkeypatch):
    config = settings(system, TRANSFORMER)
    train(config)
    cls = method_class(config.method)
    training_step = cls.training_step

    def killed(self, batch):
        if batch.step == 1:  # a checkpoint was written after the step before
            raise Killed
        return training_step(self, batch)

    config = replace(config, logs_dir=tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(cls, "training_step", killed)
        with pytest.raises(Killed):
            train(config)
    train(replace(config, resume=True))
    whole, resumed = (torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("whole", "killed"))
    assert np.isfinite(rows_of(tmp_path / "whole")[-1]["loss"])
    assert_same_bits([whole["method"], whole["optimizer"]], [resumed["method"], resumed["optimizer"]])


def test_a_run_that_skips_branches_is_another(settings, tmp_path):
    """The test above would pass too if none were skipped."""
    config = settings("cc", TRANSFORMER)
    losses = []
    for rate in (0.0, 0.5):
        folder = tmp_path / str(rate)
        train(replace(config, drop_path=rate, logs_dir=folder))
        losses.append(rows_of(folder)[-1]["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("family", [TRANSFORMER, OSNET], ids=["transformer", "osnet"])
def test_an_export_scores_alike(family, settings, people, tmp_path):
    arch = {"tiny_vit": "tiny_ics"}.get(family["arch"], family["arch"])  # BatchNorm by domain in its stem too
    train(settings("cc with a source", family | {"arch": arch}))
    described = json.loads((tmp_path / "whole/model.json").read_text())
    half = family is TRANSFORMER
    assert described["mean"] == ([0.5] * 3 if half else [0.485, 0.456, 0.406])
    assert described["std"] == ([0.5] * 3 if half else [0.229, 0.224, 0.225])
    evaluate([str(tmp_path / "whole"), "-d", "market1501", "--data-dir", str(people), "--device", "cpu", "-j", "1"])
    scored = json.loads((tmp_path / "whole/evaluate-market1501.json").read_text())
    assert scored["mAP"] == pytest.approx(rows_of(tmp_path / "whole")[-1]["mAP"])
