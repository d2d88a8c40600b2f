"""A data set that changes while a run goes on or between its start and its resumption: the run says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from inputs import TINY, argv, refused

from reid_fast import epoch, run_folder
from reid_fast.train import main as train

RUN = argv(**TINY | {"arch": "tiny"}, method="cc", iters=2, epochs=2, save_steps=1, workers=1, threads=1)
pytestmark = pytest.mark.usefixtures("tiny_arch")


@pytest.fixture
def images(market_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(market_folder, tmp_path / "data"))


@pytest.fixture(scope="module")
def whole(market_folder: Path, tmp_path_factory) -> Path:
    """A run whose images stay as they are."""
    folder = tmp_path_factory.mktemp("whole")
    train([*RUN, "--data-dir", str(market_folder), "--logs-dir", str(folder)])
    return folder


SPOILT = {
    "vanishes": lambda path: path.unlink(),
    "is cut short": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "is emptied": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("what", SPOILT)
def test_an_image_that_is_spoilt_during_a_run_is_named_and_the_mended_run_goes_on(
    capsys, whole: Path, images: Path, tmp_path: Path, monkeypatch, what: str
) -> None:
    flags = [*RUN, "--data-dir", images, "--cache", "0", "--logs-dir", tmp_path / "run"]
    path, step = min((images / "bounding_box_train").iterdir()), epoch.train_step
    good = path.read_bytes()

    def train_step(run, batch):
        if batch.step == 1:
            SPOILT[what](path)
        return step(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(epoch, "train_step", train_step)
        assert path.name in refused(capsys, train, *flags)
    path.write_bytes(good)
    train([*map(str, flags), "--resume"])
    mended = tmp_path / "run/model.safetensors"
    assert mended.read_bytes() == (whole / "model.safetensors").read_bytes()


def test_images_that_are_others_by_the_same_names_are_said_once(capsys, images: Path, tmp_path: Path) -> None:
    flags = [*RUN, "--data-dir", str(images), "--logs-dir", str(tmp_path / "run"), "--resume"]
    train([*flags, "--epochs", "1"])
    first, *_, last = sorted((images / "bounding_box_train").iterdir())
    shutil.copy(last, first)
    capsys.readouterr()
    train([*flags, "--epochs", "2"])
    said = f"1 training images have other sizes in bytes than when the run was saved, the first one {first}"
    assert said in " ".join(capsys.readouterr().out.split())
    assert run_folder.load(tmp_path / "run")["at"]["epoch"] == 2
    train([*flags, "--epochs", "2"])
    assert "other sizes" not in capsys.readouterr().out
