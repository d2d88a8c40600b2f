"""The driver: runs end to end, is killed and resumed."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from inputs import TINY, argv, rows_of

from reid_fast.command_line import parse
from reid_fast.data.images import stream
from reid_fast.epoch import test_images as open_test_images
from reid_fast.errors import UserError
from reid_fast.evaluate import main as evaluate
from reid_fast.run import build
from reid_fast.train import main as train

ROOT = Path(__file__).parents[1]
SMALL = TINY | {"arch": "tiny", "threads": 1}
RUN = argv(**SMALL, method="cc", iters=8, epochs=2, amp=True)
pytestmark = pytest.mark.usefixtures("tiny_arch")
MEASURED = {"seconds", "images_per_second", "peak_memory_mb"}


TINY_ARCH = """
from reid_fast.models.archs import ARCHS
from reid_fast.models.archs.resnet import BasicBlock, ResNetArch
from reid_fast.train import main

ARCHS["tiny"] = ResNetArch(BasicBlock, (1, 1, 1, 1), width=8)
"""
SLOW_DISK = """
import os, time

sync = os.fsync
os.fsync = lambda file: (time.sleep(0.03), sync(file))
"""


def test_a_run_leaves_what_the_run_folder_promises(people: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    train([*RUN, "--data-dir", str(people), "--logs-dir", str(folder), "--eval-step", "1", "--tensorboard"])
    rows = rows_of(folder)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert 0 < row["mAP"] <= 1
        assert row["rank1"] <= row["rank5"] <= row["rank10"]
        assert "evaluate" in row["seconds"]
    stages = {"extract", "knn", "jaccard", "dbscan", "silhouette", "memory", "train", "evaluate"}
    keys = {"clusters", "outliers", "silhouette", "loss", "lr", "nmi", "ari", "images_per_second", "peak_memory_mb"}
    for row in rows[1:]:
        assert set(row["seconds"]) == stages
        assert keys <= set(row)
        assert row["lr"] == 7e-4
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["batch_size"] == 16
    assert config["versions"]["torch"] == torch.__version__
    assert list(folder.glob("events.out.tfevents*"))
    assert not list(folder.glob(".*.part"))
    shown = capsys.readouterr().out
    assert "untrained" in shown
    assert "best on the test set" in shown
    assert "weights: random" in shown

    evaluate([str(folder), "-d", "market1501", "--data-dir", str(people), "--amp", "--device", "cpu", "--rerank"])
    scores = json.loads((folder / "evaluate-market1501.json").read_text())
    assert scores["mAP"] == rows[-1]["mAP"]
    assert scores["rank1"] == rows[-1]["rank1"]
    assert scores["reranked"]["queries"] == scores["queries"]
    assert scores["reranked"]["mAP"] != scores["mAP"]
    shown = capsys.readouterr().out
    assert "re-ranking: neighbours and largest distances of" in shown
    assert "market1501, re-ranked" in shown

    after = ["--logs-dir", str(tmp_path / "after"), "--weights", str(folder), "--epochs", "1"]
    train([*RUN, "--data-dir", str(people), *after])
    assert "weights: encoder of reid-fast" in capsys.readouterr().out
    assert rows_of(tmp_path / "after")[0]["mAP"] == rows[-1]["mAP"]


def test_a_run_is_repeatable(people: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train([*RUN, "--data-dir", str(people), "--logs-dir", str(tmp_path / name), "--epochs", "1"])
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_held_in_memory_or_a_file_or_not_at_all_a_run_ends_with_the_same_bits(
    people: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    decoded: Counter[Path] = Counter()
    read = stream.read_image
    monkeypatch.setattr(stream, "read_image", lambda path: decoded.update([path]) or read(path))
    file = ["--cache", "0", "--cache-dir", str(tmp_path)]
    ways = {"streamed": ["--cache", "0"], "memory": ["--cache", "6"], "file": file, "file again": file}
    said = ["decoded at every use", "held decoded on cpu", *2 * [f"held decoded in {tmp_path}"]]
    times = [None, {1}, {1}, {0}]
    ends = []
    for (name, flags), where, counts in zip(ways.items(), said, times, strict=True):
        decoded.clear()
        train([*RUN, "--data-dir", str(people), "--logs-dir", str(tmp_path / name), *flags])
        lines = capsys.readouterr().out
        assert all(f"{images} images are {where}" in lines for images in ("training", "test"))
        found = {decoded[path] for path in people.rglob("*.jpg")}
        assert found == counts or (counts is None and min(found) >= 2)  # two epochs, two evaluations
        rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in rows_of(tmp_path / name)]
        ends.append((rows, (tmp_path / name / "model.safetensors").read_bytes()))
    assert all(end == ends[0] for end in ends[1:])


@pytest.mark.parametrize(("more", "line"), [(1, "held decoded on cpu"), (0, "decoded at every use")])
def test_test_images_are_held_in_the_room_that_training_images_leave(
    people: Path, tmp_path: Path, capsys, more: int, line: str
) -> None:
    folders = ("bounding_box_train", "query", "bounding_box_test")
    training, *tested = (len(list((people / folder).iterdir())) for folder in folders)
    cache = (training + sum(tested) - 1 + more) * 32 * 16 * 3 / 2**30
    config, _ = parse([*RUN, "--data-dir", str(people), "--logs-dir", str(tmp_path), "--cache", str(cache)])
    run = build(config)
    assert run.loader.held
    assert run.data.query is not None
    assert run.data.gallery is not None
    images = open_test_images(run, run.data.query, run.data.gallery)
    assert f"test images are {line}" in capsys.readouterr().out
    assert len(images.paths) == sum(tested)
    assert open_test_images(run, run.data.query, run.data.gallery) is images


@pytest.mark.thorough
def test_killed_at_a_random_step_and_resumed_a_run_ends_with_the_same_bits(people: Path, tmp_path: Path) -> None:
    flags = [*RUN, "--data-dir", str(people), "--iters", "40", "--save-steps", "3", "--update", "hard"]
    flags += ["--resume", "--logs-dir"]

    def start(folder: str, *more: str, before: str = "") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", f"{before}{TINY_ARCH}main()", *flags, str(tmp_path / folder), *more]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    seed = int(os.environ.get("KILL_SEED", random.randrange(10**6)))  # another step each time: whichever fails is a bug
    print(f"KILL_SEED={seed} draws these kills again")
    chance = random.Random(seed)
    kills = 0
    for _ in range(2):
        # The images are the same, whatever makes them; a checkpoint is under way during most steps.
        process = start("killed", "--cache", "0", before=SLOW_DISK)
        checkpoint = tmp_path / "killed/last.pt"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.8))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 1
    assert start("killed").wait() == 0

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    a, b = (torch.load(folder / "last.pt", weights_only=True) for folder in (whole, killed))
    for name, tensor in a["method"].items():
        assert torch.equal(tensor, b["method"][name]), name
    losses = [
        [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").open()] for folder in (whole, killed)
    ]
    assert losses[0] == losses[1]


def test_a_finished_run_resumed_with_more_epochs_goes_on(people: Path, tmp_path: Path) -> None:
    flags = [*RUN, "--data-dir", str(people)]
    train([*flags, "--logs-dir", str(tmp_path / "two")])
    train([*flags, "--logs-dir", str(tmp_path / "one"), "--epochs", "1"])
    train([*flags, "--logs-dir", str(tmp_path / "one"), "--resume"])
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_unlabelled_crops_train_without_evaluation(people: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    crops = people / "bounding_box_train"
    train(
        [
            *RUN,
            "-d",
            "folder",
            "--data-dir",
            str(crops),
            "--logs-dir",
            str(folder),
            "--epochs",
            "1",
            "--no-cam",
        ]
    )
    rows = rows_of(folder)
    assert rows[0] == {"epoch": 0, "seconds": {}}
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split(" |")[0] for line in said] == ["epoch 1/1"]
    assert rows[-1]["clusters"] > 0
    assert "mAP" not in rows[-1]
    assert "ari" not in rows[-1]


def test_training_as_a_call_is_training_by_command(people: Path, tmp_path: Path, capsys) -> None:
    import reid_fast
    from reid_fast import train as call

    assert call is reid_fast.train is sys.modules["reid_fast.train"]
    shared = {**SMALL, "method": "cc", "iters": 2, "epochs": 1, "amp": True, "data_dir": people}
    folders = call(**shared, cam=False, logs_dir=tmp_path / "call"), tmp_path / "command"
    train([*argv(**shared, logs_dir=folders[1]), "--no-cam"])
    called, commanded = (json.loads((folder / "config.json").read_text())["config"] for folder in folders)
    assert called == commanded | {"logs_dir": str(tmp_path / "call")}
    assert called["cam"] is False
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1
    for wrong, sentence in {"epoch": "no setting: did you mean --epochs?", "epochs": "invalid literal"}.items():
        with pytest.raises(UserError, match=re.escape(sentence)):
            call(**{wrong: "many"})


@pytest.mark.parametrize("computes", [True, False])
def test_mixed_precision_is_left_where_it_is_emulated_and_that_is_said(people, tmp_path, capsys, monkeypatch, computes):
    monkeypatch.setattr("torch.cpu._is_avx2_supported", lambda: True)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: computes)
    short = {"amp": True, "iters": 1, "epochs": 1, "data_dir": people, "logs_dir": tmp_path}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # see conftest.py
    train(argv(**TINY, **short))
    said = capsys.readouterr().out
    assert ("is faster in float32" in said) == (not computes)
    assert ("torch.bfloat16 ->" in said) == computes
    assert math.isfinite(rows_of(tmp_path)[1]["loss"])


def test_an_epoch_whose_clusters_do_not_fill_a_batch_goes_on(people, tmp_path, capsys):
    flags = [*RUN, "--data-dir", str(people), "--epochs", "1", "-b", "256", "--bn-group", "64"]
    train([*flags, "--logs-dir", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert said.count("each, which do not fill a batch of 256: it has more of each") == 1
    assert math.isfinite(rows_of(tmp_path / "run")[1]["loss"])
