"""What is remembered of files between starts, and what is not."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from inputs import JPEG, write

from reid_fast.data.sets import Manifest, Paths

LONG_AGO = 10**9


def unreported(done, total):
    pass


def old(path, content=JPEG):
    write(path, content)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return path


def known(tree, paths):
    """Whether each file is known, in a run that learns nothing."""
    manifest = Manifest(tree, "folder")
    return manifest.knows("whole", manifest.stamps(Paths.of(paths), unreported)).tolist()


def remember(tree, paths):
    manifest = Manifest(tree, "folder")
    stamps = manifest.stamps(Paths.of(paths), unreported)
    manifest.learn("whole", stamps)
    manifest.save(stamps)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/reid-fast/manifests"


@pytest.fixture
def tree(tmp_path):
    return tmp_path / "tree"


@pytest.fixture
def files(tree, cache):
    paths = [old(tree / f"{i % 2}/{i}.jpg") for i in range(6)]
    remember(tree, paths)
    return paths


def test_files_are_known_from_run_to_run(tree, files, tmp_path):
    assert known(tree, files) == [True] * 6
    (tmp_path / "link").symlink_to(tree)
    linked = [tmp_path / "link" / path.relative_to(tree) for path in files]
    assert known(tmp_path / "link", linked) == [True] * 6


def test_nothing_is_known_of_another_tree_or_set(tree, files, tmp_path):
    assert known(tmp_path, files) == [False] * 6
    other = Manifest(tree, "market1501")
    assert not other.knows("whole", other.stamps(Paths.of(files), unreported)).any()


def test_what_is_new_or_has_changed_is_not_known(tree, files):
    old(files[0], JPEG + b"x")
    os.utime(files[1], ns=(LONG_AGO, LONG_AGO + 1))
    files[2].unlink()
    files[3].rename(tree / "3.jpg")
    assert known(tree, [*files, tree / "3.jpg", old(tree / "6.jpg")]) == [False] * 4 + [True] * 2 + [False] * 2


def test_what_keeps_its_size_and_its_time_is_not_noticed(tree, files):
    old(files[0], JPEG[::-1])
    assert known(tree, files[:1]) == [True]


def test_a_file_that_may_yet_change_unnoticed_is_not_remembered(tree, cache):
    fresh = write(tree / "fresh.jpg")
    remember(tree, [fresh, old(tree / "old.jpg")])
    assert known(tree, [fresh, tree / "old.jpg"]) == [False, True]


def test_what_has_gone_is_forgotten(tree, files, cache):
    (file,) = cache.iterdir()
    assert len(np.load(file)["whole"]) == 6
    remember(tree, files[:2])
    assert len(np.load(file)["whole"]) == 2
    assert known(tree, files) == [True] * 2 + [False] * 4


def test_a_name_that_is_not_utf8_is_known(tree, cache):
    path = old(tree / os.fsdecode(b"\xe9.jpg"))
    remember(tree, [path])
    assert known(tree, [path]) == [True]


def cut(file):
    os.truncate(file, file.stat().st_size - 30)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def of_another_version(file):
    np.savez(file, **dict(np.load(file)) | {"version": np.array(0)})


def of_something_else(file):
    np.savez(file, version=np.array(1), whole=np.array(["text"]), decoded=np.zeros(3))


@pytest.mark.parametrize(
    "spoil",
    [cut, flip, of_another_version, of_something_else, lambda file: os.truncate(file, 0), lambda file: write(file)],
    ids=["cut", "flipped", "version", "something else", "empty", "foreign"],
)
def test_a_spoilt_manifest_knows_nothing_and_is_replaced(tree, files, cache, spoil):
    (file,) = cache.iterdir()
    spoil(file)
    assert known(tree, files) == [False] * 6
    remember(tree, files)
    assert known(tree, files) == [True] * 6


def test_a_cache_that_cannot_be_written_is_done_without(tree, tmp_path, monkeypatch):
    write(tmp_path / "file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = old(tree / "0.jpg")
    remember(tree, [path])
    assert known(tree, [path]) == [False]


def test_a_user_without_a_home_has_no_cache(tree, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    path = old(tree / "0.jpg")
    remember(tree, [path])
    assert known(tree, [path]) == [False]


def test_a_full_disk_leaves_the_old_manifest_and_nothing_else(tree, files, cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    remember(tree, files[:3])
    assert len(list(cache.iterdir())) == 1
    assert known(tree, files) == [True] * 6


def test_several_may_write_at_once(tree, files, cache):
    def work(number):
        remember(tree, files[: 1 + number % 6])
        return known(tree, files[:1])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(40))) == [[True]] * 40
    assert len(list(cache.iterdir())) == 1


def test_manifests_of_trees_used_long_ago_are_removed(tree, files, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("reid_fast.data.cache._KEPT", 2)
    old(cache / ".part-killed")
    for name in ("a", "b"):
        remember(tree, files)  # used, though nothing is new
        remember(tmp_path / name, files)
    assert known(tree, files) == known(tmp_path / "b", files) == [True] * 6
    assert known(tmp_path / "a", files) == [False] * 6
    assert len(list(cache.iterdir())) == 2
