"""Splits of images, parts of them, and the training set that a source comes first in."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from inputs import records, write_splits

from reid_fast.data.sets import ImageSet, TrainingSet, load_set


def test_images_are_selected_by_position_or_by_mask(tmp_path):
    train = load_set("market1501", write_splits(tmp_path)).train
    assert records(train.select([2, 0])) == [records(train)[2], records(train)[0]]
    assert records(train.select(train.pids == 0)) == records(train)[:1]
    assert len(train.select([])) == 0


def test_a_set_has_the_splits_that_it_has(tmp_path):
    whole = load_set("market1501", write_splits(tmp_path / "market"))
    assert whole.splits == {"train": whole.train, "query": whole.query, "gallery": whole.gallery}
    alone = load_set("folder", tmp_path)
    assert alone.splits == {"train": alone.train}


def test_a_set_survives_pickling(tmp_path):
    data = load_set("market1501", write_splits(tmp_path))
    again = pickle.loads(pickle.dumps(data))
    assert {name: records(split) for name, split in again.splits.items()} == {
        name: records(split) for name, split in data.splits.items()
    }
    assert (again.name, again.layout, again.root) == (data.name, data.layout, tmp_path)


def test_images_are_left_out_of_every_split(tmp_path):
    data = load_set("market1501", write_splits(tmp_path))
    less = data.without([data.train.paths[1], data.gallery.paths[0]])
    assert records(less.train) == [records(data.train)[0], records(data.train)[2]]
    assert records(less.query) == records(data.query)
    assert records(less.gallery) == records(data.gallery)[1:]
    assert (less.name, less.layout) == (data.name, data.layout)


def test_shared_images_are_those_of_two_sets(tmp_path):
    train = load_set("market1501", write_splits(tmp_path)).train
    assert list(train.shared(train.select([2, 1]))) == list(train.paths[1:])
    assert not train.shared(load_set("market1501", tmp_path).query)


def image_set(prefix, pids, cams):
    return ImageSet(tuple(Path(f"{prefix}{i}") for i in range(len(pids))), np.array(pids), np.array(cams))


def test_a_training_set_counts_the_source_first():
    source, target = image_set("s", [1, 0, 2, 1], [0, 1, 0, 1]), image_set("t", [7, 7, 9], [2, -1, 3])
    both = TrainingSet(target, source)
    assert [path.name for path in both.images.paths] == ["s0", "s1", "s2", "s3", "t0", "t1", "t2"]
    assert both.images.cams.tolist() == [0, 1, 0, 1, 2, -1, 3]
    assert (both.first, both.source_classes, both.domains) == (4, 3, 2)
    assert both.classes(np.array([1, -1, 0])).tolist() == [1, 0, 2, 1, 4, -1, 3]


def test_a_training_set_without_a_source_is_the_target():
    target = image_set("t", [7, 7, 9], [2, -1, 3])
    alone = TrainingSet(target)
    assert alone.images is target
    assert (alone.first, alone.source_classes, alone.domains) == (0, 0, 1)
    assert alone.classes(np.array([1, -1, 0])).tolist() == [1, -1, 0]


@pytest.mark.parametrize(("pids", "cams"), [(2, 3), (3, 2), (4, 4)])
def test_records_are_as_many_as_their_files(pids, cams):
    with pytest.raises(ValueError, match="3 paths"):
        ImageSet((Path("a"), Path("b"), Path("c")), np.zeros(pids, np.int64), np.zeros(cams, np.int64))
