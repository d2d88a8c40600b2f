"""The border of the extension's device half, without a GPU: `_C` over emulated CUDA, stand-ins for torch's and CuPy's.

A tensor of the stand-in lies on the host but says that it is on cuda:1. What `_C` queues on a stream is done when
somebody looks at such a tensor, and memory may go only then: too early or too late shows.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import shutil
import sys
import sysconfig
import types
import weakref

import numpy as np
import pybind11
import pytest
import torch
from engine_build import CPU_SOURCES, CSRC, objects, program
from inputs import planted
from scipy import sparse

import reid_fast
from reid_fast import _C
from reid_fast.clustering import cupy_graph, jaccard

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]
DEVICE = torch.device("cuda", 1)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """`_C` whose CUDA half runs on the stand-in, and the library that it is."""
    folder = tmp_path_factory.mktemp("emulated")
    include = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    sources = [CSRC / "bindings.cpp", *CPU_SOURCES, *sorted((CSRC / "cuda").glob("*.cu"))]
    parts = objects(sources, folder, ["-O0", "-g0", "-fPIC", "-DREID_WITH_CUDA", *include])
    path = program(folder / "_C.so", parts, ["-shared", "-fPIC"])
    spec = importlib.util.spec_from_file_location("_C", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    library = ctypes.CDLL(str(path))
    library.emulated_stream.restype = ctypes.c_void_p
    library.emulated_wait.argtypes = [ctypes.c_void_p]
    return module, library


class Cuda:
    """torch as `cupy_graph` sees it: one more device, with a stream and memory of its own."""

    def __init__(self, library, free=1 << 20):
        self.library, self.stream, self.free = library, library.emulated_stream(), free
        self.current = None
        self.waiting = []  # memory that nobody owns, but queued work may still use
        self.alive = 0
        self.allocations = 0
        self.fails_at = None
        self.cuda = types.SimpleNamespace(
            device=self.device,
            current_stream=lambda: types.SimpleNamespace(cuda_stream=self.checked(self.stream)),
        )

    def __getattr__(self, name):
        return getattr(torch, name)

    @contextlib.contextmanager
    def device(self, device):
        before, self.current = self.current, device
        try:
            yield
        finally:
            self.current = before

    def checked(self, value):
        assert self.current == DEVICE
        return value

    def wait(self):
        self.library.emulated_wait(self.stream)
        self.waiting.clear()

    def empty(self, size, *, dtype, device):
        assert self.checked(device) == DEVICE
        if self.allocations == self.fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.allocations += 1
        memory = np.full(max(1, size * dtype.itemsize), 0xC5, np.uint8)
        self.alive += 1
        weakref.finalize(memory, self.gone)
        return self.tensor(torch.from_numpy(memory)[: size * dtype.itemsize].view(dtype))

    def gone(self):
        self.alive -= 1

    def from_dlpack(self, array):
        return self.tensor(torch.from_dlpack(array))

    def tensor(self, tensor):
        cuda = self

        class OnDevice(torch.Tensor):
            device = DEVICE
            is_cuda = True

            @classmethod
            def __torch_function__(cls, func, types, args=(), kwargs=None):
                if func is torch.Tensor.data_ptr:  # an address is all that does not wait for the stream
                    return super().__torch_function__(func, types, args, kwargs)
                if func is torch.Tensor.to and args[1] == DEVICE:
                    return args[0]
                cuda.wait()
                if func is torch.Tensor.cpu:
                    return args[0].as_subclass(torch.Tensor).clone()
                return super().__torch_function__(func, types, args, kwargs)

        moved = tensor.as_subclass(OnDevice)
        weakref.finalize(moved, self.waiting.append, tensor)
        return moved


class CupyArray:
    device = contextlib.nullcontext()

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **arguments):
        return self.values.__dlpack__()

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class CupyCsr:
    def __init__(self, parts, shape):
        self.data, self.indices, self.indptr = parts
        self.shape = shape

    def tocsr(self):
        return self

    def get(self):
        parts = tuple(part.values for part in (self.data, self.indices, self.indptr))
        return sparse.csr_matrix(parts, shape=self.shape)


CupyCsr.__module__ = "cupyx.scipy.sparse._csr"


def on_cupy(graph, index_type=np.int32):
    parts = graph.data, graph.indices.astype(index_type), graph.indptr.astype(index_type)
    return CupyCsr([CupyArray(np.array(part)) for part in parts], graph.shape)


@pytest.fixture
def cuda(emulated, monkeypatch):
    """The stand-ins in place, CuPy's among them."""
    module, library = emulated
    cuda = Cuda(library)
    monkeypatch.setattr(cupy_graph, "torch", cuda)
    monkeypatch.setattr(cupy_graph, "free_bytes", lambda device: cuda.free)
    monkeypatch.setattr(cupy_graph, "_C", module)
    monkeypatch.setattr(jaccard, "_C", module)
    cupy = types.SimpleNamespace(from_dlpack=lambda tensor: CupyArray(tensor.as_subclass(torch.Tensor).numpy()))
    monkeypatch.setattr(cupy_graph, "_cupy", lambda: cupy)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.sparse", types.SimpleNamespace(csr_matrix=CupyCsr))
    for name in ("cupyx", "cupyx.scipy"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(scipy=None, sparse=None))
    monkeypatch.setattr(sys.modules["cupyx.scipy"], "sparse", sys.modules["cupyx.scipy.sparse"])
    monkeypatch.setattr(sys.modules["cupyx"], "scipy", sys.modules["cupyx.scipy"])
    yield cuda
    cuda.wait()


def inputs(n=60, width=8, k=9):
    rows = torch.from_numpy(planted(n, width))
    index, similarity = reid_fast.knn(rows, k)
    return rows, index, similarity


def device_graph(cuda, rows, index, similarity, k2=3, max_distance=0.7):
    moved = (cuda.tensor(part.clone()) for part in (rows, index, similarity))
    return cupy_graph.jaccard_graph(*moved, k2, max_distance)


def host_graph(rows, index, similarity, k2=3, max_distance=0.7):
    return reid_fast.jaccard_graph(rows, index.shape[1], k2, max_distance, neighbours=(index, similarity))


def assert_same(found, expected):
    assert found.shape == expected.shape
    for part in ("indptr", "indices"):
        assert (getattr(found, part) == getattr(expected, part)).all()
    # The extension's own dot product may be a vector variant, which rounds otherwise.
    np.testing.assert_allclose(found.data, expected.data, rtol=0, atol=1e-6)


def assert_clean(cuda):
    cuda.wait()
    gc.collect()
    assert cuda.alive == 0
    assert cuda.current is None


def test_the_graph_and_its_labels_are_the_hosts_and_all_memory_goes(cuda):
    found = device_graph(cuda, *inputs())
    gc.collect()
    cuda.wait()
    assert cuda.alive == 2  # what the graph holds; its offsets were copied into 32 bits
    assert type(found) is CupyCsr
    assert found.indptr.values.dtype == np.int32
    expected = host_graph(*inputs())
    assert_same(found.get(), expected)
    for eps in (0.3, 0.5, 0.7):
        labels = reid_fast.dbscan(found, eps)
        assert labels.dtype == np.int64
        assert (labels == reid_fast.dbscan(found.get(), eps)).all()
    del found
    assert_clean(cuda)


@pytest.mark.parametrize("convert", [lambda x: x.double(), lambda x: x.t().contiguous().t(), lambda x: x.repeat(1, 2)])
def test_features_and_neighbours_of_any_type_and_strides(cuda, convert):
    rows, index, similarity = inputs()
    wide = rows.repeat(1, 2)[:, : rows.shape[1]]
    neighbours = index.long().t().contiguous().t(), similarity.double().repeat(1, 2)
    for features in (convert(rows), wide):
        moved = [cuda.tensor(part) for part in (features, *neighbours)]
        moved[1] = cuda.tensor(torch.cat([moved[1], moved[1]], 1))
        found = reid_fast.jaccard_graph(moved[0], 9, 3, 0.7, neighbours=tuple(moved[1:]))
        assert_same(found.get(), host_graph(rows, index, similarity))
    del found, moved
    assert_clean(cuda)


def test_little_memory_gives_the_same_graph(cuda):
    ample = device_graph(cuda, *inputs()).get()
    before = cuda.allocations
    cuda.free = 0
    scarce = device_graph(cuda, *inputs()).get()
    assert cuda.allocations == 2 * before
    for part in ("indptr", "indices", "data"):
        assert (getattr(ample, part) == getattr(scarce, part)).all()


def test_whichever_allocation_fails_the_error_is_torchs_and_the_rest_is_freed(cuda):
    device_graph(cuda, *inputs())
    for failing in range(cuda.allocations):
        cuda.allocations, cuda.fails_at = 0, failing
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            device_graph(cuda, *inputs())
    assert failing > 15
    assert_clean(cuda)


def test_an_unsound_ranking_is_named_before_anything_runs(cuda):
    rows, index, similarity = inputs()
    index[9, 3] = -1
    with pytest.raises(ValueError, match="row 9 names -1, which does not exist"):
        device_graph(cuda, rows, index, similarity)
    assert cuda.allocations == 0


@pytest.mark.parametrize(("name", "value"), [("_cupy", lambda: None), ("_CUPY_ENTRIES", 100)])
def test_what_cupy_cannot_hold_goes_to_the_host(cuda, monkeypatch, name, value):
    monkeypatch.setattr(cupy_graph, name, value)
    found = device_graph(cuda, *inputs())
    assert type(found) is sparse.csr_matrix
    assert_same(found, host_graph(*inputs()))
    assert_clean(cuda)


@pytest.mark.parametrize("index_type", [np.int32, np.int64])
def test_labels_of_any_cupy_graph(cuda, index_type):
    graph = host_graph(*inputs())
    wide = on_cupy(graph, index_type)
    wide.data = CupyArray(np.repeat(graph.data.astype(np.float64), 2)[::2])
    assert (reid_fast.dbscan(wide, 0.5) == reid_fast.dbscan(graph, 0.5)).all()
    assert_clean(cuda)


@pytest.mark.parametrize(
    ("part", "place", "value", "text"),
    [
        ("indptr", 0, 1, "ascend"),
        ("indptr", 3, 10**6, "ascend"),
        ("indptr", -1, 5, "ascend"),
        ("indices", 7, -1, "does not exist"),
        ("indices", 7, 60, "does not exist"),
        ("indices", 7, 2**32, "does not exist"),
        ("shape", 0, (60, 61), "square"),
    ],
)
def test_an_unsound_cupy_graph_is_refused(cuda, part, place, value, text):
    graph = on_cupy(host_graph(*inputs()), np.int64)
    if part == "shape":
        graph.shape = value
    else:
        getattr(graph, part).values[place] = value
    with pytest.raises(ValueError, match=text):
        reid_fast.dbscan(graph, 0.5)
    assert cuda.allocations == 0


def test_a_second_copy_of_the_extension_leaves_the_first_its_own_errors(emulated):
    rows, index, similarity = (part.numpy() for part in inputs())
    assert emulated[0].TooLarge is not _C.TooLarge
    for module in (_C, emulated[0]):
        with pytest.raises(module.TooLarge, match="more than 10 entries"):
            module.jaccard_graph(rows, index, similarity, 3, 0.7, 10)
