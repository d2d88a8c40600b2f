"""The exact kNN: every kernel, any number of threads and ranks, the device."""

import subprocess
import sys
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
from inputs import planted
from ranks.runs import start_together

import reid_fast
from reid_fast import _C
from reid_fast.clustering import reporting
from reid_fast.clustering.knn import knn_ref

SHAPES = [(1, 1), (2, 3), (47, 5), (48, 64), (49, 65), (131, 1), (145, 129), (700, 257)]


def exact(rows, k):
    """By (similarity descending, index ascending), the row itself first, in double precision."""
    similarity = rows.astype(np.float64) @ rows.astype(np.float64).T
    np.fill_diagonal(similarity, np.inf)
    return similarity, np.argsort(-similarity, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("kernel", _C.similarity_kernels())
@pytest.mark.parametrize(("n", "width"), SHAPES)
def test_every_kernel_finds_the_true_neighbours(kernel, n, width):
    rows = planted(n, width, seed=n)
    for k in {1, min(2, n), min(31, n), n if n < 200 else 1}:
        index, similarity = _C.knn(rows, k, 0, n, kernel)
        assert (index[:, 0] == np.arange(n)).all()
        truth, nearest = exact(rows, k)
        np.fill_diagonal(truth, (rows**2).sum(1))
        # Products that fp32 cannot tell apart may come in any sequence.
        np.testing.assert_allclose(similarity, np.take_along_axis(truth, nearest, 1), rtol=0, atol=2e-6)
        np.testing.assert_allclose(similarity, np.take_along_axis(truth, index.astype(int), 1), rtol=0, atol=2e-6)
        assert all(len(set(row)) == k for row in index.tolist())


@pytest.mark.parametrize("kernel", _C.similarity_kernels())
def test_rows_too_crowded_for_the_error_bound_are_searched_exhaustively(kernel):
    rng = np.random.default_rng(0)
    rows = 1 + 1e-5 * rng.normal(size=(1500, 40))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    index, similarity = _C.knn(rows, 20, 0, len(rows), kernel)
    other, same = _C.knn(rows, 20, 0, len(rows), "portable")
    assert (index == other).all()
    assert (similarity == same).all()


def test_equal_rows_come_in_index_order():
    rows = np.repeat(planted(5, 16), 400, axis=0)
    index, _ = reid_fast.knn(rows, 6)
    first = np.arange(2000) // 400 * 400
    for i in (0, 3, 399, 400, 1999):
        expected = [i, *[j for j in range(first[i], first[i] + 7) if j != i][:5]]
        assert index[i].tolist() == expected


@pytest.mark.parametrize("groups", [1, 2, 5, 60, 299])
@pytest.mark.parametrize("k", [2, 7, 130, 300])
def test_equal_rows_are_found_for_each_other_and_for_all_others(groups, k):
    rng = np.random.default_rng(groups)
    distinct = planted(groups, 9, seed=groups)
    rows = distinct[np.concatenate([np.arange(groups), rng.integers(groups, size=300 - groups)])][rng.permutation(300)]
    index, similarity = _C.knn(rows, k, 0, 300)
    assert (index[:, 0] == np.arange(300)).all()
    assert all(len(set(row)) == k for row in index.tolist())
    for i in range(300):  # equal rows have equal bits, so numpy's products serve for which is which
        products = (rows * rows[i]).sum(1, dtype=np.float64)
        np.testing.assert_allclose(similarity[i], products[index[i]], rtol=0, atol=1e-6)
        assert np.sort(products)[-k] - products[index[i]].min() < 1e-6
        assert (np.diff(similarity[i, 1:]) <= 0).all()
        ties = np.diff(similarity[i, 1:]) == 0
        assert (np.diff(index[i, 1:])[ties] > 0).all()
        # Of a group that is there in part, the lowest indices are.
        for group in np.unique(products[index[i, 1:]]):
            same = np.flatnonzero((products == group) & (np.arange(300) != i))
            there = np.sort(index[i, 1:][products[index[i, 1:]] == group])
            assert (there == same[: len(there)]).all()
    begin, end = 37, 211
    assert (_C.knn(rows, k, begin, end)[0] == index[begin:end]).all()
    assert (_C.knn(rows, k, begin, end)[1] == similarity[begin:end]).all()


def test_a_thousand_times_the_same_image_costs_no_more_than_once():
    rows = planted(30_000, 64)
    rows[1000:] = rows[np.arange(29_000) % 1000]
    started = time.process_time()
    index, similarity = _C.knn(rows, 30, 0, len(rows))
    equal = time.process_time() - started
    started = time.process_time()
    _C.knn(planted(30_000, 64, seed=1), 30, 0, len(rows))
    assert equal < (time.process_time() - started)
    assert (index[:, 0] == np.arange(30_000)).all()
    assert (index[5, 1:] == 5 + 1000 * np.arange(1, 30)).all()
    assert (similarity[5] == similarity[5, 0]).all()


@pytest.mark.parametrize("threads", [2, 7])
def test_any_number_of_threads_gives_the_same_bits(monkeypatch, threads):
    rows = planted(3000, 48)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = reid_fast.knn(rows, 30)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    together = reid_fast.knn(rows, 30)
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


def test_a_share_of_the_rows_is_the_same_part_of_the_whole():
    rows = planted(500, 24)
    index, similarity = _C.knn(rows, 9, 0, 500)
    for begin, end in [(0, 0), (0, 1), (17, 203), (203, 500), (499, 500)]:
        part = _C.knn(rows, 9, begin, end)
        assert (part[0] == index[begin:end]).all()
        assert (part[1] == similarity[begin:end]).all()


def test_tensors_in_tensors_out():
    rows = torch.from_numpy(planted(90, 20))
    index, similarity = reid_fast.knn(rows.bfloat16(), 8)
    assert index.dtype == torch.int32
    assert similarity.dtype == torch.float32
    reference, _ = knn_ref(rows.bfloat16(), 8)
    assert (index.sort().values == reference.sort().values).all()
    assert (reid_fast.knn(rows.T.contiguous().T, 8)[0] == reid_fast.knn(rows.numpy(), 8)[0]).all()


@pytest.mark.parametrize(("k", "begin", "end"), [(0, 0, 20), (21, 0, 20), (3, -1, 20), (3, 5, 21), (3, 5, 4)])
def test_the_extension_checks_ranges_for_itself(k, begin, end):
    with pytest.raises(ValueError, match="must lie in"):
        _C.knn(planted(20, 4), k, begin, end)


def test_an_unknown_kernel_is_named():
    with pytest.raises(ValueError, match="no similarity kernel called abacus"):
        _C.knn(planted(20, 4), 3, 0, 20, "abacus")


@pytest.mark.parametrize("convert", [np.float64, np.asfortranarray])
def test_the_extension_takes_only_c_ordered_float32(convert):
    with pytest.raises(TypeError):
        _C.knn(convert(planted(20, 4)), 3, 0, 20)


@pytest.mark.gpu
def test_search_on_the_device():
    rows = torch.from_numpy(planted(3000, 64))
    index, similarity = reid_fast.knn(rows.cuda(), 30)
    host, expected = reid_fast.knn(rows, 30)
    assert index.is_cuda
    np.testing.assert_allclose(similarity.cpu(), expected, atol=1e-5)
    assert (index.cpu().sort().values == host.sort().values).float().mean() > 0.9999


def join(rank, folder):
    # Soon enough for a search that waits for the others to fail here and not to hang.
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )


def search_on_every_rank(rank, rows, folder):
    join(rank, folder)
    torch.save(reid_fast.knn(rows, 9, group=torch.distributed.group.WORLD), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def search_on_the_first_rank(rank, rows, folder):
    join(rank, folder)
    if rank == 0:
        torch.save(reid_fast.knn(rows, 9), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("n", [1, 333])
@pytest.mark.filterwarnings("ignore:k = 9 neighbours")
def test_two_ranks_find_what_one_finds(tmp_path, n):
    rows = torch.from_numpy(planted(n, 24))
    start_together(search_on_every_rank, 2, rows, tmp_path)
    alone = reid_fast.knn(rows, 9)
    for rank in range(2):
        for whole, found in zip(alone, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            assert torch.equal(whole, found)


def test_without_a_group_one_rank_searches_alone(tmp_path):
    rows = torch.from_numpy(planted(333, 24))
    start_together(search_on_the_first_rank, 2, rows, tmp_path)
    for expected, found in zip(reid_fast.knn(rows, 9), torch.load(tmp_path / "0.pt"), strict=True):
        assert torch.equal(expected, found)


def test_ctrl_c_stops_a_search():
    script = """
import numpy as np, os, signal, threading, reid_fast
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs have not
rows = np.random.default_rng(0).normal(size=(60000, 512)).astype(np.float32)
reid_fast.knn(rows[:9], 2)  # imports what it needs: the signal is to meet the search
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    reid_fast.knn(rows, 30)
except KeyboardInterrupt:
    print("stopped")
"""
    assert (
        "stopped" in subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60).stdout
    )


def test_the_threads_that_there_are_do_all_the_work():
    script = """
import os, resource, torch, reid_fast
rows = torch.nn.functional.normalize(torch.randn(4000, 8))
expected, _ = reid_fast.knn(rows, 10)
os.environ["OMP_NUM_THREADS"] = "2000"
with open("/proc/self/statm") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (40 << 20), mapped + (40 << 20)))  # the stacks of a few threads
print(bool((reid_fast.knn(rows, 10)[0] == expected).all()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


def test_a_long_search_says_how_far_it_is_and_ends_by_what_that_raises(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    rows = torch.randn(20_000, 256)
    told = []
    with reporting(lambda *step: told.append(step)):
        reid_fast.knn(rows, 20)
    assert told
    assert all(0 <= done <= total for done, total in told)
    again = len(told)
    reid_fast.knn(rows[:9_000], 20)
    assert len(told) == again, "nothing is told outside"

    def fails(done, total):
        raise KeyError("the watcher's own")

    with pytest.raises(KeyError, match="the watcher's own"), reporting(fails):
        reid_fast.knn(rows, 20)
