"""The run folder: its number, what may be continued, full disks, broken files."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from inputs import TINY, argv, refused

from reid_fast import run as parts
from reid_fast import run_folder
from reid_fast.command_line import parse
from reid_fast.evaluate import main as evaluate
from reid_fast.methods.cc import ClusterContrast
from reid_fast.train import main as train

RUN = argv(**TINY, method="cc", iters=8, epochs=2, amp=True)


def test_the_run_folder_is_numbered_when_none_is_named(people: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [*RUN, "--data-dir", str(people), "--epochs", "1", "--iters", "2"]
    train(flags)
    train(flags)
    train([*flags, "--resume"])
    assert sorted(path.name for path in Path("logs").iterdir()) == ["cc-market1501-001", "cc-market1501-002"]


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed, start = Path.iterdir, threading.Barrier(4)

    def together(self):
        found = list(listed(self))
        start.wait(10)  # none has made its folder yet
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", together)
    with ThreadPoolExecutor(4) as pool:
        chosen = list(pool.map(run_folder.choose, [parse(RUN)[0]] * 4))
    assert {path.name for path in chosen} == {f"cc-market1501-{number:03d}" for number in range(1, 5)}
    assert all(path.is_dir() for path in chosen)


def test_a_second_run_is_kept_out_of_the_folder_while_the_first_one_lives(
    capsys, market_folder: Path, tmp_path: Path
) -> None:
    flags = [*RUN, "--data-dir", market_folder, "--logs-dir", tmp_path]
    with run_folder.held(tmp_path, resume=False):
        for more in ([], ["--resume"]):
            assert f"another run goes on in {tmp_path}: wait" in refused(capsys, train, *flags, *more)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    with run_folder.held(tmp_path, resume=False):  # it has ended
        pass


def test_checkpoints_that_cannot_be_continued(capsys, people: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = [*RUN, "--data-dir", people, "--logs-dir", folder, "--epochs", "1", "--iters", "2"]
    train([str(flag) for flag in flags])
    good = (folder / "last.pt").read_bytes()
    assert "already holds a run" in refused(capsys, train, *flags)
    assert "--arch resnet18_half" in refused(capsys, train, *flags, "--resume", "--arch", "resnet18")
    assert "--method cc (now ice)" in refused(capsys, train, *flags, "--resume", "--method", "ice")
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


def test_a_run_goes_on_with_its_own_images_only(capsys, copied: Path, tmp_path: Path) -> None:
    flags = [*RUN, "--data-dir", copied, "--logs-dir", tmp_path / "run", "--iters", "2"]
    train([*map(str, flags), "--epochs", "1"])
    moved = copied.rename(tmp_path / "moved")
    flags[flags.index(copied)] = moved
    images = sorted((moved / "bounding_box_train").iterdir())
    gone = images[5].rename(tmp_path / images[5].name)
    count = len(images)
    found = refused(capsys, train, *flags, "--resume")
    assert f"has {count - 1} training images, and {count} when the run in" in found
    other = gone.rename(images[5].with_stem(images[5].stem + "0"))
    assert "has training images of other names" in refused(capsys, train, *flags, "--resume")
    other.rename(images[5])
    train([*map(str, flags), "--resume"])
    assert run_folder.load(tmp_path / "run")["at"]["epoch"] == 2


def test_a_run_goes_on_where_float16_needs_a_scaler(people: Path, tmp_path: Path, monkeypatch) -> None:
    flags = [*RUN, "--data-dir", str(people), "--logs-dir", str(tmp_path / "run"), "--epochs", "1", "--iters", "2"]
    train(flags)
    assert not run_folder.load(tmp_path / "run")["scaler"]
    monkeypatch.setattr(parts, "amp_dtype", lambda *_: torch.float16)
    assert parts.build(parse([*flags, "--resume"])[0]).scaler.is_enabled()


def test_a_full_disk_keeps_the_last_checkpoint(capsys, people: Path, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "run"
    flags = [*RUN, "--data-dir", people, "--logs-dir", folder]
    train([*map(str, flags), "--epochs", "1"])
    before = (folder / "last.pt").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.torch, "save", full)
    assert "No space left" in refused(capsys, train, *flags, "--resume")
    assert (folder / "last.pt").read_bytes() == before
    assert not list(folder.glob(".*.part"))


@pytest.mark.parametrize("save_steps", ["2", "3"])  # found at the next checkpoint, and at the end of the epoch
def test_a_disk_that_fills_within_an_epoch(capsys, people: Path, tmp_path: Path, monkeypatch, save_steps: str) -> None:
    folder = tmp_path / "run"
    flags = [*RUN, "--data-dir", people, "--logs-dir", folder, "--iters", "5", "--save-steps", save_steps]
    write, written = torch.save, []

    def fills(state, file) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(state["at"]["step"])
        write(state, file)

    monkeypatch.setattr(run_folder.torch, "save", fills)
    assert "No space left" in refused(capsys, train, *flags)
    assert run_folder.load(folder)["at"]["step"] == int(save_steps)
    assert not list(folder.glob(".*.part"))


def test_ctrl_c_while_a_checkpoint_is_written(capsys, people: Path, tmp_path: Path, monkeypatch) -> None:
    folder, begun = tmp_path / "run", threading.Event()
    flags = [*RUN, "--data-dir", people, "--logs-dir", folder, "--save-steps", "3"]
    write = torch.save

    def slowly(state, file) -> None:
        begun.set()
        time.sleep(0.1)
        write(state, file)

    def finish_step(self, batch) -> None:
        if batch.step == 3:
            assert begun.wait(10)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.torch, "save", slowly)
        patch.setattr(ClusterContrast, "finish_step", finish_step)
        with pytest.raises(SystemExit) as stop:
            train([str(flag) for flag in flags])
    assert stop.value.code == 130
    assert "--resume" in capsys.readouterr().err
    assert run_folder.load(folder)["at"]["step"] == 3
    assert not list(folder.glob(".*.part"))


def test_a_loss_that_is_not_finite_stops_the_run_with_its_batch_saved(capsys, people: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = [*RUN, "--data-dir", people, "--logs-dir", folder, "--lr", "1e6", "--save-steps", "1"]
    text = refused(capsys, train, *flags)
    assert "nonfinite.json" in text
    saved = json.loads((folder / "nonfinite.json").read_text())
    assert len(saved["batch"]) == 16
    state = torch.load(folder / "last.pt", weights_only=True)
    assert state["at"]["step"] <= saved["step"]
