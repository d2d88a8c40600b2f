"""What `reid-fast data verify` finds, beside what was planted and what the file names say."""

import json
import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

import pytest
from inputs import JPEG, MARKET_FOLDERS, encoded, refused, write, write_splits
from PIL import Image

from reid_fast.commands.data.verify import main
from reid_fast.console import Console
from reid_fast.data.survey import survey


def of(folder, dataset=None, pattern=None):
    return survey(folder, dataset, pattern, console=Console(quiet=True))


def named(path):
    """(identity, camera) by the file's name, without the loader."""
    pid, rest = path.name.split("_c", 1)
    return int(pid), int(rest[0])


def run(*flags):
    main([str(flag) for flag in flags])


def test_a_sound_set_is_counted_as_its_names_say(people, tmp_path, capsys):
    run(people, "--json", tmp_path / "found.json")
    assert "training can work, and so can evaluation" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["dataset"] == "synthetic"  # by its folder's name
    for split, folder in zip(("train", "query", "gallery"), MARKET_FOLDERS, strict=True):
        ids = [named(path) for path in (people / folder).iterdir()]
        counts = Counter(pid for pid, _ in ids if pid > 0)
        facts = found["splits"][split]
        assert facts["images"] == len(ids)
        assert facts["cameras"] == len({cam for _, cam in ids})
        wanted = {"least": min(counts.values()), "median": median(counts.values()), "most": max(counts.values())}
        assert facts["images_per_identity"] == wanted
        assert facts["identities_of_one_camera"] == []
    sizes = [Image.open(path).size for path in people.rglob("*.jpg")]
    assert found["widths"]["most"] == max(width for width, _ in sizes)
    assert found["heights"]["least"] == min(height for _, height in sizes)
    assert found["queries_scored"] == len(list((people / "query").iterdir()))
    nothing = ("unparsed", "unreadable", "duplicates", "queries_without_match", "training", "evaluation")
    assert all(found[key] == [] for key in nothing)


def test_what_was_spoilt_is_found(copied, tmp_path, capsys):
    train = sorted((copied / "bounding_box_train").iterdir())
    query = sorted((copied / "query").iterdir())
    data = train[0].read_bytes()
    spoilt = {train[1]: data[:100], train[2]: b"", train[5]: data[:300] + bytes(400) + data[700:]}
    for path, content in spoilt.items():
        path.unlink()
        path.write_bytes(content)
    (copied / "bounding_box_train/someone.jpg").write_bytes(JPEG)
    # A file under another identity, and in the gallery too.
    other = next(path for path in reversed(train) if named(path)[0] != named(train[0])[0])
    for path in (other, copied / "bounding_box_test" / f"{query[0].name[:4]}_c9s1_000000_00.jpg"):
        path.unlink(missing_ok=True)
        path.write_bytes(data)
    # An identity whose gallery images all come from the camera of one of its queries; training has one such identity.
    pid, cam = named(query[-1])
    for path in (copied / "bounding_box_test").iterdir():
        if named(path)[0] == pid and named(path)[1] != cam:
            path.unlink()
    for path in train:
        if named(path)[0] == named(train[-1])[0] and named(path)[1] != named(train[-1])[1] and path != other:
            path.unlink()

    sentence = refused(capsys, main, copied, "-d", "market1501", "--json", tmp_path / "found.json")
    assert "names do not parse" in sentence
    assert "images cannot be read" in sentence
    found = json.loads((tmp_path / "found.json").read_text())
    assert {Path(one["path"]) for one in found["unreadable"]} == set(spoilt)
    (unparsed, camera) = sorted(found["unparsed"], key=lambda one: one["path"], reverse=True)
    assert Path(unparsed["path"]).name == "someone.jpg"
    assert "camera 9" in camera["reason"]
    assert [Path(path) for one in found["duplicates"] for path in one["paths"]] == [train[0], other]
    assert found["duplicates"][0]["contradictory"]
    alone = {path.name for path in query if named(path) == (pid, cam)}
    assert {Path(path).name for path in found["queries_without_match"]} == alone
    cameras = defaultdict(set)
    for path in (copied / "bounding_box_train").glob("0*.jpg"):
        cameras[named(path)[0]].add(named(path)[1])
    wanted = {pid for pid, cams in cameras.items() if len(cams) == 1}
    assert wanted
    one_camera = found["splits"]["train"]["identities_of_one_camera"]
    assert {named(Path(path))[0] for path in one_camera} == wanted
    assert len(found["training"]) == 2


def test_equal_files_in_training_and_test_are_told_apart_from_contradictions(market_folder, tmp_path):
    folder = tmp_path / "market"
    shutil.copytree(market_folder, folder)
    source = min((folder / "bounding_box_train").iterdir())
    shutil.copy(source, folder / "query" / "0009_c1s1_999999_00.jpg")
    (duplicate,) = of(folder, "market1501").duplicates
    assert duplicate.splits == ("train", "query")
    assert not duplicate.contradictory  # training numbers its identities anew: nothing is known


def test_no_query_with_a_match_ends_with_the_reason(copied, capsys):
    for path in (copied / "bounding_box_test").iterdir():
        if named(path)[0] > 0:
            path.rename(path.with_name(f"0999{path.name[4:]}"))
    assert "evaluation could not work: no query has its identity" in refused(capsys, main, copied)


def test_crops_without_names_can_be_trained_on(tmp_path, capsys):
    for number in range(5):
        write(tmp_path / f"{number}.png", encoded("PNG") + bytes(number))
    run(tmp_path)
    shown = capsys.readouterr().out
    assert "folder (folder of images)" in shown
    assert shown.endswith("training can work\n")
    assert "4 training images" not in shown
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").unlink()
    assert "3 training images make no cluster of 4" in refused(capsys, main, tmp_path)


def test_a_pattern_that_some_names_do_not_fit(tmp_path, capsys):
    for name in ("a_c1.jpg", "b_c2.jpg", "c_c1.jpg", "d.jpg", "e.jpg"):
        write(tmp_path / name)
    found = of(tmp_path, "folder", r"_c(?P<cam>\d)")
    assert [fault.path.name for fault in found.unparsed] == ["d.jpg", "e.jpg"]
    assert found.data.train.cams.tolist() == [0, 1, 0, -1, -1]
    sentence = refused(capsys, main, tmp_path, "--pattern", r"_c(?P<cam>\d)")
    assert "2 names do not parse" in sentence
    assert "d.jpg does not match" in sentence


def test_hostile_names_stay_text_and_in_their_line(tmp_path, capsys):
    hostile = "[red]\n\u202egpj.<script>" + os.fsdecode(b"\xff") + ".jpg"
    write(tmp_path / hostile, b"")
    for number in range(4):
        write(tmp_path / f"{number}.jpg", JPEG[:-2] + bytes([number]) + JPEG[-2:])
    sentence = refused(capsys, main, tmp_path, "--json", tmp_path / "found.json")
    assert r"[red]\n\u202egpj.<script>\udcff.jpg (empty file)" in sentence
    (fault,) = json.loads((tmp_path / "found.json").read_text())["unreadable"]
    assert fault["path"] == str(tmp_path / hostile)


@pytest.mark.parametrize(("folder", "name"), [("Market-1501-v15.09.15", "market1501"), ("crops", "market1501")])
def test_a_layout_is_recognised_by_content_then_name(tmp_path, folder, name):
    write_splits(tmp_path / "data" / folder)
    assert of(tmp_path / "data").data.name == name


def test_of_two_layouts_that_fit_the_names_decide(tmp_path):
    names = ["0001_c3_0.jpg", "0001_c15_1.jpg", "0002_c10_0.jpg"], ["0003_c3_0.jpg"], ["0003_c11_0.jpg"]
    assert of(write_splits(tmp_path / "some", names)).data.name == "msmt17"


@pytest.mark.parametrize(
    ("flags", "sentence"), [(["nowhere"], "does not exist"), ([".", "-d", "market"], "--dataset market is not known")]
)
def test_bad_input(capsys, monkeypatch, tmp_path, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, main, *flags)


def test_a_set_that_cannot_be_read_says_so_to_machines_too(tmp_path, capsys):
    write_splits(tmp_path / "set")
    write(tmp_path / "set/query/notes.pdf")
    assert "is not an image" in refused(capsys, main, tmp_path / "set", "-d", "market1501", "--json", tmp_path / "out")
    assert "is not an image" in json.loads((tmp_path / "out").read_text())["training"][0]
