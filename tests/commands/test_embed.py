"""`reid-fast embed`: the features of `evaluate`, in files that others read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import break_files, refused
from safetensors import safe_open

import reid_fast
from reid_fast.__main__ import main

FLAGS = ["--device", "cpu", "--threads", "1"]
NAMES = ["plain.jpg", "two\nlines.jpg", "b\"q'<i>.jpg", "\u202egnp.jpg", os.fsdecode(b"\xff\xfe.jpg")]


@pytest.fixture
def images(market_folder: Path, tmp_path: Path) -> Path:
    """Images whose names are not those of polite people."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, source in zip(NAMES, sorted((market_folder / "query").iterdir()), strict=False):
        shutil.copy(source, folder / name)
    return folder


def expected(trained: Path, folder: Path) -> tuple[list[str], torch.Tensor]:
    paths = sorted(folder.iterdir(), key=str)
    return [str(path) for path in paths], reid_fast.load_encoder(trained, device="cpu")(paths)


def test_safetensors_with_any_names(trained: Path, images: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "features.safetensors"
    main(["embed", str(trained), str(images), "-o", str(output), *FLAGS])
    assert f"5 features of 256 numbers written to {output}" in capsys.readouterr().out
    names, features = expected(trained, images)
    with safe_open(output, "pt") as file:
        assert set(file.keys()) == {"features", "names"}
        assert torch.equal(file.get_tensor("features"), features)
        written = bytes(file.get_tensor("names").numpy()).split(b"\0")
        assert [os.fsdecode(name) for name in written] == names
        assert file.metadata()["arch"] == "resnet18_half"
        assert file.metadata()["encoder"] == reid_fast.load_encoder(trained, device="cpu").fingerprint


def test_numpy_with_names_beside_it(trained: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.npy"
    main(["embed", str(trained), str(images), "--output", str(output), *FLAGS])
    names, features = expected(trained, images)
    np.testing.assert_array_equal(np.load(output), features.numpy())
    assert json.loads((tmp_path / "features.json").read_text())["names"] == names
    assert not list(tmp_path.glob(".*.part"))


def test_files_come_in_the_order_that_they_are_named_in(trained: Path, market_folder: Path, tmp_path: Path) -> None:
    first, second, third = sorted(map(str, (market_folder / "query").iterdir()))[:3]
    output = tmp_path / "features.npy"
    main(["embed", str(trained), third, first, second, "-o", str(output), *FLAGS])
    assert json.loads((tmp_path / "features.json").read_text())["names"] == [third, first, second]


def test_bad_images_stop_it_or_are_counted(trained: Path, images: Path, tmp_path: Path, capsys) -> None:
    break_files(images, images / "plain.jpg")
    flags = ["embed", trained, images, "-o", tmp_path / "features.npy", *FLAGS]
    assert "empty.jpg is unusable" in refused(capsys, main, *flags)
    assert not (tmp_path / "features.npy").exists()
    main([*map(str, flags), "--skip-bad-images"])
    assert "left out 5 unreadable images" in capsys.readouterr().out
    assert len(np.load(tmp_path / "features.npy")) == 5


@pytest.mark.parametrize(
    ("run", "image", "output", "sentence"),
    [
        ("trained", "images", "features.txt", "must end in .safetensors or .npy"),
        ("trained", "images", "nowhere/features.npy", "there is no folder"),
        ("nowhere", "images", "features.npy", "there is no run folder"),
        ("trained", "nowhere", "features.npy", "there is no"),
        ("trained", "nowhere.jpg", "features.npy", "there is no image"),
        ("trained", "images", "model.npy", "model.json, where the names would be written, is another file"),
        ("trained", "images", "folder.npy", "is a folder"),
    ],
)
def test_bad_input_is_one_sentence(capsys, trained, images, tmp_path, run, image, output, sentence) -> None:
    folder = trained if run == "trained" else tmp_path / run
    source = images if image == "images" else tmp_path / image
    (tmp_path / "model.json").write_text('{"height": 256}')
    (tmp_path / "folder.npy").mkdir()
    assert sentence in refused(capsys, main, "embed", folder, source, "-o", tmp_path / output, *FLAGS)
    assert not (tmp_path / output).is_file()


def test_names_are_never_beside_features_of_others(capsys, trained, images, tmp_path, monkeypatch) -> None:
    flags = ["embed", str(trained), str(images), "-o", str(tmp_path / "features.npy"), *FLAGS]
    main(flags)
    before = [(tmp_path / name).read_bytes() for name in ("features.npy", "features.json")]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (images / "plain.jpg").rename(images / "another.jpg")
    monkeypatch.setattr(np, "save", full)
    assert "No space left" in refused(capsys, main, *flags)
    assert [(tmp_path / name).read_bytes() for name in ("features.npy", "features.json")] == before
