"""The CUDA stages: compiled for every architecture without a spilled register; on a GPU, equal to the CPU's."""

import re
import runpy
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import planted

import reid_fast
from reid_fast import _C
from reid_fast.clustering import cupy_graph

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_every_architecture_compiles_without_spills(tmp_path):
    setup = runpy.run_path(str(ROOT / "setup.py"))
    command = [*setup["nvcc_command"](Path(shutil.which("nvcc"))), "-Xptxas=-v", "-c"]

    def compiled(source):
        out = tmp_path / f"{source.stem}.o"
        return subprocess.run(
            [*command, source, "-o", out], cwd=ROOT, capture_output=True, text=True, check=True
        ).stderr

    with ThreadPoolExecutor() as pool:
        report = "".join(pool.map(compiled, sorted((ROOT / "csrc/cuda").glob("*.cu"))))
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", report)]
    targets = sum(flag.startswith("-gencode") and "code=sm_" in flag for flag in command)
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", report)
    assert len({arch for _, arch in kernels}) == targets >= 4
    assert len(spills) == 2 * len(kernels) > 40
    assert max(spills) == 0, report


def test_features_on_a_gpu_that_the_build_does_not_know(monkeypatch):
    cupy_graph.say_that_the_cpu_clusters.cache_clear()
    with pytest.warns(UserWarning, match="has no CUDA"):
        cupy_graph.say_that_the_cpu_clusters()
    cupy_graph.say_that_the_cpu_clusters()


def test_a_graph_on_the_host_stays_there():
    graph = reid_fast.jaccard_graph(planted(60, 8))
    assert not cupy_graph.is_on_device(graph)
    assert cupy_graph.on_host(graph) is graph


@pytest.mark.gpu
@pytest.mark.skipif(not _C.cuda, reason="_C was built without CUDA")
@pytest.mark.parametrize(
    ("n", "width", "k1", "k2"), [(1, 3, 1, 1), (50, 7, 20, 6), (3000, 64, 30, 6), (3000, 64, 9, 1)]
)
def test_device_and_host_agree(n, width, k1, k2):
    rows = torch.from_numpy(planted(n, width))
    neighbours = reid_fast.knn(rows, k1)
    host = reid_fast.jaccard_graph(rows, k1, k2, 0.7, neighbours=neighbours)
    device = reid_fast.jaccard_graph(rows.cuda(), k1, k2, 0.7, neighbours=neighbours)
    again = cupy_graph.on_host(reid_fast.jaccard_graph(rows.cuda(), k1, k2, 0.7, neighbours=neighbours))
    found = cupy_graph.on_host(device)
    assert all((getattr(found, part) == getattr(again, part)).all() for part in ("indptr", "indices", "data"))
    assert found.has_sorted_indices
    assert abs(found - host).max() < 1e-5 or abs(found.nnz - host.nnz) <= 4
    for eps in (0.4, 0.55, 0.7):
        assert (reid_fast.dbscan(device, eps) == reid_fast.dbscan(found, eps)).all()


@pytest.mark.gpu
def test_search_on_the_device():
    rows = torch.from_numpy(planted(3000, 64))
    index, similarity = reid_fast.knn(rows.cuda(), 30)
    host, expected = reid_fast.knn(rows, 30)
    assert index.is_cuda
    np.testing.assert_allclose(similarity.cpu(), expected, atol=1e-5)
    assert (index.cpu().sort().values == host.sort().values).float().mean() > 0.9999
