"""Paths in a few arrays against a tuple of `Path`s."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from reid_fast.data.sets import Paths

UNDECODED = os.fsdecode(b"b/\xff\xe9.jpg")
TEXTS = ["b/2.jpg", "a.jpg", "/x/y/1.png", "b/1.jpg", "b/c/ü 𐀀.jpg", UNDECODED, "/1.jpg", "../a.jpg"]
PLAIN = tuple(map(Path, TEXTS))
PATHS = Paths.of(PLAIN)


def test_paths_are_what_they_were_made_of():
    assert tuple(PATHS) == PLAIN
    assert [PATHS[i] for i in range(-8, 8)] == [*PLAIN, *PLAIN]
    assert list(PATHS.texts()) == [str(path) for path in PLAIN]
    assert list(PATHS.names()) == [path.name for path in PLAIN]
    assert Paths.of(PATHS) is PATHS
    for outside in (8, -9):
        with pytest.raises(IndexError):
            PATHS[outside]


def test_there_may_be_none():
    nothing = Paths.of([])
    assert not nothing
    assert list(nothing + nothing) == []
    assert tuple(nothing + PATHS + nothing) == PLAIN
    assert nothing.isin(PATHS).tolist() == []
    assert not PATHS.isin(nothing).any()


@pytest.mark.parametrize("rows", [[0], [3, 4, 5], [7, 0, 7, 2], [], list(range(7, -1, -1))])
def test_rows_are_selected(rows):
    assert tuple(PATHS.select(np.array(rows, dtype=np.int64))) == tuple(PLAIN[i] for i in rows)
    mask = np.isin(np.arange(8), rows)
    assert tuple(PATHS.select(mask)) == tuple(np.array(PLAIN, dtype=object)[mask])


@pytest.mark.parametrize("part", [slice(None), slice(2, 5), slice(-3, None), slice(None, None, -2), slice(5, 2)])
def test_slices_are_paths_too(part):
    assert isinstance(PATHS[part], Paths)
    assert tuple(PATHS[part]) == PLAIN[part]


def test_selecting_more_than_a_block(monkeypatch):
    monkeypatch.setattr("reid_fast.data.sets.paths._BLOCK", 3)
    rows = np.array([7, 1, 1, 0, 5, 3, 2, 6, 6, 4])
    assert tuple(PATHS.select(rows)) == tuple(PLAIN[i] for i in rows)
    assert list(PATHS.texts()) == TEXTS


def test_equal_paths_may_be_stored_otherwise():
    again = Paths.of(PLAIN[3:]) + Paths.of(PLAIN[:3])
    assert again.select(np.roll(np.arange(8), 3)) == PATHS
    assert again != PATHS
    assert PATHS[:7] != PATHS
    assert PATHS != PLAIN


def test_common_paths_are_those_of_two_sets():
    others = Paths.of([Path("b/1.jpg"), Path("b/c/1.jpg"), Path("c/2.jpg"), PLAIN[5], Path("1.jpg")])
    assert [str(path) for path in PATHS.select(PATHS.isin(others))] == ["b/1.jpg", TEXTS[5]]
    assert others.isin(PATHS).tolist() == [True, False, False, True, False]


def test_a_pickle_holds_what_it_must():
    many = Paths.grouped((f"folder{i}/", [f"{j:08d}.jpg" for j in range(100)]) for i in range(100))
    assert len(pickle.dumps(many)) < 10_000 * (12 + 7)
    assert len(pickle.dumps(many[:10])) < 3_000
    assert pickle.loads(pickle.dumps(many)) == many


def test_a_path_takes_its_name_and_a_few_bytes():
    many = Paths.grouped((f"a/long/way/down/to/folder{i}/", [f"{j:012d}.jpg" for j in range(1000)]) for i in range(100))
    assert many.nbytes <= 100_000 * (16 + 8) + 100


def test_a_fingerprint_is_of_names_and_order_wherever_the_folder_lies():
    names = ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    found = Paths.of(f"/here/{name}" for name in names).fingerprint()
    rows = Paths.of(f"/else/where/{name}" for name in ["c/0.jpg", *reversed(names)])
    assert rows.select(np.array([3, 2, 1])).fingerprint() == found  # in other arrays
    assert Paths.of(["/x/a/1.jpg"]).fingerprint() == Paths.of(["1.jpg"]).fingerprint()
    others = [names[::-1], names[:2], ["a/1.jpg", "a/2.jpg", "c/1.jpg"], ["a/1.jpg", "b/2.jpg", "b/1.jpg"], []]
    assert len({found, *(Paths.of(f"/here/{name}" for name in other).fingerprint() for other in others)}) == 6
    assert PATHS.fingerprint() != PATHS[:7].fingerprint()
