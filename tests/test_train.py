"""The driver: runs end to end, is killed and resumed, and answers bad input with one sentence."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import argv
from PIL import Image

from reid_fast.data.images import dali
from reid_fast.data.synthetic.draw import synthetic_folder
from reid_fast.evaluate import main as evaluate
from reid_fast.train import main as train

ROOT = Path(__file__).parents[1]
TINY = argv(
    method="cc",
    recipe="small",
    height=32,
    width=16,
    batch_size=16,
    iters=8,
    epochs=2,
    k1=8,
    k2=3,
    device="cpu",
    dataset="market1501",
    amp=True,
)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set with the layout and the camera count of Market-1501."""
    return synthetic_folder(tmp_path_factory.mktemp("people"), train_ids=12, test_ids=4)


@pytest.fixture
def copied(people: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    for path in people.rglob("*.jpg"):
        target = tmp_path / "data" / path.relative_to(people)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(path)
    return tmp_path / "data"


def replace(path: Path, content: bytes) -> None:
    """Write a file anew: writing into a hard link would spoil the original."""
    path.unlink()
    path.write_bytes(content)


def refused(capsys: pytest.CaptureFixture[str], run, *argv: object) -> str:
    """Run a command line that must end in exit code 2, and return its sentence."""
    with pytest.raises(SystemExit) as stop:
        run([str(arg) for arg in argv])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "Traceback" not in lines[0]
    return lines[0]


def first_train_image(folder: Path) -> Path:
    return min((folder / "bounding_box_train").iterdir())


def test_a_run_leaves_what_the_run_folder_promises(people: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    train([*TINY, "--data-dir", str(people), "--logs-dir", str(folder), "--eval-step", "1", "--tensorboard"])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert 0 < row["mAP"] <= 1
        assert row["rank1"] <= row["rank5"] <= row["rank10"]
        assert "evaluate" in row["seconds"]
    stages = {"extract", "knn", "jaccard", "dbscan", "memory", "train", "evaluate"}
    keys = {"clusters", "outliers", "loss", "lr", "nmi", "ari", "images_per_second", "peak_memory_mb"}
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

    evaluate([str(folder), "-d", "market1501", "--data-dir", str(people), "--amp", "--device", "cpu"])
    scores = json.loads((folder / "evaluate-market1501.json").read_text())
    assert scores["mAP"] == rows[-1]["mAP"]
    assert scores["rank1"] == rows[-1]["rank1"]


def test_a_run_is_repeatable(people: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train([*TINY, "--data-dir", str(people), "--logs-dir", str(tmp_path / name), "--epochs", "1"])
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


@pytest.mark.parametrize("cache", ["0", "1"])
def test_each_picture_is_decoded_once_where_the_cache_holds_it(
    people: Path, tmp_path: Path, monkeypatch, capsys, cache: str
) -> None:
    decoded: Counter[Path] = Counter()
    read = dali._read
    monkeypatch.setattr(dali, "_read", lambda path: decoded.update([path]) or read(path))
    train([*TINY, "--data-dir", str(people), "--logs-dir", str(tmp_path / "run"), "--cache", cache])
    counts = {decoded[path] for path in (people / "bounding_box_train").iterdir()}
    line = "pictures are decoded at every use"
    if cache == "0":
        assert min(counts) >= 2  # the features of both epochs
        assert line in capsys.readouterr().out
    else:
        assert counts == {1}
        assert line not in capsys.readouterr().out


def test_decoded_once_or_at_every_use_a_run_ends_with_the_same_bits(people: Path, tmp_path: Path) -> None:
    for cache in ("0", "6"):
        train([*TINY, "--data-dir", str(people), "--logs-dir", str(tmp_path / cache), "--cache", cache])
    streamed, held = (
        [json.loads(line) for line in (tmp_path / cache / "metrics.jsonl").open()] for cache in ("0", "6")
    )
    measured = {"seconds", "images_per_second", "peak_memory_mb"}
    for one, other in zip(streamed, held, strict=True):
        assert {k: v for k, v in one.items() if k not in measured} == {
            k: v for k, v in other.items() if k not in measured
        }
    assert (tmp_path / "0/model.safetensors").read_bytes() == (tmp_path / "6/model.safetensors").read_bytes()


def test_killed_at_a_random_step_and_resumed_a_run_ends_with_the_same_bits(people: Path, tmp_path: Path) -> None:
    flags = [*TINY, "--data-dir", str(people), "--iters", "40", "--save-steps", "3", "--update", "hard"]
    command = [sys.executable, "-m", "reid_fast.train", *flags, "--resume", "--logs-dir"]

    def start(folder: str, *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, str(tmp_path / folder), *more], cwd=ROOT, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    chance = random.Random()  # another step each time: whichever fails is a bug
    kills = 0
    for _ in range(2):
        process = start("killed", "--cache", "0")  # the pictures are the same, whatever makes them
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
    flags = [*TINY, "--data-dir", str(people)]
    train([*flags, "--logs-dir", str(tmp_path / "two")])
    train([*flags, "--logs-dir", str(tmp_path / "one"), "--epochs", "1"])
    train([*flags, "--logs-dir", str(tmp_path / "one"), "--resume"])
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_the_run_folder_is_numbered_when_none_is_named(people: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [*TINY, "--data-dir", str(people), "--epochs", "1", "--iters", "2"]
    train(flags)
    train(flags)
    train([*flags, "--resume"])
    assert sorted(path.name for path in Path("logs").iterdir()) == ["cc-market1501-001", "cc-market1501-002"]


def test_unlabelled_crops_train_without_evaluation(people: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    crops = people / "bounding_box_train"
    train(
        [
            *TINY,
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
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["clusters"] > 0
    assert "mAP" not in rows[-1]
    assert "ari" not in rows[-1]


def test_show_config_names_the_origin_of_each_setting(capsys) -> None:
    train(["--recipe", "small", "--eps", "0.55", "--show-config"])
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "flag" in shown["eps"]
    assert "recipe small" in shown["arch"]
    assert "method cc" in shown["temp"]
    assert "default" in shown["k2"]


def test_the_synthetic_set_is_trained_with_the_small_recipe(capsys) -> None:
    shown = []
    for flags in (["-d", "synthetic"], ["-d", "market1501", "--recipe", "small"]):
        train(["--method", "ice", *flags, "--show-config"])
        lines = capsys.readouterr().out.splitlines()
        shown.append([line for line in lines if line.split()[0] not in ("dataset", "recipe")])
    assert shown[0] == shown[1]
    assert any("ice with small" in line for line in shown[0])


def test_a_missing_folder(capsys, tmp_path: Path) -> None:
    assert "nowhere" in refused(capsys, train, *TINY, "--data-dir", tmp_path / "nowhere")


def test_a_folder_that_is_not_the_data_set(capsys, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    assert "Market-1501" in refused(capsys, train, *TINY, "--data-dir", tmp_path)


def test_no_data_folder_given(capsys) -> None:
    assert "--data-dir" in refused(capsys, train, *TINY)


@pytest.mark.parametrize("spoil", ["truncated", "empty", "png", "garbage inside"])
def test_an_unusable_image_is_named_or_left_out(capsys, copied: Path, tmp_path: Path, spoil: str) -> None:
    path = first_train_image(copied)
    if spoil == "png":
        picture = Image.open(path)
        path.unlink()
        picture.save(path, format="PNG")
    else:
        data = path.read_bytes()
        middle = len(data) // 3
        noise = np.random.default_rng(0).bytes(400)
        replace(
            path,
            {"truncated": data[:middle], "empty": b"", "garbage inside": data[:300] + noise + data[700:]}[spoil],
        )
    flags = [*TINY, "--data-dir", copied, "--logs-dir", tmp_path / "run", "--epochs", "1", "--iters", "2"]
    assert path.name in refused(capsys, train, *flags)
    train([*map(str, flags), "--skip-bad-images", "--resume"])
    assert "left out 1 unreadable images" in capsys.readouterr().out


def test_a_set_with_one_camera_is_refused_before_training(capsys, copied: Path, tmp_path: Path) -> None:
    for part in ("query", "bounding_box_test"):
        for path in (copied / part).iterdir():
            if "_c1" not in path.name:
                path.unlink()
    text = refused(capsys, train, *TINY, "--data-dir", copied, "--logs-dir", tmp_path / "run")
    assert "camera" in text
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(capsys, monkeypatch, people: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = refused(capsys, train, *TINY, "--data-dir", people, "--logs-dir", tmp_path / "run")
    assert "one process" in text
    assert not (tmp_path / "run").exists()


def test_an_epoch_without_clusters(capsys, people: Path, tmp_path: Path) -> None:
    flags = [*TINY, "--data-dir", people, "--logs-dir", tmp_path / "run", "--min-samples", "90"]
    assert "epoch 1 found no cluster" in refused(capsys, train, *flags)


def test_an_epoch_with_too_few_clusters(capsys, people: Path, tmp_path: Path) -> None:
    flags = [*TINY, "--data-dir", people, "--logs-dir", tmp_path / "run", "-b", "512"]
    assert "do not fill a batch of 512" in refused(capsys, train, *flags)


def test_checkpoints_that_cannot_be_continued(capsys, people: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = [*TINY, "--data-dir", people, "--logs-dir", folder, "--epochs", "1", "--iters", "2"]
    train([str(flag) for flag in flags])
    good = (folder / "last.pt").read_bytes()
    assert "already holds a run" in refused(capsys, train, *flags)
    assert "--arch resnet18_half" in refused(capsys, train, *flags, "--resume", "--arch", "resnet18")
    for content in (good[: len(good) // 2], b"not a checkpoint", b""):
        (folder / "last.pt").write_bytes(content)
        assert "last.pt is damaged or not a checkpoint" in refused(capsys, train, *flags, "--resume")
        assert (folder / "last.pt").read_bytes() == content
    (folder / "last.pt").write_bytes(good)
    state = torch.load(folder / "last.pt", weights_only=True)
    del state["config"]["k2"]  # as if the setting had come later
    torch.save(state, folder / "last.pt")
    assert "another version" in refused(capsys, train, *flags, "--resume")
    torch.save({"weights": torch.zeros(3)}, folder / "last.pt")
    assert "not a checkpoint" in refused(capsys, train, *flags, "--resume")

    score = [folder, "-d", "market1501", "--data-dir", people]
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(description | {"arch": "resnet34"}))
    assert "do not fit each other" in refused(capsys, evaluate, *score)
    (folder / "model.safetensors").write_bytes(b"cut")
    assert "damaged" in refused(capsys, evaluate, *score)
    (folder / "model.safetensors").unlink()
    assert "holds no finished epoch" in refused(capsys, evaluate, *score)
    assert "no run folder" in refused(capsys, evaluate, tmp_path / "other", *score[1:])


def test_broken_weights_give_features_that_are_refused(capsys, people: Path, tmp_path: Path) -> None:
    from reid_fast.models.encoder import Encoder

    tensors = Encoder("resnet18_half").backbone.state_dict()
    tensors["bn1.weight"][0] = torch.nan
    torch.save(tensors, tmp_path / "nan.pth")
    flags = [*TINY, "--data-dir", people, "--logs-dir", tmp_path / "run", "--weights", tmp_path / "nan.pth"]
    text = refused(capsys, train, *flags)
    assert "is not finite" in text
    assert ".jpg" in text


def test_a_loss_that_is_not_finite_stops_the_run_with_its_batch_saved(capsys, people: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = [*TINY, "--data-dir", people, "--logs-dir", folder, "--lr", "1e30", "--save-steps", "1"]
    text = refused(capsys, train, *flags)
    assert "nonfinite.json" in text
    saved = json.loads((folder / "nonfinite.json").read_text())
    assert len(saved["batch"]) == 16
    state = torch.load(folder / "last.pt", weights_only=True)
    assert state["at"]["step"] <= saved["step"]


def test_a_full_disk_keeps_the_last_checkpoint(capsys, people: Path, tmp_path: Path, monkeypatch) -> None:
    from reid_fast import run_folder

    folder = tmp_path / "run"
    flags = [*TINY, "--data-dir", people, "--logs-dir", folder]
    train([*map(str, flags), "--epochs", "1"])
    before = (folder / "last.pt").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.torch, "save", full)
    assert "No space left" in refused(capsys, train, *flags, "--resume")
    assert (folder / "last.pt").read_bytes() == before
    assert not list(folder.glob(".*.part"))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--method", "xyz"], "--method xyz is not known"),
        (["-d", "xyz"], "--dataset xyz is not known"),
        (["--recipe", "xyz"], "--recipe xyz is not known"),
        (["-b", "15"], "not a multiple"),
        (["-b", "72", "--bn-group", "64"], "not a multiple of --bn-group"),
        (["--iters", "-1"], "--iters must be at least 0"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--eps", "1.5"], "--eps must lie between"),
        (["--k2", "40"], "--k2 40"),
        (["--momentum", "1"], "--momentum"),
        (["--lr", "-1"], "--lr"),
        (["--cache", "-0.5"], "--cache must be at least 0, not -0.5"),
        (["--cache", "nan"], "--cache must be at least 0, not nan"),
        (["--arch", "vgg"], "--arch vgg"),
        (["--device", "tpu"], "--device tpu"),
        (["--weights", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_settings_out_of_range(capsys, people: Path, tmp_path: Path, flags: list[str], text: str) -> None:
    assert text in refused(capsys, train, *TINY, "--data-dir", people, "--logs-dir", tmp_path / "run", *flags)
