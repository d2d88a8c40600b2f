"""Bad input ends in one sentence and exit code 2, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import TINY, argv, refused
from PIL import Image

from reid_fast.train import main as train

RUN = argv(**TINY, method="cc", iters=8, epochs=2, amp=True)


def replace(path: Path, content: bytes) -> None:
    """Write a file anew: writing into a hard link would spoil the original."""
    path.unlink()
    path.write_bytes(content)


def first_train_image(folder: Path) -> Path:
    return min((folder / "bounding_box_train").iterdir())


def test_a_missing_folder(capsys, tmp_path: Path) -> None:
    assert "nowhere" in refused(capsys, train, *RUN, "--data-dir", tmp_path / "nowhere")


def test_a_folder_that_is_not_the_data_set(capsys, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    assert "Market-1501" in refused(capsys, train, *RUN, "--data-dir", tmp_path)


def test_no_data_folder_given(capsys) -> None:
    assert "--data-dir" in refused(capsys, train, *RUN)


@pytest.mark.parametrize("spoil", ["truncated", "empty", "png", "garbage inside"])
def test_an_unusable_image_is_named_or_left_out(capsys, copied: Path, tmp_path: Path, spoil: str) -> None:
    path = first_train_image(copied)
    if spoil == "png":
        image = Image.open(path)
        path.unlink()
        image.save(path, format="PNG")
    else:
        data = path.read_bytes()
        middle = len(data) // 3
        noise = np.random.default_rng(0).bytes(400)
        replace(
            path,
            {"truncated": data[:middle], "empty": b"", "garbage inside": data[:300] + noise + data[700:]}[spoil],
        )
    flags = [*RUN, "--data-dir", copied, "--logs-dir", tmp_path / "run", "--epochs", "1", "--iters", "2"]
    assert path.name in refused(capsys, train, *flags)
    train([*map(str, flags), "--skip-bad-images", "--resume"])
    assert "left out 1 unreadable images" in capsys.readouterr().out


def test_a_set_with_one_camera_is_refused_before_training(capsys, copied: Path, tmp_path: Path) -> None:
    for part in ("query", "bounding_box_test"):
        for path in (copied / part).iterdir():
            if "_c1" not in path.name:
                path.unlink()
    text = refused(capsys, train, *RUN, "--data-dir", copied, "--logs-dir", tmp_path / "run")
    assert "camera" in text
    assert not (tmp_path / "run").exists()


def test_half_of_torchruns_environment_is_refused(capsys, monkeypatch, people: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    text = refused(capsys, train, *RUN, "--data-dir", people, "--logs-dir", tmp_path / "run")
    assert "LOCAL_RANK=None" in text
    assert "torchrun" in text
    assert not (tmp_path / "run").exists()


def test_an_epoch_without_clusters(capsys, people: Path, tmp_path: Path) -> None:
    flags = [*RUN, "--data-dir", people, "--logs-dir", tmp_path / "run", "--min-samples", "90"]
    assert "epoch 1 found no cluster" in refused(capsys, train, *flags)


def test_broken_weights_give_features_that_are_refused(capsys, people: Path, tmp_path: Path) -> None:
    from reid_fast.models.encoder import Encoder

    tensors = Encoder("resnet18_half").backbone.state_dict()
    tensors["bn1.weight"][:] = 3e38  # finite, but no sum of its products is
    torch.save(tensors, tmp_path / "broken.pth")
    flags = [*RUN, "--data-dir", people, "--logs-dir", tmp_path / "run", "--weights", tmp_path / "broken.pth"]
    text = refused(capsys, train, *flags)
    assert "is not finite" in text
    assert ".jpg" in text
