"""`reid-fast search`: lists on the page, in the picture and in JSON are those of the library."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import refused
from PIL import Image

import reid_fast
from reid_fast.__main__ import main
from reid_fast.data.sets import market_style
from reid_fast.evaluate import EvaluateConfig, evaluate
from reid_fast.retrieval import ShownLists, loaded, ranked_page, ranked_picture

FLAGS = ["--device", "cpu", "--threads", "1"]
PATTERN = r"^(?P<pid>\d+)_c(?P<cam>\d)"
HOSTILE = ["<script>alert(1)<.jpg", "\"><img src=x onerror='alert(1)'>.jpg", "two\nlines\x1b[31m.jpg", "\u202egpj.jpg"]


class Page(HTMLParser):
    """What a browser makes of a page: items with their class, image, alternative text and caption."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.items: list[dict[str, str]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.references += [value for name, value in values.items() if name in ("src", "href", "srcset", "action")]
        if tag == "li":
            self.items.append({"class": values.get("class", "")})
        if tag == "img":
            self.items[-1] |= {"src": values["src"], "alt": values["alt"]}

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.items:
            self.items[-1]["text"] = self.items[-1].get("text", "") + data


def lists_of(path: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """(query, [(image, verdict), ...]) of the JSON file, by base names."""
    content = json.loads(path.read_text())["queries"]
    return [(Path(q["query"]).name, [(Path(m["image"]).name, m["verdict"]) for m in q["matches"]]) for q in content]


def test_a_data_set_with_its_identities(trained: Path, market_folder: Path, tmp_path: Path, capsys) -> None:
    flags = ["-d", "market1501", "--data-dir", str(market_folder), *FLAGS]
    outputs = [f"--{kind}={tmp_path / kind}" for kind in ("html", "png", "json")]
    main(["search", str(trained), *flags, "-k", "4", "--show", "3", *outputs])
    said = capsys.readouterr().out
    assert "6 queries searched for in 12 gallery images. As the field's same-camera rule has it" in said

    lists = lists_of(tmp_path / "json")
    data = market_style("tiny", market_folder)
    encoder = reid_fast.load_encoder(trained, device="cpu")
    features = [encoder(list(part.paths)) for part in (data.query, data.gallery)]
    for row, (query, matches) in enumerate(lists):
        similarity = (features[0][row] @ features[1].T).numpy()
        same = data.gallery.pids == data.query.pids[row]
        seen = np.flatnonzero(~(same & (data.gallery.cams == data.query.cams[row])))
        expected = seen[np.argsort(-similarity[seen])][:4]
        assert query == data.query.paths[row].name
        assert [name for name, _ in matches] == [data.gallery.paths[i].name for i in expected]
        assert [verdict == "right" for _, verdict in matches] == same[expected].tolist()

    scores = evaluate(EvaluateConfig(trained, "market1501", market_folder, output=tmp_path / "scores", device="cpu"))
    right = sum(matches[0][1] == "right" for _, matches in lists)
    assert scores.rank1 == right / 6
    assert f"right person for {right} of 6 queries" in said

    page = Page((tmp_path / "html").read_text())
    shown = [lists[row] for row in (0, 2, 5)]  # evenly spread
    items = iter(page.items)
    for query, matches in shown:
        item = next(items)
        assert item["alt"] == f"query {query}"
        assert query in item["text"]
        for rank, (name, verdict) in enumerate(matches, start=1):
            item = next(items)
            assert item["class"] == verdict
            assert item["alt"] == f"rank {rank}, {verdict}: {name}"
            assert {"right": "✓", "wrong": "✗"}[verdict] in item["text"]
            thumbnail = Image.open(io.BytesIO(base64.b64decode(item["src"].partition(",")[2])))
            original = Image.open(market_folder / "bounding_box_test" / name)
            assert thumbnail.size == original.size
            assert np.abs(np.asarray(thumbnail, int) - np.asarray(original, int)).mean() < 8
    assert next(items, None) is None
    assert all(reference.startswith("data:image/jpeg;base64,") for reference in page.references)

    picture = Image.open(tmp_path / "png").convert("RGB")
    frames = {"right": (20, 128, 60), "wrong": (198, 40, 40)}
    for line, (_, matches) in enumerate(shown):
        top = 8 + 18 + line * (160 + 2 * 4 + 8 + 18)
        for column, (_, verdict) in enumerate(matches, start=1):
            assert picture.getpixel((16 + column * 96 + 1, top + 1)) == frames[verdict]


def test_files_whose_pattern_tells_identities(trained: Path, market_folder: Path, tmp_path: Path) -> None:
    places = ["--query", str(market_folder / "query"), "--gallery", str(market_folder / "bounding_box_test")]
    main(["search", str(trained), *places, "--pattern", PATTERN, *FLAGS, f"--json={tmp_path / 'by_files'}"])
    main(
        [
            "search",
            str(trained),
            "-d",
            "market1501",
            "--data-dir",
            str(market_folder),
            *FLAGS,
            f"--json={tmp_path / 'set'}",
        ]
    )
    assert lists_of(tmp_path / "by_files") == lists_of(tmp_path / "set")


def test_identities_are_numbered_across_queries_and_gallery(trained: Path, market_folder: Path, tmp_path: Path) -> None:
    (query,) = (market_folder / "query").glob("0009_c2*")
    places = ["--query", str(query), "--gallery", str(market_folder / "bounding_box_test"), "-k", "99"]
    pattern = ["--pattern", r"^(?P<pid>\d+)_"]
    main(["search", str(trained), *places, *pattern, *FLAGS, f"--json={tmp_path / 'lists'}"])
    ((_, matches),) = lists_of(tmp_path / "lists")
    assert len(matches) == 12  # without cameras no rule hides any
    assert {name[:4] for name, verdict in matches if verdict == "right"} == {"0009"}
    assert sum(verdict == "right" for _, verdict in matches) == 4


def test_unlabelled_images_are_neither_right_nor_wrong(
    trained: Path, market_folder: Path, tmp_path: Path, capsys
) -> None:
    folder = str(market_folder / "query")
    main(
        [
            "search",
            str(trained),
            "--query",
            folder,
            "--gallery",
            folder,
            *FLAGS,
            "-k",
            "9",
            f"--html={tmp_path / 'page'}",
        ]
    )
    assert "right person" not in capsys.readouterr().out
    page = Page((tmp_path / "page").read_text())
    assert {item["class"] for item in page.items} == {"query", "unknown"}
    assert len(page.items) == 6 * 6  # the query, and all but itself
    assert "A file is not in its own list." in page.text
    assert "same-camera" not in page.text


def test_hostile_names_are_nothing_but_text(trained: Path, market_folder: Path, tmp_path: Path, capsys) -> None:
    images = tmp_path / "images"
    images.mkdir()
    names = [*HOSTILE, os.fsdecode(b"\xff.jpg")]
    for name, source in zip(names, sorted((market_folder / "query").iterdir()), strict=False):
        shutil.copy(source, images / name)
    places = ["--query", str(images), "--gallery", str(images)]
    main(["search", str(trained), *places, *FLAGS, f"--html={tmp_path / 'page'}", f"--json={tmp_path / 'lists'}"])
    page = Page((tmp_path / "page").read_text())
    assert set(page.tags) <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "p"),
        *("ol", "li", "figure", "figcaption", "img", "b", "span", "bdi"),
    }
    assert page.tags.count("img") == 25
    seen = {"".join(c if c.isprintable() else f"⟨U+{ord(c):04X}⟩" for c in name) for name in names}
    assert {item["alt"].removeprefix("query ") for item in page.items if item["class"] == "query"} == seen
    assert {Path(query["query"]).name for query in json.loads((tmp_path / "lists").read_text())["queries"]} == set(
        names
    )
    capsys.readouterr()
    main(["search", str(trained), *places, *FLAGS])
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "⟨U+DCFF⟩.jpg" in said


def test_an_index_is_made_once(trained, other_trained, market_folder, tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("faiss")
    flags = ["-d", "market1501", "--data-dir", str(market_folder), *FLAGS, f"--index={tmp_path / 'gallery.faiss'}"]
    main(["search", str(trained), *flags, f"--json={tmp_path / 'first'}"])
    assert "index of 12 images written" in capsys.readouterr().out
    encoded = []
    encode = loaded.LoadedEncoder.encode_files
    monkeypatch.setattr(
        loaded.LoadedEncoder,
        "encode_files",
        lambda self, paths, console: encoded.append(len(paths)) or encode(self, paths, console),
    )
    main(["search", str(trained), *flags, f"--json={tmp_path / 'second'}"])
    assert encoded == [6]  # the queries
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert "another encoder" in refused(capsys, main, "search", other_trained, *flags)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "give either --query and --gallery, or --dataset"),
        (["--query", "{images}"], "give either --query and --gallery, or --dataset"),
        (["--query", "{images}", "--gallery", "{images}", "-d", "market1501"], "give either"),
        (["-d", "market1501", "--data-dir", "{images}", "--pattern", "(?P<pid>.)"], "--pattern is for --query"),
        (["--query", "{images}", "--gallery", "{images}", "--data-dir", "{images}"], "--data-dir is for --dataset"),
        (["--query", "{images}", "--gallery", "{images}", "--pattern", "("], "is not a regular expression"),
        (["--query", "{images}", "--gallery", "{images}", "--pattern", "(?P<pid>x)"], "does not match --pattern"),
        (["--query", "{images}", "--gallery", "nowhere"], "there is no nowhere"),
        (["--query", "{images}", "--gallery", "{images}", "-k", "0"], "--k must lie between 1"),
        (["--query", "{images}", "--gallery", "{images}", "--html", "nowhere/page"], "there is no folder nowhere"),
        (["-d", "folder", "--data-dir", "{images}"], "folder has no queries and gallery"),
        (["-d", "market"], "unknown data set 'market'"),
    ],
)
def test_bad_input_is_one_sentence(capsys, trained: Path, market_folder: Path, flags: list[str], sentence: str) -> None:
    images = str(market_folder / "query")
    assert sentence in refused(capsys, main, "search", trained, *(f.format(images=images) for f in flags), *FLAGS)


def test_without_faiss_only_the_index_is_missing(
    capsys, monkeypatch, trained: Path, market_folder: Path, tmp_path
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    flags = ["-d", "market1501", "--data-dir", market_folder, *FLAGS, f"--json={tmp_path / 'lists'}"]
    assert "pip install faiss-cpu" in refused(capsys, main, "search", trained, *flags, f"--index={tmp_path / 'index'}")
    main(["search", str(trained), *map(str, flags)])
    assert (tmp_path / "lists").exists()


def test_a_query_that_sees_nothing_is_shown_alone(market_folder: Path) -> None:
    data = market_style("tiny", market_folder)
    index, similarity = torch.full((6, 2), -1), torch.full((6, 2), -torch.inf)
    lists = ShownLists(data.query, data.gallery, index, similarity, "Nothing is seen.")
    assert lists.first_right() == (0, 6)
    assert Page(ranked_page(lists, "none", 2)).items[1]["text"].strip() == "no image is left for it to be searched in"
    assert ranked_picture(lists, 2).height == 2 * (160 + 34) + 34


def test_reranked_lists_say_so(trained: Path, market_folder: Path, tmp_path: Path) -> None:
    flags = ["-d", "market1501", "--data-dir", str(market_folder), "-k", "5", *FLAGS]
    main(["search", str(trained), *flags, "--rerank", f"--json={tmp_path / 'again'}"])
    evaluate(
        EvaluateConfig(trained, "market1501", market_folder, output=tmp_path / "scores", device="cpu", rerank=True)
    )
    scores = json.loads((tmp_path / "scores").read_text())["reranked"]
    lists = lists_of(tmp_path / "again")
    assert scores["rank1"] == sum(matches[0][1] == "right" for _, matches in lists) / 6
    assert scores["rank5"] == sum("right" in dict(matches).values() for _, matches in lists) / 6
    assert json.loads((tmp_path / "again").read_text())["rule"].startswith("The order is that of k-reciprocal")
