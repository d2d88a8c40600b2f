"""`--dry-run`: every method's stages on a part of the images, estimates by hand, and nothing that stays."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import TINY, argv, refused

from reid_fast.command_line import parse
from reid_fast.data.images import Held
from reid_fast.data.sets import ImageSet, ReidSet, TrainingSet
from reid_fast.methods import method_names
from reid_fast.rehearsal import Rehearsed, part_of, rehearse
from reid_fast.train import main as train

CPU = torch.device("cpu")
SMALL = TINY | {"arch": "tiny", "threads": 1, "workers": 1, "epochs": 3, "num_instances": 4}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch) -> Path:
    """Where caches, temporary files and runs would lie."""
    for name in ("cache", "temporary", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("tiny_arch")
@pytest.mark.parametrize("method", method_names())
def test_every_method_is_tried_and_leaves_nothing(method: str, people: Path, empty: Path, capsys) -> None:
    flags = argv(**SMALL, method=method.replace("_", "-"), data_dir=people, cache_dir=empty / "cache")
    train([*flags, "--dry-run", "--tensorboard", "--save-best"])
    shown = capsys.readouterr().out
    for stage in ("decode", "extract", "knn", "jaccard", "dbscan", "memory", "train", "evaluate", "all"):
        assert f"│ {stage} " in shown
    assert "nothing is left behind" in shown
    assert not left(empty)


@pytest.mark.usefixtures("tiny_arch")
def test_a_source_and_no_test_set(people: Path, empty: Path) -> None:
    flags = argv(**SMALL | {"dataset": "folder"}, method="cc", source="market1501", source_dir=people, bn_group=8)
    config, _ = parse([*flags, "--data-dir", str(people / "query"), "--no-cam"])
    found = rehearse(config)
    assert found.part.source is not None
    assert found.part.source_classes >= config.batch_size // config.num_instances
    assert found.scored == 0
    assert "evaluate" not in found.stages()
    assert all(seconds >= 0 for seconds in found.stages().values())
    assert not left(empty)


def test_bad_input_is_found_and_leaves_nothing(people: Path, empty: Path, capsys) -> None:
    flags = [*argv(**TINY, method="cc", data_dir=people), "--dry-run"]
    assert "nowhere.pth" in refused(capsys, train, *flags, "--weights", "nowhere.pth")
    assert not left(empty)


def images(count: int, identities: int, cameras: int = 3) -> ImageSet:
    index = np.arange(count)
    return ImageSet([Path(f"{i:06d}.jpg") for i in index], index // (count // identities), index % cameras)


def test_the_estimates_by_hand() -> None:
    config, _ = parse(argv(method="cc", epochs=10, iters=50, eval_step=4, batch_size=16, height=20, width=10))
    train_images, query, gallery = images(8000, 100), images(300, 50), images(700, 50)
    whole = TrainingSet(train_images)
    data = ReidSet("market1501", train_images, query, gallery, "", Path())
    seconds = {"extract": 2.0, "knn": 0.5, "jaccard": 0.25, "train": 0.3, "evaluate": 4.0}
    found = Rehearsed(
        config,
        data,
        whole,
        TrainingSet(images(400, 20)),
        Held.judge(8000, config.size, 6.0, CPU),
        seconds,
        decoding=0.001,
        scored=100,
        searched=4000,
    )
    assert found.stages() == pytest.approx(
        {
            "decode": 8 + 1,  # each image once
            "extract": 10 * 2 * 20,
            "knn": 10 * 0.5 * 4,  # twice as many rows
            "jaccard": 10 * 0.25 * 20,
            "train": 10 * 50 * 0.15,
            "evaluate": 4 * 4 * 10,  # epochs 0, 4, 8 and 10
        }
    )
    streamed = replace(found, held=Held.judge(8000, config.size, 0.0, CPU), config=replace(config, iters=0))
    assert streamed.stages()["decode"] == 0
    assert streamed.stages()["train"] == pytest.approx(10 * 500 * 0.15)


def test_the_part_is_scorable_and_small() -> None:
    config, _ = parse(argv(method="cc", batch_size=16, num_instances=4))
    query = ImageSet([Path(f"q{i}.jpg") for i in range(60)], np.arange(60), np.zeros(60, int))
    shots = [Path(f"g{i}.jpg") for i in range(600)]
    # The first forty people have been seen by one camera alone.
    gallery = ImageSet(shots, np.arange(600) // 10, np.where(np.arange(600) < 400, 0, np.arange(600) % 2))
    train_images = images(8000, 100)
    data, part = part_of(
        ReidSet("market1501", train_images, query, gallery, "", Path()),
        TrainingSet(train_images, images(900, 3)),
        config,
    )
    assert data.query is not None
    assert data.gallery is not None
    assert data.query.pids.tolist() == list(range(40, 60))
    assert set(data.gallery.pids.tolist()) == set(range(40, 60))
    assert len(part.target) == 32
    assert part.source_classes == 3  # all there are: the batch will say that they are too few
