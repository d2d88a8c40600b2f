"""The approximate search: its stated recall against a measured one."""

import sys

import numpy as np
import pytest
from inputs import planted

import reid_fast
from reid_fast.clustering.knn_ivf import knn_ivf


def test_approximate_search_states_its_recall():
    pytest.importorskip("faiss")
    rows = planted(3000, 24)
    truth, _ = reid_fast.knn(rows, 10)
    index, similarity, recall = knn_ivf(rows, 10, probes=12)
    assert (index[:, 0] == np.arange(3000)).all()
    measured = np.mean([len(np.intersect1d(a, b)) for a, b in zip(index, truth, strict=True)]) / 10
    assert 0.7 < recall <= 1
    assert abs(recall - measured) < 0.03
    np.testing.assert_allclose(similarity[:, 1], (rows * rows[index[:, 1]]).sum(1), atol=1e-6)
    assert knn_ivf(rows, 10, lists=20, probes=20)[2] > 0.999


def test_approximate_search_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(reid_fast.errors.UserError, match="pip install faiss"):
        knn_ivf(planted(20, 4), 3)
