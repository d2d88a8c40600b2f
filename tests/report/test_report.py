"""`reid-fast report`: one page that needs nothing, says what the run says, and shows no more than its images."""

import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import TINY, argv, refused, rows_of
from PIL import Image

from reid_fast import run_folder
from reid_fast.command_line import parse
from reid_fast.commands.report import main
from reid_fast.console import Console
from reid_fast.epoch import label_images
from reid_fast.report import look, read_runs
from reid_fast.report.clusters import pick_clusters
from reid_fast.run import build
from reid_fast.train import main as train

HOSTILE = '"><script>alert(1)<' + "\u202e'&\n" + os.fsdecode(b"\xff")  # no slash: it is part of file names
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "code", "details", "summary"),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "img", "figcaption"),
    *("svg", "polyline", "circle", "rect", "text"),
}
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags, attributes and text; every tag must be closed where it should be."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], set(), [], ""
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style",):
            self.text += data


def run(*flags):
    main([*map(str, flags), "--device", "cpu"])


@pytest.fixture(scope="module")
def data(people, tmp_path_factory):
    """The people, some of them in files with hostile names."""
    folder = tmp_path_factory.mktemp("data") / "market1501"
    for path in people.rglob("*.jpg"):
        stem = path.stem + HOSTILE if path.parent.name == "query" or path.stem.endswith("1") else path.stem
        target = folder / path.parent.name / f"{stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(path)
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A run of cc and one of spcl, whose clusters depend on what it keeps."""
    parent = tmp_path_factory.mktemp("runs")
    flags = argv(**TINY, iters=4, epochs=2, eval_step=1, data_dir=data)
    train([*flags, "--method", "cc", "--logs-dir", str(parent / f"cc{HOSTILE}")])
    train([*flags, "--method", "spcl", "--logs-dir", str(parent / "spcl")])
    return [parent / f"cc{HOSTILE}", parent / "spcl"]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    """Of both runs."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    run(*runs, "-o", file)
    return file


def test_a_page_needs_nothing_and_holds_no_more_than_it_should(page):
    parsed = Page(page.read_text())
    assert parsed.tags <= TAGS | {"title"}
    values = [(name, value) for name, value in parsed.attributes if value]
    assert not [name for name, _ in values if name.startswith("on") or name in ("href", "style", "action")]
    assert all(value.startswith("data:image/jpeg;base64,") for name, value in values if name == "src")
    outside = [value for name, value in values if "//" in value and name not in ("xmlns", "src", "aria-label")]
    assert not outside
    assert "@import" not in page.read_text()
    assert "url(" not in page.read_text()


def test_hostile_names_are_shown_as_text(page):
    parsed = Page(page.read_text())
    visible = "\"><script>alert(1)<⟨U+202E⟩'&⟨U+000A⟩⟨U+DCFF⟩"
    titles = [value for name, value in parsed.attributes if name == "title"]
    assert any(visible in title for title in titles)
    assert visible in parsed.text  # a query's name
    assert "cc\"><script>alert(1)<\\u202e'&\\n\\udcff" in parsed.text  # the run's
    assert "\u202e" not in page.read_text()


def test_a_page_says_what_the_rows_say(page, runs):
    text = Page(page.read_text()).text
    for folder in runs:
        last = rows_of(folder)[-1]
        for value in (last["mAP"], last["rank1"], last["nmi"]):
            assert f"{100 * value:.1f} %" in text
        assert f"{last['clusters']:,}" in text
    assert "not for choosing" in text
    assert "--method" in text
    settings = [json.loads((folder / "config.json").read_text())["config"] for folder in runs]
    differing = {key for key in settings[0].keys() | settings[1].keys() if settings[0].get(key) != settings[1].get(key)}
    assert f"{len(differing)} of " in text


def test_the_same_runs_give_the_same_bytes(page, runs, tmp_path):
    run(*runs, "-o", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_one_run_has_its_page_in_its_folder_and_charts_beside_it(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run(folder, "--no-pictures", "--png", tmp_path / "png")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.html"} == before
    assert "<h2>Clusters" not in (folder / "report.html").read_text()
    assert "<img" not in (folder / "report.html").read_text()
    names = {path.stem for path in (tmp_path / "png").iterdir()}
    assert names >= {"loss", "lr", "clusters", "outliers", "mAP", "rank1", "nmi", "ari", "seconds-1"}
    image = Image.open(tmp_path / "png/loss.png")
    assert (27, 108, 168) in {colour for _, colour in image.getcolors(2**20)}


@pytest.mark.parametrize("number", [0, 1])
def test_clusters_are_those_that_the_next_epoch_would_train_with(runs, tmp_path, number):
    copy = tmp_path / "copy"
    shutil.copytree(runs[number], copy)
    (record,) = read_runs([runs[number]])
    seen = look(record, {}, device="cpu", threads=2, console=Console(quiet=True))
    assert seen.epoch == 3
    flags = ["--config", copy / "config.json", "--logs-dir", copy, "--resume", "--epochs", "3"]
    going_on = build(parse([str(flag) for flag in flags])[0])
    assert seen.clusters == pick_clusters(label_images(going_on), going_on.data.train)


def test_labels_of_an_epoch_under_way_are_taken_as_they_are(runs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(runs[0], copy)
    state = run_folder.load(copy)
    images = len(list(Path(json.loads((copy / "config.json").read_text())["config"]["data_dir"]).glob("*train/*")))
    state["at"]["labels"] = torch.arange(images) // 5
    run_folder.save(copy, {key: value for key, value in state.items() if key != "format"})
    (record,) = read_runs([copy])
    seen = look(record, {}, device="cpu", threads=2, console=Console(quiet=True))
    assert seen.clusters.pure_count + seen.clusters.mixed_count == -(-images // 5) - (images % 5 == 1)
    state["images"]["dataset"] = 3, "other names"
    run_folder.save(copy, {key: value for key, value in state.items() if key != "format"})
    seen = look(record, {}, device="cpu", threads=2, console=Console(quiet=True))
    assert f"has {images} training images, and 3 when the run" in seen.clusters


def test_without_the_images_or_the_checkpoint_a_page_says_so(runs, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(runs[0], copy)
    (copy / "last.pt").unlink()
    run(copy)
    text = Page((copy / "report.html").read_text()).text
    assert "holds no last.pt" in text
    assert "first correct at rank" in text
    config = json.loads((copy / "config.json").read_text())
    config["config"]["data_dir"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(config))
    run(copy)
    text = Page((copy / "report.html").read_text()).text
    assert text.count("This needs the run's images") == 2
    assert "gone does not exist" in text
    assert "gone too does not exist" in refused(capsys, main, copy, "--data-dir", tmp_path / "gone too")
    assert f"{copy} is a folder" in refused(capsys, main, copy, "-o", copy)


def test_both_sets_of_a_run_may_have_moved(people, market_folder, tmp_path, capsys):
    source = tmp_path / "source"
    source.symlink_to(people)
    flags = argv(**TINY, iters=2, epochs=1, data_dir=people, source="market1501", source_dir=source)
    train([*flags, "--method", "cc", "--data-dir", str(market_folder), "--logs-dir", str(tmp_path / "run")])
    source.rename(tmp_path / "moved")
    assert "source does not exist" in refused(capsys, main, tmp_path / "run", "--data-dir", market_folder)
    run(tmp_path / "run", "--data-dir", market_folder, "--source-dir", tmp_path / "moved")
    assert "source does not exist" not in Page((tmp_path / "run/report.html").read_text()).text


def test_a_run_without_identities_shows_its_largest_clusters(people, tmp_path):
    flags = argv(**TINY | {"dataset": "folder"}, iters=2, epochs=1, data_dir=people / "bounding_box_train")
    train([*flags, "--no-cam", "--logs-dir", str(tmp_path / "run")])
    run(tmp_path / "run")
    text = Page((tmp_path / "run/report.html").read_text()).text
    assert "identities of these images are not known" in text
    assert "has no queries and gallery" in text
    assert "mAP" not in text


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is no run folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "metrics.jsonl").write_text(""), "has no epoch yet"),
    ],
)
def test_a_folder_that_is_no_run(runs, tmp_path, capsys, spoil, sentence):
    shutil.copytree(runs[0], tmp_path / "run")
    spoil(tmp_path / "run")
    assert sentence in refused(capsys, main, tmp_path / "run")


def test_bad_input(runs, tmp_path, capsys):
    assert "given twice" in refused(capsys, main, runs[1], runs[1])
    assert "name 1 to 8 run folders" in refused(capsys, main)
    assert "no folder" in refused(capsys, main, runs[1], "-o", tmp_path / "nowhere/page.html")
    assert "--device cuda:99" in refused(capsys, main, runs[1], "--device", "cuda:99")


def test_numbers_that_are_not_finite_are_left_out_of_the_curves(runs, tmp_path):
    shutil.copytree(runs[1], tmp_path / "run")
    rows = rows_of(runs[1])
    rows[1]["loss"] = float("nan")
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "run", "--no-pictures")
    assert np.isnan(rows_of(tmp_path / "run")[1]["loss"])
    assert "nan," not in (tmp_path / "run/report.html").read_text()
