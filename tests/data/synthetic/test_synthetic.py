"""The synthetic data set: repeatable, whole or absent, laid out like Market-1501, not solved by colour."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from inputs import refused
from PIL import Image

from reid_fast.data.synthetic import draw, main
from reid_fast.data.synthetic.draw import GALLERY, QUERY, TRAIN, contact_sheet, parallel_map, synthetic_folder
from reid_fast.errors import UserError

NAME = re.compile(r"(\d{4})_c([1-6])s1_\d{6}_\d{2,}\.jpg")
SMALL = {"train_ids": 3, "test_ids": 2}


@pytest.fixture(scope="module")
def full_set(tmp_path_factory):
    """Of some 4,500 images."""
    return synthetic_folder(tmp_path_factory.mktemp("synthetic"))


def records(folder):
    """(path, pid, camera) of every file of one part; every name must parse."""
    matches = [(path, NAME.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    return [(path, int(match[1]), int(match[2])) for path, match in matches]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def test_bytes_depend_on_the_seed_only(tmp_path):
    alone = synthetic_folder(tmp_path / "a", seed=5, workers=1, **SMALL)
    together = synthetic_folder(tmp_path / "b", seed=5, workers=3, **SMALL)
    other = synthetic_folder(tmp_path / "c", seed=6, workers=1, **SMALL)

    assert len({alone.name, together.name, other.name}) == 2
    assert contents(alone) == contents(together)
    assert not set(contents(alone).values()) & set(contents(other).values())


def test_an_image_does_not_depend_on_how_many_identities_there_are(tmp_path):
    few = contents(synthetic_folder(tmp_path, workers=1, train_ids=2, test_ids=1))
    more = contents(synthetic_folder(tmp_path, workers=1, train_ids=3, test_ids=1))

    in_training = {name: data for name, data in few.items() if name.startswith(TRAIN)}
    assert in_training.items() <= more.items()


@pytest.mark.thorough
def test_layout_and_size(full_set):
    train, query, gallery = (records(full_set / part) for part in (TRAIN, QUERY, GALLERY))
    train_pids, query_pids, gallery_pids = ({pid for _, pid, _ in part} for part in (train, query, gallery))

    assert len(train_pids) == 120
    assert len(query_pids) == 60
    assert gallery_pids == query_pids | {0}
    assert not train_pids & gallery_pids
    assert {camera for _, _, camera in train} == {camera for _, _, camera in query} == set(range(1, 7))
    assert 2500 <= len(train) <= 3500
    assert 1200 <= len(query) + len(gallery) <= 1800
    assert len({(pid, camera) for _, pid, camera in query}) == len(query)
    for part in (train, query, gallery):
        with Image.open(part[0][0]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 128))


@pytest.mark.thorough
def test_every_query_has_a_match_from_another_camera(full_set):
    gallery = {(pid, camera) for _, pid, camera in records(full_set / GALLERY)}
    for _, pid, camera in records(full_set / QUERY):
        assert any((pid, other) in gallery for other in range(1, 7) if other != camera)


@pytest.mark.thorough
def test_every_training_identity_is_seen_by_three_cameras_or_more(full_set):
    sightings = {(pid, camera) for _, pid, camera in records(full_set / TRAIN)}
    assert np.bincount([pid for pid, _ in sightings])[1:].min() >= 3


@pytest.mark.thorough
def test_colour_alone_is_a_poor_clue(full_set):
    """Mean colour finds the right person in another camera about as rarely as chance (2 %)."""
    query, gallery = records(full_set / QUERY), records(full_set / GALLERY)
    colours = [
        np.stack([np.asarray(Image.open(path)).mean((0, 1)) for path, _, _ in part]) for part in (query, gallery)
    ]
    pids, cameras = (np.array([record[i] for record in gallery]) for i in (1, 2))
    hits = []
    for colour, (_, pid, camera) in zip(colours[0], query, strict=True):
        distance = np.linalg.norm(colours[1] - colour, axis=1)
        distance[(pids == pid) & (cameras == camera)] = np.inf
        hits.append(pids[distance.argmin()] == pid)
    assert np.mean(hits) < 0.10


def test_a_finished_set_is_returned_at_once(tmp_path):
    folder = synthetic_folder(tmp_path, workers=1, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    assert synthetic_folder(tmp_path, progress=lambda *_: pytest.fail("drawn again"), **SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_killed_run_leaves_no_set_and_no_process_behind(tmp_path):
    command = [sys.executable, "-m", "reid_fast.data.synthetic", "--root", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not list(tmp_path.rglob("*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=15)  # ends when the last worker, which holds the same pipe, has ended

    assert list(tmp_path.rglob("*.jpg"))
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    drawn = synthetic_folder(tmp_path, workers=1, **SMALL)
    assert records(drawn / TRAIN)
    assert list(tmp_path.iterdir()) == [drawn]


@pytest.mark.parametrize("has_folder", [False, True])
def test_what_a_kill_before_the_first_image_or_behind_the_last_one_leaves_goes_with_the_next_call(tmp_path, has_folder):
    folder = synthetic_folder(tmp_path, workers=1, **SMALL)
    (tmp_path / f".{folder.name}-0123.lock").touch()
    if has_folder:
        (tmp_path / f".{folder.name}-0123").mkdir()
    assert synthetic_folder(tmp_path, **SMALL) == folder
    assert list(tmp_path.iterdir()) == [folder]


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(draw, "draw_identity", killed)
    monkeypatch.setattr(draw, "available_cores", lambda: 2)
    assert "was killed: free some memory" in refused(capsys, main, "--root", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "said"), [("sheet.xyz", "no suffix of a kind"), ("nowhere/x.png", "no folder")])
def test_a_sheet_that_cannot_be_written_is_one_sentence(tmp_path, capsys, name, said):
    folder = synthetic_folder(tmp_path, workers=1, **SMALL)
    folder.rename(folder.with_name("synthetic-v1-seed0"))
    assert said in refused(capsys, main, "--root", tmp_path, "--sheet", tmp_path / name)


def test_two_processes_at_once_agree(tmp_path):
    """The slower one finds the faster one's folder when it wants to rename its own."""

    def overtaken(done, total):
        if done == total:
            synthetic_folder(tmp_path, workers=1, **SMALL)

    folder = synthetic_folder(tmp_path, workers=1, progress=overtaken, **SMALL)
    assert list(tmp_path.iterdir()) == [folder]
    assert contents(folder) == contents(synthetic_folder(tmp_path / "again", workers=1, **SMALL))


def test_progress_counts_identities(tmp_path):
    calls = []
    synthetic_folder(tmp_path, workers=2, progress=lambda *call: calls.append(call), **SMALL)
    assert calls == [(i, 5) for i in range(1, 6)]


def test_default_root_is_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert synthetic_folder(workers=1, **SMALL).parent == tmp_path / "reid-fast"


def test_an_unusable_root_is_a_user_error(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match="synthetic data set"):
        synthetic_folder(Path(blocker) / "below", workers=1, **SMALL)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch, capsys):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert "set XDG_CACHE_HOME to a folder" in refused(capsys, main)


def test_contact_sheet_has_a_row_for_each_identity(tmp_path):
    contact_sheet(synthetic_folder(tmp_path, **SMALL), tmp_path / "sheet.png", identities=2, per_camera=1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 64, 2 * 128)


def test_a_contact_sheet_names_an_image_that_cannot_be_read(tmp_path):
    folder = synthetic_folder(tmp_path, **SMALL)
    first = min((folder / TRAIN).iterdir())
    first.write_bytes(first.read_bytes()[:300])
    with pytest.raises(UserError, match=f"{first.name} cannot be shown"):
        contact_sheet(folder, tmp_path / "sheet.png", identities=2)
    assert not (tmp_path / "sheet.png").exists()


class Trap:
    """Garbage that must not be finalised in another process, as a DALI pipeline must not: its threads are not there."""

    def __init__(self) -> None:
        self.myself, self.owner = self, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.owner:
            os._exit(1)


def collect(_: int) -> int:
    gc.collect()
    return os.getpid()


def test_workers_leave_the_garbage_of_their_parent_alone():
    gc.disable()
    try:
        Trap()
        with parallel_map(2) as mapped:
            assert os.getpid() not in list(mapped(collect, range(4)))
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--seed", "-1"], "--seed must lie between 0"),
        (["--seed", str(2**64)], "--seed must lie between 0"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--root", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_bad_flags_are_one_sentence(capsys, flags, text):
    assert text in refused(capsys, main, *flags)
