"""The search that runs on a GPU, here on CPU tensors: defined similarities, their order, the proof and its failure."""

import numpy as np
import pytest
import torch
from inputs import planted

import reid_fast
from reid_fast.clustering.inputs import normalised_rows
from reid_fast.clustering.knn_device import _dot, _height, _largest, _multiply, _packed, search

FP32, FP64 = (torch.float32, 64), (torch.float64, 512)
KINDS = ("random", "clustered", "repeated", "equal", "close", "crowded", "axes")


def features(kind, n, width=33):
    rng = np.random.default_rng(n)
    if kind == "clustered":
        return planted(n, width, seed=n)
    rows = rng.normal(size=(n, width))
    if kind == "repeated":
        rows = rows[rng.integers(max(1, n // 9), size=n)]
    if kind == "equal":
        rows[:] = rows[0]
    if kind == "close":  # than the error of bf16
        rows = 1 + 3e-2 * rows
    if kind == "crowded":  # closer than fp32 tells apart
        rows = 1 + 3e-4 * rows
    if kind == "axes":  # zeros of either sign between almost all
        rows = np.where(np.arange(width) == rng.integers(width, size=n)[:, None], np.sign(rows), np.copysign(0, rows))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def defined(rows, k):
    """Every similarity by its definition, then (similarity descending, index ascending), the row itself first."""
    index = np.empty((len(rows), k), np.int32)
    similarity = np.empty((len(rows), k), np.float32)
    for i, row in enumerate(rows):
        terms = row * rows
        while (width := terms.shape[1]) > 1:
            half = (width + 1) // 2
            terms[:, : width - half] += terms[:, half:]
            terms = terms[:, :half]
        score = terms[:, 0] + np.float32(0)
        first = np.lexsort((np.arange(len(rows)), -score))
        index[i] = np.concatenate([[i], first[first != i]])[:k]
        similarity[i] = score[index[i]]
    return torch.from_numpy(index), torch.from_numpy(similarity)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, check_device=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (127, 30), (128, 128), (129, 5), (1000, 30)])
def test_the_neighbours_are_those_of_the_defined_similarities(kind, n, k):
    rows = features(kind, n)
    index, similarity, _ = search(torch.from_numpy(rows), k, 0, n)
    assert_same((index, similarity), defined(rows, k))
    exact = (rows.astype(np.float64)[:, None] * rows[index].astype(np.float64)).sum(2)
    np.testing.assert_allclose(similarity, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 3, 64, 257])
def test_any_width(width):
    rows = normalised_rows(planted(140, width))
    assert_same(search(rows, 9, 0, 140)[:2], defined(rows.numpy(), 9))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_a_pass_cannot_prove_go_on_to_the_next(kind):
    rows = torch.from_numpy(features(kind, 300))
    expected = search(rows, 10, 0, 300)[:2]
    few, fewer, none = (torch.bfloat16, 1), (torch.float32, 0), (torch.float64, 0)
    for passes in [(FP64,), (few, FP32, none), (few, fewer), (none,)]:
        *found, unproved = search(rows, 10, 0, 300, passes=passes)
        assert_same(found, expected)
        assert unproved == sorted(unproved, reverse=True)
    assert unproved == [300]  # without a candidate to spare nothing tells that the others are further away


def test_the_proof_fails_where_the_bound_cannot_tell_rows_apart():
    for kind, left in [("clustered", [0]), ("close", [700, 0]), ("crowded", [700, 700]), ("equal", [700, 700])]:
        assert search(torch.from_numpy(features(kind, 700)), 10, 0, 700)[2] == left, kind


@pytest.mark.parametrize("kind", ["clustered", "repeated", "crowded"])
def test_neither_the_blocks_nor_the_share_decide_a_bit(kind):
    rows = torch.from_numpy(features(kind, 150, 65))
    whole = search(rows, 12, 0, 150)
    assert_same(search(rows, 12, 0, 150)[:2], whole[:2])
    for memory in (1 << 15, 1 << 17, 1 << 19):  # blocks of 10, 42 and 128 rows
        *found, unproved = search(rows, 12, 0, 150, memory=memory)
        assert_same(found, whole[:2])
        assert unproved == whole[2]
    for begin, end in [(0, 0), (0, 1), (17, 103), (149, 150)]:
        assert_same(search(rows, 12, begin, end)[:2], [part[begin:end] for part in whole[:2]])


def test_blocks_are_whole_tiles_where_they_fit():
    assert _height(150, 1 << 12) == 2
    assert _height(150, 1 << 18) == 128
    assert _height(32_621, 1 << 30) == 2048
    assert _height(2_000_000, 60 << 30) == 1024  # 32-bit addresses
    assert _height(1_000_000, 0) == 1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_error_bound_holds_and_is_not_idle(dtype, device):
    rng = np.random.default_rng(0)
    just_below_half = 1 + rng.integers(0, 127, (60, 700)) / 128 + 0.999 / 256  # rounded down, all by the same
    for rows in (planted(500, 96), just_below_half, just_below_half * rng.choice([-1, 1], (60, 700))):
        rows = normalised_rows(torch.as_tensor(rows, device=device))
        packed, error = _packed(rows, dtype)
        products = torch.empty(len(rows), len(rows), device=device)
        _multiply(dtype, packed, packed, products)
        off = (products - rows.double() @ rows.double().T).abs().amax(1)
        assert (off <= error).all()
        if dtype == torch.bfloat16:
            assert off.max() > error.max() / 8
        if dtype == torch.float64:
            assert off.max() <= 2.0**-24  # rounded once
    assert error.max() < {torch.bfloat16: 1e-2, torch.float32: 1e-4, torch.float64: 4e-6}[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_bound_covers_sums_that_are_cut_off(dtype):
    rows = torch.randn(40, 700, generator=torch.Generator().manual_seed(0)).abs().bfloat16().float()
    total = np.zeros((40, 40), np.float32)
    for terms in np.einsum("id,jd->dij", *[rows.double().numpy()] * 2):
        exact = total + terms
        total = exact.astype(np.float32)
        total = np.where(total > exact, np.nextafter(total, np.float32(0)), total)
    off = (torch.from_numpy(total) - rows.double() @ rows.double().T).abs()
    norm = rows.norm(dim=1)
    assert (off > 48 * 2.0**-23 * norm[:, None] * norm).any()
    assert (off <= _packed(rows, dtype)[1][:, None]).all()


@pytest.mark.parametrize(("width", "count"), [(128, 128), (256, 3), (1280, 94), (4096, 5), (16384, 1)])
def test_the_largest_by_groups_are_the_largest(width, count):
    generator = torch.Generator().manual_seed(width)
    values = torch.randn(17, width, generator=generator).mul(20).round()  # with ties
    values[:, -50:] = -torch.inf
    best, column = _largest(values, count)
    assert torch.equal(best, values.topk(count).values)
    assert torch.equal(values.gather(1, column), best)
    assert all(len(set(row)) == count for row in column.tolist())


def test_the_order_of_a_sum_is_the_number_of_terms_alone():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 7, 5, 203, generator=generator)
    whole = _dot(left, right)
    assert torch.equal(whole[3:4, 2:], _dot(left[3:4, 2:], right[3:4, 2:]))
    assert torch.equal(_dot(torch.tensor([1.0, 0.0]), torch.tensor([-0.0, -1.0])).signbit(), torch.tensor(False))


@pytest.mark.parametrize("passes", [None, (FP32, FP64)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_callers_autocast_changes_nothing(passes, dtype):
    rows = torch.from_numpy(features("crowded", 300))
    expected = search(rows, 10, 0, 300, passes=passes)
    with torch.autocast("cpu", dtype):
        found = search(rows, 10, 0, 300, passes=passes)
    assert_same(found[:2], expected[:2])
    assert found[2] == expected[2]


def test_the_callers_precision_changes_nothing(lowered_precision, monkeypatch):
    def multiply(*arguments):
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        _multiply(*arguments)

    monkeypatch.setattr("reid_fast.clustering.knn_device._multiply", multiply)
    rows = features("crowded", 300)
    assert_same(search(torch.from_numpy(rows), 10, 0, 300, passes=(FP32, FP64))[:2], defined(rows, 10))


def test_features_of_people_are_proved_by_the_first_pass(golden):
    rows = normalised_rows(golden["features"])
    index, similarity, unproved = search(rows, 30, 0, len(rows))
    assert unproved == [0]
    host, expected = reid_fast.knn(rows, 30)
    assert torch.equal(index, host)
    np.testing.assert_allclose(similarity, expected, rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kind", "n", "k", "width"),
    [
        *((kind, *size) for kind in KINDS for size in [(1, 1, 7), (129, 129, 1), (1000, 30, 65)]),
        ("clustered", 3001, 30, 2048),
    ],
)
def test_the_device_gives_the_same_bits(kind, n, k, width):
    rows = torch.from_numpy(features(kind, n, width))
    wide = rows.new_zeros(n, 2 * width).cuda()
    wide[:, ::2] = rows.cuda()
    expected = search(rows, k, 0, n)
    for memory in (None, 1 << 22):
        found = search(rows.cuda(), k, 0, n, memory=memory)
        assert found[0].is_cuda
        assert_same(found[:2], expected[:2])
    assert_same(reid_fast.knn(wide[:, ::2], k), expected[:2])
    assert_same(search(rows.cuda(), k, 0, n, passes=(FP32, FP64))[:2], expected[:2])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_tf32_change_nothing_on_the_device(lowered_precision, dtype):
    rows = torch.from_numpy(features("crowded", 1000, 65))
    expected = search(rows, 30, 0, 1000)[:2]
    with torch.autocast("cuda", dtype):
        assert_same(reid_fast.knn(rows.cuda(), 30), expected)
        assert_same(search(rows.cuda(), 30, 0, 1000, passes=(FP32, FP64))[:2], expected)
