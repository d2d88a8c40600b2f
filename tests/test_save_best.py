"""`--save-best` and `--patience`: the epoch is chosen by the silhouette of its clusters, whatever stops the run."""

from __future__ import annotations

import json
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from inputs import TINY, argv, rows_of

from reid_fast import epoch
from reid_fast import train as driver
from reid_fast.evaluate import main as evaluate
from reid_fast.methods.cc import ClusterContrast

RUN = argv(**TINY | {"arch": "tiny"}, method="cc", iters=6, epochs=3, eval_step=1, threads=1)
pytestmark = pytest.mark.usefixtures("tiny_arch")
MEASURED = {"seconds", "images_per_second", "peak_memory_mb"}


def compared(folder: Path) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows_of(folder)]


@pytest.fixture
def silhouettes(monkeypatch):
    """Those that the label stages find, in turn; then the last one for ever."""

    def found(*values: float) -> None:
        turn = chain(values, repeat(values[-1]))
        monkeypatch.setattr(epoch, "silhouette", lambda features, labels: next(turn))

    return found


@pytest.fixture(scope="module")
def whole(people: Path, tmp_path_factory, tiny_arch: None) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    driver.main([*RUN, "--data-dir", str(people), "--logs-dir", str(folder), "--save-best", "--resume"])
    return folder


def test_the_encoder_of_the_largest_silhouette_is_kept_and_nothing_else_changes(
    whole: Path, people: Path, tmp_path: Path
) -> None:
    driver.main([*RUN, "--data-dir", str(people), "--logs-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run/best").exists()
    assert compared(tmp_path / "run") == compared(whole)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    rows, kept = rows_of(whole), json.loads((whole / "best/model.json").read_text())
    judged = {row["epoch"] - 1: row["silhouette"] for row in rows if row["epoch"] > 1}  # by labels of the epoch after
    best = max(judged, key=lambda epoch: judged[epoch])
    if kept["epoch"] == 3:  # which no row judges
        assert kept["silhouette"] > judged[best]
        assert (whole / "best/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    else:
        assert (kept["epoch"], kept["silhouette"]) == (best, judged[best])
    evaluate([str(whole / "best"), "-d", "market1501", "--data-dir", str(people), "--device", "cpu"])
    scores = json.loads((whole / "best/evaluate-market1501.json").read_text())
    assert scores["mAP"] == rows[kept["epoch"]]["mAP"]


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.9, 0.1, 0.3, 0.2], 2),  # the untrained network takes no part
        ([0.0, 0.1, 0.2, 0.3], 3),  # the last epoch, judged by labels that nothing is trained with
        ([0.0, 0.2, 0.2, 0.2], 1),  # of equal ones the first
    ],
)
def test_which_epoch_is_kept(people: Path, tmp_path: Path, capsys, silhouettes, values: list[float], best: int) -> None:
    silhouettes(*values)
    driver.main([*RUN, "--data-dir", str(people), "--logs-dir", str(tmp_path), "--save-best", "--iters", "2"])
    kept = json.loads((tmp_path / "best/model.json").read_text())
    assert (kept["epoch"], kept["silhouette"]) == (best, values[best])
    assert [row.get("silhouette") for row in rows_of(tmp_path)] == [None, *values[:3]]
    shown = capsys.readouterr().out
    assert f"best silhouette (epoch {best})" in " ".join(shown.replace("│", " ").split())


def test_a_run_ends_when_its_silhouette_has_not_risen_for_long_enough(
    people: Path, tmp_path: Path, capsys, silhouettes
) -> None:
    silhouettes(0.0, 0.1, 0.5, 0.4, 0.5)
    flags = [
        *RUN,
        "--data-dir",
        str(people),
        "--logs-dir",
        str(tmp_path),
        "--epochs",
        "20",
        "--eval-step",
        "3",
        "--iters",
        "2",
    ]
    driver.main([*flags, "--patience", "2"])
    assert [row["epoch"] for row in rows_of(tmp_path)] == [0, 1, 2, 3, 4]
    assert json.loads((tmp_path / "best/model.json").read_text())["epoch"] == 2
    shown = capsys.readouterr().out
    assert "the silhouette has been largest behind epoch 2, 0.500: after 2 epochs --patience ends the run" in shown
    assert "last epoch evaluated (3)" in " ".join(shown.replace("│", " ").split())
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (state["at"]["best_epoch"], state["at"]["best_silhouette"]) == (2, 0.5)

    silhouettes(0.4)
    driver.main([*flags, "--patience", "3", "--resume", "--epochs", "6"])
    assert [row["epoch"] for row in rows_of(tmp_path)] == [0, 1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "best/model.json").read_text())["epoch"] == 2


def test_interrupted_and_resumed_it_is_the_same_encoder(whole: Path, people: Path, tmp_path: Path, monkeypatch) -> None:
    flags = [*RUN, "--data-dir", str(people), "--logs-dir", str(tmp_path), "--save-best", "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(ClusterContrast, "finish_step", lambda self, batch: interrupt(batch.step))
        with pytest.raises(SystemExit) as stop:
            driver.main([*flags, "--save-steps", "2"])
    assert stop.value.code == 130
    assert torch.load(tmp_path / "last.pt", weights_only=True)["at"]["step"] == 2
    driver.main(flags)
    assert compared(tmp_path) == compared(whole)
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "best" / name).read_bytes() == (whole / "best" / name).read_bytes()


def interrupt(step: int) -> None:
    if step == 6 * 2 + 3:  # behind a checkpoint of the third epoch, whose labels have judged the second
        raise KeyboardInterrupt


def test_crops_that_nobody_has_labelled(people: Path, tmp_path: Path, capsys) -> None:
    crops = argv(dataset="folder", data_dir=people / "bounding_box_train", logs_dir=tmp_path, epochs=2)
    driver.main([*RUN, *crops, "--no-cam", "--save-best"])
    assert json.loads((tmp_path / "best/model.json").read_text())["epoch"] in (1, 2)
    assert "best silhouette" not in capsys.readouterr().out
