"""Opening a set for a run: which one, from where, and what is done about broken images."""

import os
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from inputs import pack, records

from reid_fast.console import Console
from reid_fast.data import open as opening
from reid_fast.data.images import ImageStream
from reid_fast.data.open import open_images, open_set
from reid_fast.data.sets import SIZES, identified, market_style
from reid_fast.data.synthetic import synthetic_folder
from reid_fast.errors import UserError

DAMAGED = "0003_c2s1_000001_00.jpg"


def opened(name, folder, **options):
    return open_set(name, folder, console=Console(), **options)


@pytest.fixture
def copy(market_folder, tmp_path):
    return shutil.copytree(market_folder, tmp_path / "market1501")


@pytest.fixture
def damaged(copy):
    """With a JPEG whose Huffman table is nonsense: what following its segments does not see."""
    path = copy / "bounding_box_train" / DAMAGED
    content = path.read_bytes()
    start = content.index(b"\xff\xc4") + 5  # behind marker, length and class
    path.write_bytes(content[:start] + b"\xff" * 16 + content[start + 16 :])
    return copy


def test_a_set_is_read_from_its_folder(copy):
    found = opened("market1501", copy)
    assert (found.data.name, len(found.data.train), found.data.train.identities) == ("market1501", 36, 6)
    assert found.left_out == ()


def test_a_folder_of_images_needs_no_identities(copy):
    data = opened("folder", copy, pattern=r"_c(?P<cam>\d)").data
    assert data.train.cameras == 2
    assert data.train.identities == 0


def test_the_synthetic_set_is_drawn_where_it_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "synthetic_folder", partial(synthetic_folder, train_ids=3, test_ids=2))
    data = opened("synthetic", tmp_path).data
    assert data.name == "synthetic"
    assert data.train.identities == 3
    assert tmp_path in data.train.paths[0].parents


def test_images_in_a_tar_file_are_those_that_were_packed(damaged, tmp_path):
    folder = damaged / "bounding_box_train"
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    pattern = r"(?P<pid>\d+)_c(?P<cam>\d)"
    sets = [
        opened("folder", data_dir, pattern=pattern, skip_bad_images=True)
        for data_dir in (folder, pack(tmp_path / "shards/0.tar", files).parent)
    ]
    assert records(sets[0].data.train) == records(sets[1].data.train)
    assert sets[1].left_out == (tmp_path / "shards/0.tar" / DAMAGED,)
    rows = np.arange(len(sets[0].data.train))
    plain, packed = (torch.cat([*ImageStream(s.data.train.paths, (16, 8)).plain(rows, 8)]) for s in sets)
    assert torch.equal(plain, packed)


@pytest.mark.parametrize("folder", [None, "somewhere"])
def test_an_unknown_set_is_an_error_that_lists_the_known_ones(folder):
    with pytest.raises(UserError, match=f"unknown data set 'market': choose one of {', '.join(SIZES)}"):
        opened("market", folder)


def test_a_set_without_its_folder_is_an_error():
    with pytest.raises(UserError, match="--dataset market1501 needs --data-dir"):
        opened("market1501", None)


def test_a_visibly_broken_image_is_named_and_the_others_counted(copy):
    for pid in (2, 5):
        (copy / "bounding_box_train" / f"{pid:04d}_c1s1_000000_00.jpg").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"0002_c1s1_000000_00.jpg is unusable \(empty file\) and 1 more: .*--skip-bad-images"
    ):
        opened("market1501", copy)


def test_damage_inside_an_image_is_found_where_bad_images_are_skipped(damaged):
    found = opened("market1501", damaged, skip_bad_images=True)
    assert [path.name for path in found.left_out] == [DAMAGED]
    whole = market_style("market1501", damaged)
    assert records(found.data.train) == [row for row in records(whole.train) if row[0] != DAMAGED]
    assert records(found.data.query) == records(whole.query)


def test_broken_images_are_left_out_of_every_split(copy):
    names = ["bounding_box_train/0003_c2s1_000001_00.jpg", "bounding_box_test/0007_c1s1_000001_00.jpg"]
    for name in names:
        (copy / name).write_bytes(b"")
    found = opened("market1501", copy, skip_bad_images=True)
    assert found.left_out == tuple(copy / name for name in names)
    assert (len(found.data.train), len(found.data.query), len(found.data.gallery)) == (35, 6, 11)


@pytest.fixture
def looked_at(monkeypatch):
    """How many files are checked, and how many decoded, at each start."""
    counts = []

    def counted(function):
        def call(paths, *rest, **options):
            counts.append((function.__name__, len(paths)))
            return function(paths, *rest, **options)

        return call

    for function in (opening.check_images, opening.undecodable):
        monkeypatch.setattr(opening, function.__name__, counted(function))
    return counts


def age(folder):
    """Make all files old enough to be remembered."""
    for path in folder.rglob("*.jpg"):
        os.utime(path, ns=(10**9, 10**9))


def test_a_second_start_looks_at_what_is_new_or_changed(copy, looked_at):
    age(copy)
    for _ in range(2):
        opened("market1501", copy)
    (copy / "query/0007_c1s1_000000_00.jpg").touch()
    shutil.copyfile(copy / "query/0008_c1s1_000000_00.jpg", copy / "query/0008_c1s1_000001_00.jpg")
    opened("market1501", copy)
    assert looked_at == [("check_images", count) for count in (54, 2)]


def test_sets_below_one_folder_do_not_forget_one_another(copy, tmp_path, looked_at):
    shutil.copytree(copy, tmp_path / "personx")
    for path in (tmp_path / "personx").rglob("*_c1s1_*"):
        path.rename(path.with_name(path.name.replace("_c1s1_", "_c3_")))
    for path in (tmp_path / "personx").rglob("*_c2s1_*"):
        path.rename(path.with_name(path.name.replace("_c2s1_", "_c4_")))
    age(tmp_path)
    for name in ("market1501", "personx", "folder") * 2:
        opened(name, tmp_path)
    assert [count for _, count in looked_at] == [54, 54, 108]


def test_a_broken_file_is_looked_at_until_it_is_repaired(copy, looked_at):
    path = copy / "query/0007_c1s1_000000_00.jpg"
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    age(copy)
    for _ in range(2):
        with pytest.raises(UserError, match=path.name):
            opened("market1501", copy)
    path.write_bytes(content)
    opened("market1501", copy)
    assert looked_at == [("check_images", count) for count in (54, 1, 1)]


def test_what_was_decoded_once_is_not_decoded_at_the_next_start(damaged, looked_at):
    age(damaged)
    for skip in (True, False, True):
        assert len(opened("market1501", damaged, skip_bad_images=skip).left_out) == skip
    assert looked_at == [("check_images", 54), ("undecodable", 54), ("undecodable", 1)]


@pytest.mark.parametrize("name", ["check_images", "undecodable"])
def test_an_interrupted_start_goes_on_where_it_was(copy, looked_at, monkeypatch, name):
    def interrupted(*arguments, **options):
        if len(looked_at) == before + 2:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    age(copy)
    monkeypatch.setattr(opening, "_PART", 20)
    if name == "undecodable":
        opened("market1501", copy)
    before, whole = len(looked_at), getattr(opening, name)
    monkeypatch.setattr(opening, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened("market1501", copy, skip_bad_images=True)
    monkeypatch.setattr(opening, name, whole)
    assert opened("market1501", copy, skip_bad_images=True).left_out == ()
    assert [count for kind, count in looked_at[before:] if kind == name] == [20, 20, 14]


def test_nothing_is_said(copy, capsys):
    opened("market1501", copy, skip_bad_images=True)
    assert capsys.readouterr() == ("", "")


def opened_images(*sources, **options):
    return open_images(sources, console=Console(), **options)


def test_images_come_in_the_order_of_their_sources(copy, tmp_path):
    query, gallery = copy / "query", copy / "bounding_box_test"
    single = sorted(gallery.iterdir())
    pack(tmp_path / "shard.tar", {"b.jpg": single[0].read_bytes(), "a.jpg": single[1].read_bytes()})
    found = opened_images(single[3], single[2], query, tmp_path / "shard.tar", single[3])
    shard = tmp_path / "shard.tar"
    assert list(found.paths) == [
        *(single[3], single[2]),
        *sorted(query.iterdir()),
        *(shard / "a.jpg", shard / "b.jpg"),
        single[3],
    ]
    assert found.left_out == ()


def test_of_images_anywhere_the_bad_ones_are_named_or_left_out(damaged):
    train = damaged / "bounding_box_train"
    empty = train / "0001_c1s1_000000_00.jpg"
    empty.write_bytes(b"")
    with pytest.raises(UserError, match=r"0001_c1s1_000000_00.jpg is unusable \(empty file\)"):
        opened_images(empty, damaged / "query")
    found = opened_images(train / DAMAGED, empty, damaged / "query", train, skip_bad_images=True)
    assert sorted(path.name for path in found.left_out) == sorted(2 * [empty.name, DAMAGED])
    assert len(found.paths) == 6 + 36 - 2


def test_files_that_were_found_good_are_not_looked_at_again(copy, monkeypatch):
    files = sorted((copy / "query").iterdir())
    for path in files:
        os.utime(path, ns=(0, 10**18))
    opened_images(*files)
    monkeypatch.setattr(opening, "check_images", lambda paths, progress: pytest.fail(f"looks at {list(paths)}"))
    assert list(opened_images(*files).paths) == files


def test_identities_of_several_lists_are_numbered_together(copy):
    query, gallery = (opened_images(copy / part).paths for part in ("query", "bounding_box_test"))
    first, second = identified(r"^(?P<pid>\d+)_c(?P<cam>\d)", query[2:4], gallery)
    assert first.pids.tolist() == [1, 1]
    assert first.cams.tolist() == [0, 1]
    assert second.pids.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    (folders,) = identified(r"/(?P<cam>query|bounding_box_test)/", query[:1] + gallery[:1])
    assert folders.cams.tolist() == [1, 0]
    assert folders.pids.tolist() == [-1, -1]
    assert [images.pids.tolist() for images in identified(None, query[:2], gallery[:1])] == [[-1, -1], [-1]]
