"""Any arrays and numbers into the extension: the right answer, or a refusal that says something."""

import os
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from awkward import LAYOUTS, REFUSALS, SPOILS, numbers, rows, says_something
from hypothesis import strategies as st
from scipy import sparse

from reid_fast import _C
from reid_fast.clustering import dbscan, jaccard_graph, knn, knn_ivf
from reid_fast.clustering.dbscan import dbscan_ref
from reid_fast.clustering.jaccard import jaccard_graph_ref

ARRAYS = {
    "knn": 1,
    "knn_and_farthest": 1,
    "knn_in_lists": 5,
    "check_neighbours": 2,
    "jaccard_graph": 3,
    "reranking_weights": 4,
    "jaccard_rows": 6,
    "dbscan": 3,
}


def whole(name, x, k, rng):
    """Sound arguments of a function, arrays first and numbers behind them."""
    n = len(x)
    ranking = _C.knn(x, k, 0, n)
    begin, end = sorted(rng.integers(0, n + 1, 2).tolist())
    if name in ("knn", "knn_and_farthest"):
        return [x, k, begin, end]
    if name == "knn_in_lists":
        count = int(rng.integers(1, n + 1))
        start = np.sort(np.r_[0, rng.integers(0, n + 1, count - 1), n])
        near = np.tile(np.arange(count, dtype=np.int32), count)  # all of them
        return [x, rng.permutation(n).astype(np.int32), start, count * np.arange(count + 1), near, k]
    if name == "check_neighbours":
        return [*ranking]
    if name == "jaccard_graph":
        return [x, *ranking, max(1, k // 2), 0.7, 1 << 40]
    smallest = np.minimum((x @ x.T).min(1), 1).astype(np.float32)
    if name == "reranking_weights":
        return [x, *ranking, smallest, max(1, k // 2), max(1, k // 3)]
    if name == "jaccard_rows":
        arrays = _C.reranking_weights(x, *ranking, smallest, k, 1)
        columns = sparse.csr_matrix((arrays[2], arrays[1], arrays[0]), shape=(n, n)).tocsc()
        return [*arrays, columns.indptr.astype(np.int64), columns.indices, columns.data, begin, end, n]
    start, index, value = _C.jaccard_graph(x, *ranking, 1, 0.9, 1 << 40)
    return [start.astype(np.int32), index, value, 0.6, 3]


def called(name, arguments, k):
    arrays, rest = arguments[: ARRAYS[name]], arguments[ARRAYS[name] :]
    if name == "knn_in_lists":
        arrays, rest = [arrays[0], rest[0], *arrays[1:]], []
    return getattr(_C, name)(*arrays, *rest)


def equal(found, expected):
    if isinstance(expected, tuple):
        return all(map(equal, found, expected))
    return np.array_equal(found, expected)


LARGEST = 1 << 24  # elements


def true_neighbours(x, index, similarity, begin=0):
    """Themselves first, nobody twice, cosines that are theirs, and nobody nearer is left out."""
    cosine = x.astype(float) @ x.T.astype(float)
    for i, (row, found) in enumerate(zip(index, similarity, strict=True), begin):
        np.testing.assert_allclose(found, cosine[i, row], atol=1e-5)
        others = np.delete(cosine[i], row)
        assert row[0] == i
        assert len(set(row.tolist())) == len(row)
        assert (np.diff(found[1:]) <= 0).all()
        assert not len(others) or len(row) < 2 or others.max() <= found[-1] + 1e-5


def spoilt(arguments, arrays, data):
    """One or two of the arguments as something else; and whether what they say has stayed."""
    same = True
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(arguments) - 1))
        if place >= arrays:
            arguments[place], same = data.draw(numbers), False
        elif isinstance(arguments[place], np.ndarray) and arguments[place].size > LARGEST:
            continue  # huge already: what else is made of it would have to fit
        elif not isinstance(array := arguments[place], np.ndarray) or not array.size or data.draw(st.booleans()):
            layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
            if isinstance(array, np.ndarray) and array.dtype == object and layout == "misaligned":
                continue  # which references never are
            arguments[place] = LAYOUTS[layout](array) if isinstance(array, np.ndarray) and array.ndim else array
        elif data.draw(st.booleans()):
            spoil = data.draw(st.sampled_from(sorted(SPOILS)))
            arguments[place], same = SPOILS[spoil](array), False
        elif array.dtype.kind in "if":
            array, same = array.copy(), False
            ends = np.iinfo if array.dtype.kind == "i" else np.finfo
            extremes = [-1, 0, 1, array.size, ends(array.dtype).min, ends(array.dtype).max]
            extremes += [np.nan, np.inf, -np.inf, 1e-42, -0.0] if array.dtype.kind == "f" else []
            spots = data.draw(st.lists(st.integers(0, array.size - 1), min_size=1, max_size=3))
            array.flat[spots] = data.draw(st.sampled_from(extremes))
            arguments[place] = array
    return arguments, same


@pytest.mark.parametrize("name", ARRAYS)
def test_any_arguments(name, attack):
    def case(data):
        x = data.draw(rows())
        k = data.draw(st.integers(2 if name in ("knn_in_lists", "knn_and_farthest") and len(x) > 1 else 1, len(x)))
        if name == "knn_in_lists" and k < 2:
            return
        sound = whole(name, x, k, np.random.default_rng(data.draw(st.integers(0, 99))))
        expected = called(name, sound, k)
        if name.startswith("knn"):
            true_neighbours(x, *expected[:2], 0 if name == "knn_in_lists" else sound[2])
        arguments, same = spoilt(list(sound), ARRAYS[name], data)
        try:
            found = called(name, arguments, k)
        except (*REFUSALS, MemoryError) as error:
            says_something(error)
        else:
            assert not same or equal(found, expected)

    attack(case, 60, data=st.data())


PUBLIC = {
    "knn": lambda x, **options: knn(x, **({"k": 5} | options)),
    "knn_ivf": lambda x, **options: knn_ivf(x, **({"k": 5} | options))[:2],
    "jaccard_graph": lambda x, **options: jaccard_graph(x, **({"k1": 7, "k2": 3} | options)),
}
OPTIONS = {"knn": ["k"], "knn_ivf": ["k", "lists", "probes", "sample", "seed"]}
OPTIONS["jaccard_graph"] = ["k1", "k2", "max_distance"]


@pytest.mark.parametrize("name", PUBLIC)
def test_any_features_and_numbers(name, attack):
    """The public functions take any layout and float type: a copy in plain float32 says the same."""

    def case(x, data):
        arguments, _ = spoilt([x], 1, data)
        options = data.draw(st.dictionaries(st.sampled_from(OPTIONS[name]), numbers, max_size=2))
        try:
            found = PUBLIC[name](arguments[0], **options)
        except (*REFUSALS, MemoryError, OverflowError) as error:
            says_something(error)
            return
        plain = np.array(arguments[0], np.float32)
        if name == "jaccard_graph":
            usual = {key: value for key, value in options.items() if value is not None}
            expected = jaccard_graph_ref(plain, **({"k1": 7, "k2": 3} | usual), neighbours=knn(plain, len(plain)))
            near = abs(found - expected).tocoo()
            rim = np.float32(options.get("max_distance", 0.6))  # where rounding decides
            assert (np.minimum(near.data, abs(near.data - rim)) < 1e-5).all()
        else:
            x = plain.astype(float)
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            k = min(int(options.get("k", 5)), len(x))
            assert found[0].shape == (len(x), k)
            if name == "knn":
                true_neighbours(x, *found)
            else:
                _C.check_neighbours(*found)

    def quiet(x, data):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that k is clipped
            case(x, data)

    attack(quiet, 60, x=rows(), data=st.data())


def test_any_graph(attack):
    def case(x, eps, min_samples, data):
        n = len(x)
        graph = sparse.random(n, n, 0.3, "csr", np.float32, random_state=n)
        graph = sparse.csr_matrix(graph.maximum(graph.T) + sparse.eye(n, dtype=np.float32))
        kind = data.draw(st.sampled_from(["csr", "csc", "coo", "float64", "int8", "wide", "NaN"]))
        if kind in ("csr", "csc", "coo"):
            graph = graph.asformat(kind)
        elif kind == "wide":
            graph.indptr = graph.indptr.astype(np.int64)
        elif kind == "NaN":
            graph.data[graph.data > data.draw(st.sampled_from([0.0, 0.5, 0.9]))] = np.nan  # on both sides
        else:
            graph = graph.astype(kind)
        try:
            found = dbscan(graph, eps, min_samples)
        except (*REFUSALS, OverflowError) as error:
            says_something(error)
            return
        known = sparse.csr_matrix(graph).astype(np.float32)
        known.data = np.where(np.isnan(known.data), np.float32(3e38), known.data)
        assert (found == dbscan_ref(known, eps, min(int(min_samples), n + 1))).all()

    some = st.one_of(st.floats(0, 1), numbers)
    attack(case, 100, x=rows(), eps=some, min_samples=st.one_of(st.integers(1, 9), numbers), data=st.data())


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3.0, 1e20])
@pytest.mark.parametrize("name", ["jaccard_graph", "reranking_weights"])
def test_rows_that_are_longer_than_one_have_no_weights(name, value):
    """Theirs were infinite, the others' zero, and sums of zeros were noted down beyond the room for them."""
    x = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    arguments = whole(name, x, 30, np.random.default_rng(0))
    arguments[0] = x.copy()
    arguments[0][7, 3] = value
    with pytest.raises(ValueError, match="features: row 7 holds NaN or is longer than 1"):
        called(name, arguments, 30)


@pytest.mark.parametrize("value", [0, -0.0, -1, np.nan, np.inf])
@pytest.mark.parametrize("place", [2, 5])
def test_weights_are_positive(place, value):
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    arguments = whole("jaccard_rows", x, 9, np.random.default_rng(0))
    arguments[place] = arguments[place].copy()
    arguments[place][11] = value
    with pytest.raises(ValueError, match="each value be positive"):
        called("jaccard_rows", arguments, 9)


@pytest.mark.parametrize("smallest", [1 - 2e-6, 0.9999, 5, np.nan, np.inf, -np.inf])
def test_a_smallest_cosine_that_is_none_makes_no_weight_of_zero(smallest):
    x = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    arguments = whole("reranking_weights", x, 30, np.random.default_rng(0))
    arguments[3] = np.full(400, smallest, np.float32)
    _, _, value = called("reranking_weights", arguments, 30)
    assert (value > 0).all()
    assert (value <= 1).all()


def test_callers_at_the_same_time():
    x = np.random.default_rng(0).normal(size=(1500, 16)).astype(np.float32)
    expected = knn(x, 9)
    graph = jaccard_graph(x, 9, 3)
    wrong = []

    def call():
        for _ in range(3):
            again = knn(x, 9)
            same = equal(again, expected) and (jaccard_graph(x, 9, 3, neighbours=again) != graph).nnz == 0
            wrong.extend([] if same else [1])

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def python(script, *, seconds=60):
    """The output of a script in a process of its own, and its exit code."""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=seconds)
    return ended.stdout + ended.stderr[-500:], ended.returncode


def test_a_fork_after_use():
    script = """
import os, numpy as np
from reid_fast import _C
rows = np.eye(600, 64, dtype=np.float32)[np.arange(600) % 64]
expected = _C.knn(rows, 5, 0, 600)[0]
child = os.fork()
if child == 0:
    os._exit(17 if (_C.knn(rows, 5, 0, 600)[0] == expected).all() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert python(script) == ("17\n", 0)


def test_the_work_is_done_by_the_threads_that_can_be_had():
    """std::thread throws where the system has no more, and what has begun would take the process with it."""
    script = """
import os, resource, numpy as np
from reid_fast import _C
rows = np.arange(200_000, dtype=np.int32)[:, None]
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for threads in ("200", "1000000", "9" * 40):
    os.environ["OMP_NUM_THREADS"] = threads
    _C.check_neighbours(rows, np.ones((200_000, 1), np.float32))
print("checked")
"""
    assert python(script) == ("checked\n", 0)


def test_as_many_threads_as_processors_are_allowed(monkeypatch):
    """Not as many as the machine has: a job may use 8 of 128."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    allowed = os.sched_getaffinity(0)
    rows = np.eye(20_000, 200, dtype=np.float32)[np.arange(20_000) % 200]
    rows[:, 1:] += np.random.default_rng(0).normal(size=(20_000, 199)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    seen, done = set(), threading.Event()

    def watch():
        while not done.wait(0.005):
            seen.add(len(os.listdir("/proc/self/task")))

    watcher = threading.Thread(target=watch)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        watcher.start()
        before = len(os.listdir("/proc/self/task"))
        _C.knn(rows, 5, 0, 8000)
    finally:
        done.set()
        watcher.join()
        os.sched_setaffinity(0, allowed)
    assert max(seen) <= before + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_long_call_in_time(number):
    script = f"""
import os, signal, threading, time, numpy as np
from reid_fast import _C
def ended(*_):
    raise InterruptedError
signal.signal({number.value}, ended)
rows = np.random.default_rng(0).normal(size=(40000, 512)).astype(np.float32)
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
def send():
    global sent
    sent = time.monotonic()
    os.kill(os.getpid(), {number.value})
threading.Timer(0.3, send).start()
try:
    _C.knn(rows, 30, 0, len(rows))
except InterruptedError:
    print("within a second" if time.monotonic() - sent < 1 else time.monotonic() - sent)
"""
    assert python(script) == ("within a second\n", 0)
