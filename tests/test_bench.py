"""The benchmark: what it refuses, what it compares before it times, what it shows."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from inputs import refused, sampled
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "bench"))  # last: its modules have plain names

from epoch import Sides, opened  # noqa: E402
from overhead import overhead  # noqa: E402
from page import written  # noqa: E402
from peer import PARTS, REFERENCE, Peer  # noqa: E402
from report import Lap, save_stage, summed_up  # noqa: E402
from retrieval import retrieval  # noqa: E402
from run import main, show  # noqa: E402
from table import pairs  # noqa: E402
from whole import AMP, CPU, SCHEDULES, projection  # noqa: E402

FLAGS = ("--recipe", "small", "--iters", "2", "--batch-size", "8", "--k1", "8", "--k2", "3", "--device", "cpu")
STAGES = {"extraction", "kNN", "kNN and graph", "DBSCAN", "memory part", "full step", "evaluation"}
STAGES |= {"whole epoch", "whole epoch, the engine with --amp"}
PICTURES = {"pictures, decoded once", "pictures, store", "pictures, DALI stream"}


@pytest.fixture
def checkout(tmp_path):
    """A checkout of the published layout, to be spoilt."""
    return Path(shutil.copytree(REFERENCE, tmp_path / "checkout"))


@pytest.fixture(scope="module")
def sides(people):
    """A run on a few people beside the reference."""
    with Peer(REFERENCE) as peer, opened(people, *FLAGS) as run:
        yield Sides(run, peer, 1)


def refuses(capsys, folder, *flags):
    return refused(capsys, main, "--smoke", "--stage", "epoch", "--peer", folder, *flags)


def spoil(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_folder_that_is_missing(capsys, tmp_path):
    assert "nowhere is no folder" in refuses(capsys, tmp_path / "nowhere")


@pytest.mark.parametrize("module", PARTS)
def test_a_checkout_that_lacks_a_file(capsys, checkout, module):
    path = checkout.joinpath("clustercontrast", *module.split("."))
    (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).unlink()
    assert str(path.relative_to(checkout)) in refuses(capsys, checkout)


SPOILT = [
    ("evaluators.py", "import numpy as np", "import nowhere_to_be_found", "nowhere_to_be_found"),
    ("models/cm.py", "class ClusterMemory", "class Memory", "has no ClusterMemory"),
    ("trainers.py", "train_iters: int", "steps: int", "and no train_iters"),
]


@pytest.mark.parametrize(("file", "old", "new", "said"), sampled(SPOILT, SPOILT[-1]))
def test_a_checkout_that_does_not_fit(capsys, checkout, file, old, new, said):
    spoil(checkout / "clustercontrast" / file, old, new)
    assert said in refuses(capsys, checkout)


def test_a_folder_without_a_known_set(capsys, tmp_path):
    assert "holds none of market1501" in refuses(capsys, REFERENCE, "--data-dir", tmp_path)


def test_a_drawing_of_another_kind(capsys, tmp_path):
    assert ".svg nor .png" in refuses(capsys, REFERENCE, "--plot", tmp_path / "drawing.pdf")


def test_both_sides_make_the_same(sides):
    before = torch.Tensor.cuda, torch.utils.data.Sampler.__init__
    apart = sides.compare()
    assert set(apart) == {"features", "jaccard", "loss", "gradient", "memory", "mAP"}
    assert (torch.Tensor.cuda, torch.utils.data.Sampler.__init__) == before


@pytest.mark.parametrize(
    ("operation", "spoilt", "name"),
    [
        ("jaccard_distance", lambda found: found * 1.001, "jaccard"),
        ("contrast", lambda found: (*found[:2], found[2][::-1]), "memory"),
        ("mean_precision", lambda found: np.nan, "mAP"),
    ],
)
def test_sides_that_differ_are_not_timed(monkeypatch, sides, operation, spoilt, name):
    peer = sides.peer

    class Spoilt:
        name = "spoilt one"

        def __call__(self, asked, *arguments):
            found = peer(asked, *arguments)
            return spoilt(found) if asked == operation else found

    monkeypatch.setattr(sides, "peer", Spoilt())
    with pytest.raises(SystemExit, match=f"apart: {name} by"):
        sides.compare()


@pytest.mark.thorough
def test_the_stages_of_an_epoch(sides, tmp_path, capsys):
    rows = sides.rows()
    assert {row["stage"] for row in rows} == STAGES | PICTURES
    for row in rows:
        assert row["ours"]["n"] == 1
        assert row["ours"]["seconds"] > 0
        assert row["stage"] in PICTURES or row["beside"]["seconds"] > 0
    for file in ("drawing.svg", "drawing.png"):
        show(rows, tmp_path / file)
    assert "whole epoch" in capsys.readouterr().out
    words = [text.text for text in ElementTree.parse(tmp_path / "drawing.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert set(words) > STAGES | {"pictures, store", "reid-fast", "reference"}
    colours = {colour for _, colour in Image.open(tmp_path / "drawing.png").getcolors(2**16)}
    assert {(27, 108, 168), (209, 113, 31)} & colours


def test_times_within_a_part_of_a_row_are_found():
    once, twice = summed_up([Lap(0.5, 0.5)]), summed_up([Lap(2.0, 1.0), Lap(1.0, 1.0)])
    row = {"stage": "cluster", "n": 9, "knn": {"ours": once, "faiss_flat": twice}, "peak_mb": {"ours": 3.0}}
    (found,) = pairs([row])
    assert found[:2] == ("cluster, knn", "n=9")
    assert (found.name, found.faster) == ("faiss flat", 3.0)


def test_a_stage_is_kept_beside_others(tmp_path):
    for stage in ("images", "step", "images"):
        path = save_stage("run", stage, [{"stage": stage}], tmp_path)
    assert {name: kept["rows"] for name, kept in json.loads(path.read_text()).items()} == {
        "images": [{"stage": "images"}],
        "step": [{"stage": "step"}],
    }


def test_a_projection_multiplies_what_was_measured(sides):
    nothing = {"seconds": 0.0, "min": 0.0, "max": 0.0}
    parts = ["decoding", "extraction beside", "training beside", "clustering beside", "ranking", "ranking beside"]
    parts += [f"{part}, {name}" for part in ("extraction", "training") for name in AMP]
    costs = dict.fromkeys([*parts, *(f"clustering, {schedule.name}" for schedule in SCHEDULES)], nothing)
    costs["training, float32"] = {"seconds": 1e-3, "min": 5e-4, "max": 2e-3}
    costs["clustering beside"] = {"seconds": 2.0, "min": 2.0, "max": 2.0}
    costs["extraction beside"] = {"seconds": 1e-3, "min": 1e-3, "max": 1e-3}
    _, msmt = SCHEDULES
    row = projection(sides.run, sides.peer, CPU, msmt, "float32", costs)
    assert row["ours"] == {"seconds": 5120.0, "min": 2560.0, "max": 10240.0, "n": CPU.runs}  # 50 × 400 × 256 images
    images = 50 * 32_621 + 6 * (11_659 + 82_161)
    assert row["beside"]["seconds"] == pytest.approx(50 * 2 * (32_621 / 12_936) ** 2 + 1e-3 * images, abs=0.1)
    assert row["seconds_by_part"]["beside"]["evaluation"] == round(6e-3 * (11_659 + 82_161), 1)


@pytest.mark.thorough
def test_the_loop_beside_its_backbone(people):
    (row,) = overhead(True, [people])
    assert row["ours"]["seconds"] > row["behind_backbone"]["seconds"] > 0
    added = row["ours"]["processor"] / row["beside"]["processor"] - 1
    assert row["overhead_per_cent"]["processor"] == pytest.approx(100 * added, abs=0.1)


@pytest.mark.thorough
def test_an_encoder_in_use(people, monkeypatch):
    pytest.importorskip("faiss")
    rows = retrieval(True, [people])
    assert [row["stage"] for row in rows] == ["embed", "search, one query", "search, one of 64 queries", "re-ranking"]
    assert all(pair.beside["seconds"] > 0 for pair in pairs(rows))
    assert rows[-1]["mAP"][0] != pytest.approx(rows[-1]["plain_mAP"], abs=1e-3), "re-ranking changes the ranking here"
    monkeypatch.setattr("retrieval.published_reranking", lambda query, gallery, *_: 1 - query @ gallery.T)
    with pytest.raises(SystemExit, match="re-ranking scores"):
        retrieval(True, [people])


def test_the_page_shows_what_is_kept(tmp_path):
    times = summed_up([Lap(0.25, 0.5)])
    path = save_stage("run", "epoch", [{"stage": "kNN", "ours": times, "beside": times, "beside_is": "peer"}], tmp_path)
    _, _, header, _, row = written(json.loads(path.read_text())["epoch"])
    assert header.count("|") == row.count("|")
    assert row.startswith(
        "| kNN |  | 250 ms (250 ms – 250 ms) | 250 ms (250 ms – 250 ms) | peer | 1 | 500 ms / 500 ms |"
    )
