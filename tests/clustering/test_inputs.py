"""What every clustering function takes, and what it refuses in one sentence; asked of the kNN."""

import warnings

import numpy as np
import pytest
import torch
from inputs import planted
from memory import peak_bytes

import reid_fast
from reid_fast.clustering.inputs import normalised_rows


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_any_float_type_and_strides(dtype):
    rows = planted(90, 20).astype(dtype)
    index, _ = reid_fast.knn(np.ascontiguousarray(rows, np.float32), 8)
    wide = np.zeros((180, 40), dtype)
    wide[::2, ::2] = rows
    for view in (rows, np.asfortranarray(rows), wide[::2, ::2], rows[::-1].copy()[::-1]):
        assert (reid_fast.knn(view, 8)[0] == index).all()


def test_rows_that_are_not_aligned_are_copied():
    rows = planted(90, 20)
    misaligned = np.empty(rows.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(rows.shape)
    misaligned[:] = rows
    assert normalised_rows(misaligned).data_ptr() % 4 == 0
    assert (reid_fast.knn(misaligned, 8)[0] == reid_fast.knn(rows, 8)[0]).all()


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


def test_rows_that_are_ready_are_not_copied(tmp_path):
    np.save(tmp_path / "rows.npy", planted(90, 20))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = normalised_rows(mapped)
    assert rows.data_ptr() == mapped.ctypes.data
    assert (reid_fast.knn(mapped, 8)[0] == reid_fast.knn(np.array(mapped), 8)[0]).all()


@pytest.mark.parametrize("spoil", [lambda rows: rows.astype(np.float16), lambda rows: (3 * rows)[:, ::2]])
def test_rows_are_copied_once_and_the_callers_stay(spoil):
    rows = spoil(planted(200_000, 32))
    before, expected = rows.copy(), rows / np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)
    copies = []
    needed = peak_bytes(lambda: copies.append(normalised_rows(rows)))
    assert (rows == before).all()
    np.testing.assert_allclose(copies[0].numpy(), expected, rtol=0, atol=1e-6)
    assert copies[0].nbytes < needed < 1.5 * copies[0].nbytes
