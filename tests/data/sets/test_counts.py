"""Counts of a set beside the published ones."""

import io
from pathlib import Path

import pytest
from inputs import write, write_splits
from rich.console import Console

from reid_fast.data.sets import check_images, counts_table, load_set
from reid_fast.data.sets.counts import count_rows

REAL = Path(__file__).parents[4] / "shared/data"


def test_counts_stand_beside_the_published_ones(tmp_path):
    row = count_rows(load_set("market1501", write_splits(tmp_path)))[0]
    assert (row.split, row.identities, row.images, row.cameras) == ("train", 2, 3, 3)
    assert (row.published_identities, row.published_images, row.published_cameras) == (751, 12936, 6)


def test_the_table_says_what_differs_from_what_was_published(tmp_path):
    console = Console(width=120, file=io.StringIO())
    console.print(counts_table(load_set("market1501", write_splits(tmp_path))))
    assert "3 of 12,936 published" in console.file.getvalue()


def test_counts_of_a_folder_have_nothing_beside_them(tmp_path):
    write(tmp_path / "1.jpg")
    (row,) = count_rows(load_set("folder", tmp_path))
    assert (row.images, row.published_images) == (1, None)


@pytest.mark.skipif(not (REAL / "market1501").is_dir(), reason="needs the 200-identity part of Market-1501")
def test_the_real_part_of_market1501():
    data = load_set("market1501", REAL)
    counts = [(row.identities, row.images, row.cameras) for row in count_rows(data)]
    assert counts == [(200, 3871, 6), (200, 906, 6), (201, 4121, 6)]
    assert check_images(data.query.paths) == []
