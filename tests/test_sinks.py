"""Weights & Biases by a stand-in, TensorBoard by its own reader; a disk that takes no more."""

from __future__ import annotations

import json
import os
import sys
from errno import ENOSPC
from pathlib import Path
from types import ModuleType

import pytest
from inputs import TINY, argv, refused, rows_of

from reid_fast.command_line import parse
from reid_fast.errors import UserError
from reid_fast.methods.cc import ClusterContrast
from reid_fast.metrics_log import MetricsLog
from reid_fast.sinks import TensorBoard, open_sinks
from reid_fast.train import main as train

RUN = argv(**TINY, method="cc", iters=2, epochs=2, eval_step=1, threads=1)


class Run:
    def __init__(self, given):
        self.given, self.rows, self.ended = given, {}, None

    def log(self, values, step):
        assert step not in self.rows
        self.rows[step] = values

    def finish(self, exit_code):
        self.ended = exit_code


@pytest.fixture
def runs(monkeypatch):
    """What the stand-in's `init` has made."""
    made, module = [], ModuleType("wandb")

    def init(**given):
        made.append(Run(given))
        return made[-1]

    module.init, module.Error = init, type("Error", (Exception,), {})
    monkeypatch.setitem(sys.modules, "wandb", module)
    return made


def test_a_run_is_logged_and_a_resumed_one_goes_on_under_its_id(people: Path, tmp_path: Path, runs) -> None:
    flags = [*RUN, "--data-dir", str(people), "--logs-dir", str(tmp_path / "mine"), "--wandb", "people"]
    train([*flags, "--epochs", "1"])
    train([*flags, "--resume"])
    first, second = runs
    assert first.given["project"] == second.given["project"] == "people"
    assert first.given["id"] == second.given["id"] == json.loads((tmp_path / "mine/wandb.json").read_text())["id"]
    assert first.given["resume"] == second.given["resume"] == "allow"
    assert first.given["name"] == "mine"
    assert first.given["config"]["batch_size"] == 16
    assert "mode" not in first.given  # which WANDB_MODE decides
    rows = rows_of(tmp_path / "mine")
    assert sorted(first.rows) == [0, 1]
    assert sorted(second.rows) == [2]
    assert second.rows[2]["mAP"] == rows[2]["mAP"]
    assert second.rows[2]["seconds/train"] == rows[2]["seconds"]["train"]
    assert (first.ended, second.ended) == (0, 0)
    train([*flags, "--resume", "--wandb", "others"])
    assert runs[2].given["id"] != first.given["id"]


def test_a_run_that_breaks_off_is_closed_as_failed(people: Path, tmp_path: Path, runs, monkeypatch) -> None:
    def finish_step(self, batch) -> None:
        raise ArithmeticError

    monkeypatch.setattr(ClusterContrast, "finish_step", finish_step)
    with pytest.raises(ArithmeticError):
        train([*RUN, "--data-dir", str(people), "--logs-dir", str(tmp_path), "--wandb", "people"])
    assert runs[0].ended == 1


def test_bad_luck_is_one_sentence(people: Path, tmp_path: Path, runs, monkeypatch, capsys) -> None:
    flags = [*RUN, "--data-dir", people, "--logs-dir", tmp_path / "run", "--wandb", "people"]

    def init(**given):
        raise sys.modules["wandb"].Error("api_key not\nconfigured")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["wandb"], "init", init)
        sentence = refused(capsys, train, *flags)
    assert "takes no run (api_key not configured): log in with `wandb login`, or set WANDB_MODE=offline" in sentence
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install 'reid-fast[wandb]'" in refused(capsys, train, *flags, "--resume")


def test_nothing_is_opened_that_nobody_asked_for(tmp_path: Path, runs) -> None:
    assert open_sinks(parse([])[0], tmp_path) == []
    assert not runs


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epochs in ((0, 1), (2, 3)):  # a resumed run goes on in another file
        sink = TensorBoard(tmp_path)
        for epoch in epochs:
            sink.add(epoch, {"loss": 8.0 - epoch, "seconds/train": 0.5})
        sink.close(failed=False)
        (written,) = (file for file in tmp_path.iterdir() if len(file.suffixes) > 2)
        written.rename(tmp_path / f"tfevents.{epochs[0]}")  # both have this second in their names
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(0, 8), (1, 7), (2, 6), (3, 5)]
    assert read.Tags()["scalars"] == ["loss", "seconds/train"]


class Full:
    """A sink on a full disk."""

    def add(self, epoch, values):
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    def close(self, *, failed):
        self.add(0, {})


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """Also where the sink cannot be closed behind it; the row is in metrics.jsonl."""
    with pytest.raises(UserError, match="No space left on device"), MetricsLog(tmp_path, sinks=[Full()]) as log:
        log.add({"epoch": 0, "seconds": {}})
    assert [row["epoch"] for row in rows_of(tmp_path)] == [0]
    with pytest.raises(UserError, match="free some space"), MetricsLog(tmp_path, sinks=[Full()]):
        pass
