"""What every clustering function takes, and what it refuses in one sentence; asked of the kNN."""

import numpy as np
import pytest
import torch
from inputs import planted

import reid_fast


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_any_float_type_and_strides(dtype):
    rows = planted(90, 20).astype(dtype)
    index, _ = reid_fast.knn(np.ascontiguousarray(rows, np.float32), 8)
    wide = np.zeros((180, 40), dtype)
    wide[::2, ::2] = rows
    for view in (rows, np.asfortranarray(rows), wide[::2, ::2], rows[::-1].copy()[::-1]):
        assert (reid_fast.knn(view, 8)[0] == index).all()


def test_scale_of_the_rows_does_not_matter():
    rows = planted(90, 20)
    assert (reid_fast.knn(rows * 37, 8)[0] == reid_fast.knn(rows, 8)[0]).all()


def with_value(value):
    rows = planted(20, 4)
    rows[7] = 0 if value is None else rows[7]
    rows[7, 2] = value or 0
    return rows


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, None])
def test_a_bad_row_is_named(value):
    with pytest.raises(ValueError, match="row 7"):
        reid_fast.knn(with_value(value), 3)


@pytest.mark.parametrize("shape", [(20,), (2, 3, 4), (0, 4), (4, 0)])
def test_a_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        reid_fast.knn(np.ones(shape, np.float32), 3)


@pytest.mark.parametrize("features", [np.ones((4, 4), int), torch.ones(4, 4).int(), [[1.0]], np.ones((2, 2), complex)])
def test_a_wrong_type_is_refused(features):
    with pytest.raises(TypeError, match="features must be"):
        reid_fast.knn(features, 3)


def test_no_neighbour_is_too_few():
    with pytest.raises(ValueError, match="k must be at least 1"):
        reid_fast.knn(planted(20, 4), 0)


def test_more_neighbours_than_rows_are_clipped_with_a_warning():
    with pytest.warns(UserWarning, match="k = 30 neighbours asked of 20 rows"):
        index, _ = reid_fast.knn(planted(20, 4), 30)
    assert index.shape == (20, 20)
