"""Folders that hold what no set holds: nothing is waited for, and what is wrong has one sentence with its name."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from inputs import JPEG, MARKET_FOLDERS, pack, refused, write, write_splits

from reid_fast.commands.data.verify import main as verify
from reid_fast.console import Console
from reid_fast.data.open import open_images, open_set
from reid_fast.data.sets import Paths, check_images, load_set, read_image, recognise
from reid_fast.errors import UserError
from reid_fast.whole_file import locked


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """What waits for a pipe's other end waits for ever."""

    def late(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def socket(path: Path) -> None:
    os.mknod(path, 0o140600)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def in_a_circle(path: Path) -> None:
    path.symlink_to(path)


def into_nothing(path: Path) -> None:
    path.symlink_to("nowhere.jpg")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("make", [pipe, socket, endless, in_a_circle, into_nothing])
def test_what_is_no_file_is_named_or_left_out(tmp_path: Path, make, skip: bool) -> None:
    good, bad = write(tmp_path / "good.jpg"), tmp_path / "odd.jpg"
    make(bad)
    if skip:
        opened = open_set("folder", tmp_path, skip_bad_images=True, console=Console(quiet=True))
        assert (list(opened.data.train.paths), list(opened.left_out)) == ([good], [bad])
    else:
        with pytest.raises(UserError, match=r"odd\.jpg is unusable"):
            open_set("folder", tmp_path, console=Console(quiet=True))
    with pytest.raises(UserError, match=r"odd\.jpg cannot be read"):
        read_image(bad)


@pytest.mark.parametrize("make", [pipe, in_a_circle])
def test_in_a_sets_own_folders_too(tmp_path: Path, make) -> None:
    make(write_splits(tmp_path) / "query" / "0002_c1s1_000009_00.jpg")
    make(tmp_path / "beside")
    data = load_set("market1501", tmp_path)
    assert next(reason for _, reason in check_images(data.query.paths)).startswith("unreadable")


def test_a_pipe_called_like_a_tar_file(tmp_path: Path) -> None:
    pipe(tmp_path / "0.tar")
    with pytest.raises(UserError, match=r"0\.tar cannot be read \(no regular file\)"):
        load_set("folder", tmp_path)


def test_a_folder_called_like_an_image_is_a_folder(tmp_path: Path) -> None:
    inner = write(tmp_path / "x.jpg" / "y.jpg")
    assert list(load_set("folder", tmp_path).train.paths) == [inner]
    assert list(open_images([tmp_path / "x.jpg"], console=Console(quiet=True)).paths) == [inner]
    write_splits(tmp_path / "market")
    (tmp_path / "market" / "query" / "x.jpg").mkdir()
    with pytest.raises(UserError, match=r"x\.jpg is not an image"):
        load_set("market1501", tmp_path / "market")


ODD_NAMES = [
    "a\nerror: b.jpg",
    "\x1b[2J.jpg",
    "“\u202egpj.exe.jpg",
    "'\"`$(id).jpg",
    os.fsdecode(b"\xff\xfe.jpg"),
    "x" * 251 + ".jpg",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_is_kept_and_said_in_one_line(tmp_path: Path, capsys, name: str) -> None:
    path = write(tmp_path / name)
    assert list(load_set("folder", tmp_path).train.paths) == [path]
    path.write_bytes(JPEG[:-2])
    sentence = refused(capsys, verify, tmp_path)
    assert "truncated JPEG" in sentence
    assert sentence.isprintable()


def test_capitals_are_images_and_hidden_files_are_not(tmp_path: Path) -> None:
    seen = [write(tmp_path / name) for name in ("A.JPG", "a.Jpeg", "a.jpg", "b.PNG")]
    for name in (".a.jpg", "._a.jpg", ".hidden/a.jpg", "__MACOSX/a.jpg", "a.jpg.txt"):
        write(tmp_path / name)
    assert list(load_set("folder", tmp_path).train.paths) == sorted(seen)


def forbidden(monkeypatch, folder: Path) -> None:
    """No permission to look into it, for a root's tests too."""

    def refusing(function, also_itself: bool):
        def call(path, *rest, **options):
            if folder in Path(path).parents or (also_itself and Path(path) == folder):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *rest, **options)

        return call

    for name in ("stat", "scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), also_itself=name != "stat"))


def test_a_forbidden_folder_beside_the_sets_is_passed_over(tmp_path: Path, monkeypatch, capsys) -> None:
    write_splits(tmp_path / "market1501")
    (tmp_path / "lost+found").mkdir()
    forbidden(monkeypatch, tmp_path / "lost+found")
    assert recognise(tmp_path)[0] == "market1501"
    assert load_set("market1501", tmp_path).root == tmp_path / "market1501"
    assert "cannot read" in refused(capsys, verify, tmp_path / "lost+found")


def test_sets_are_found_below_a_folder_called_like_a_split(tmp_path: Path) -> None:
    write_splits(tmp_path / "train" / "query" / "market1501")
    assert load_set("market1501", tmp_path).root == tmp_path / "train" / "query" / "market1501"
    assert load_set("market1501", tmp_path / "train").root == tmp_path / "train" / "query" / "market1501"


@pytest.mark.parametrize("split", MARKET_FOLDERS)
def test_a_split_that_bad_images_empty_is_named(tmp_path: Path, split: str) -> None:
    for path in (write_splits(tmp_path) / split).iterdir():
        path.write_bytes(JPEG[:-2])
    with pytest.raises(
        UserError, match=rf"all \d images of the (train|query|gallery) split are unreadable, as .*{split}"
    ):
        open_set("market1501", tmp_path, skip_bad_images=True, console=Console(quiet=True))


def test_another_users_unfinished_store_is_replaced_or_waited_for(tmp_path: Path, monkeypatch) -> None:
    """It may be read and removed, not written."""
    import torch

    from reid_fast.data.images import store_file

    images = Paths.of([write(tmp_path / "0.jpg")])
    (tmp_path / "cache").mkdir()
    file = store_file._File.of(tmp_path / "cache", images, (8, 8), torch.device("cpu"), Console(quiet=True))
    opened = os.open

    def foreign(path, flags, *rest, **options):
        if path == file.part and flags & os.O_RDWR and file.part.exists():
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", foreign)
    file.part.write_bytes(b"left by a killed process")
    with file.part.open("rb") as other:
        assert locked(other)
        with file.locked() as part:
            assert part is None
    with file.locked() as part:
        assert part is not None
        assert part.read() == b""


def test_members_of_a_tar_file_that_point_elsewhere_are_read_where_they_lie(tmp_path: Path) -> None:
    write(tmp_path / "secret.jpg", b"outside")
    names = ("../secret.jpg", str(tmp_path / "secret.jpg").lstrip("/"), "/etc/x.jpg", "a/../../secret2.jpg")
    pack(tmp_path / "set" / "0.tar", dict.fromkeys(names, JPEG))
    paths = load_set("folder", tmp_path / "set").train.paths
    assert len(paths) == len(names)
    assert {read_image(path).tobytes() for path in paths} == {JPEG}
