"""A tree of any images, with and without a pattern."""

import os
import signal
from pathlib import Path

import pytest
from inputs import records, write

from reid_fast.data.sets import Paths, load_set, pattern
from reid_fast.errors import UserError


def test_images_are_found_at_any_depth_and_nothing_is_known_of_them(tmp_path):
    names = ["a.jpeg", "b/1.jpg", "b/2.PNG", "b/deep/er/0.webp"]
    for name in (*reversed(names), "b/labels.json"):
        write(tmp_path / name)
    data = load_set("folder", tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in data.train.paths] == names
    assert data.train.pids.tolist() == data.train.cams.tolist() == [-1] * 4
    assert data.query is data.gallery is None
    assert (data.train.identities, data.train.cameras) == (0, 0)


def test_images_come_in_the_order_of_their_whole_paths(tmp_path):
    undecoded = os.fsdecode(b"\xff.jpg")
    names = ["a/1.jpg", "a-b/1.jpg", "a.jpg", "a0.jpg", "ab/c/2.jpg", "ab/c.jpg", "ab/cd.jpg", "a/é.jpg", "a/😀.jpg"]
    for name in (*names, "a/" + undecoded, undecoded, "a/\ue000.jpg", "B.jpg", "a b/1.jpg"):
        write(tmp_path / name)
    found = [str(path) for path in load_set("folder", tmp_path).train.paths]
    assert found == sorted(str(path) for path in tmp_path.rglob("*.jpg"))
    assert len(found) == len(names) + 5


def test_the_current_folder_may_be_listed(tmp_path, monkeypatch):
    write(tmp_path / "a/1.jpg")
    write(tmp_path / "2.jpg")
    monkeypatch.chdir(tmp_path)
    data = load_set("folder", Path("."), pattern="(?P<cam>^[a2])(/|.jpg)")
    assert list(data.train.paths) == [Path("2.jpg"), Path("a/1.jpg")]
    assert data.train.cams.tolist() == [0, 1]


def test_listing_reports_what_it_has_found(tmp_path, monkeypatch):
    monkeypatch.setattr("reid_fast.data.sets.files._REPORTED", 2)
    for name in ("a/1.jpg", "a/2.jpg", "3.jpg", "b/4.jpg", "b/5.jpg"):
        write(tmp_path / name)
    seen = []
    load_set("folder", tmp_path, progress=lambda *found: seen.append(found))
    assert seen == [(2, None), (4, None)]


@pytest.fixture
def halls(tmp_path):
    for name in ("north/p9_door.jpg", "north/p1_hall.jpg", "east/p9_hall.jpg"):
        write(tmp_path / name)
    return tmp_path


def test_a_pattern_finds_identity_and_camera_in_the_name(halls):
    train = load_set("folder", halls, pattern=r"(?P<pid>p\d)_(?P<cam>[a-z]+)").train
    assert records(train) == [("p9_hall.jpg", 1, 1), ("p1_hall.jpg", 0, 1), ("p9_door.jpg", 1, 0)]


def test_a_pattern_with_a_slash_looks_at_the_path(halls):
    train = load_set("folder", halls, pattern=r"(?P<cam>\w+)/").train
    assert records(train) == [("p9_hall.jpg", -1, 0), ("p1_hall.jpg", -1, 1), ("p9_door.jpg", -1, 1)]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a regular expression"),
        (r"\d+", "names no group"),
        (r"(?P<cam>door)", r"p1_hall.jpg does not match"),
        (r"hall(?P<cam>x)?", r"p1_hall.jpg does not match"),
    ],
)
def test_a_pattern_that_does_not_fit_is_an_error(tmp_path, pattern, message):
    write(tmp_path / "p1_hall.jpg")
    with pytest.raises(UserError, match=message):
        load_set("folder", tmp_path, pattern=pattern)


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        load_set("folder", tmp_path)


def test_a_link_in_a_circle_is_an_error(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(UserError, match="links back"):
        load_set("folder", tmp_path)


def test_links_are_followed(tmp_path):
    write(tmp_path / "elsewhere" / "1.jpg")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cam1").symlink_to(tmp_path / "elsewhere")
    assert list(load_set("folder", tmp_path / "set").train.paths) == [tmp_path / "set" / "cam1" / "1.jpg"]


def test_an_expression_that_takes_forever_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(pattern, "_SECONDS", 0.3)
    before = signal.getsignal(signal.SIGALRM)
    names = Paths.of([tmp_path / f"{'a' * 60}!.jpg"])
    with pytest.raises(UserError, match=r"takes more than 0\.3 s for 1 names"):
        pattern.captured(pattern.compiled(r"(?P<cam>(a+)+)$"), names)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize(
    "expression", ["(?P<cam>a{99999999999})", "(" * 5000 + "(?P<cam>a)" + ")" * 5000, "(?P<cam>a)(?P<cam>b)"]
)
def test_an_expression_that_is_too_large_is_refused(expression):
    with pytest.raises(UserError, match="is not a regular expression"):
        pattern.compiled(expression)
