"""The approximate search: against the exact one, a literal one among lists, crowds, and its stated recall."""

import numpy as np
import pytest
import torch
from inputs import planted

import reid_fast
from reid_fast import _C
from reid_fast.clustering.knn_ivf import _in_lists, knn_ivf


def ranked(rows, i, candidates, k):
    """The k most similar of the candidates, i itself first, the lower index first on ties."""
    score = {j: float(np.float32(rows[i] @ rows[j])) for j in candidates if j != i}
    return [i, *sorted(score, key=lambda j: (-score[j], j))[: k - 1]]


def literal(rows, k, lists, near):
    """Within near lists, then among the neighbours of neighbours."""
    own = {i: number for number, members in enumerate(lists) for i in members}
    first = [ranked(rows, i, np.concatenate([lists[m] for m in near[own[i]]]), k) for i in range(len(rows))]
    return [ranked(rows, i, {u for j in first[i] for u in first[j]}, k) for i in range(len(rows))]


@pytest.mark.parametrize("sizes", [(5, 47, 48, 50, 100), (7, 230, 1, 12)])
def test_a_row_is_compared_with_near_lists_and_with_its_neighbours_neighbours(sizes):
    rng = np.random.default_rng(0)
    rows = rng.integers(-2, 3, (sum(sizes), 4)).astype(np.float32)  # exact products, and many ties
    rows[(rows == 0).all(1)] = 1
    members, start = rng.permutation(len(rows)).astype(np.int32), np.concatenate([[0], np.cumsum(sizes)])
    near = np.array([sorted({i, i ^ 1} & set(range(len(sizes)))) for i in range(len(sizes))], dtype=object)
    near_start = np.concatenate([[0], np.cumsum([len(part) for part in near])])
    index, similarity = _C.knn_in_lists(rows, 5, members, start, near_start, np.concatenate(near).astype(np.int32))
    assert index.tolist() == literal(rows, 5, np.split(members, start[1:-1]), near)
    np.testing.assert_array_equal(similarity, np.einsum("nd,nkd->nk", rows, rows[index]))


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (40, 40), (700, 12)])
def test_with_all_lists_near_it_is_the_exact_search(n, k):
    rows = planted(n, 24)
    *found, recall = knn_ivf(rows, k, lists=min(n, 20), probes=20)
    assert recall == 1
    for ours, exact in zip(found, reid_fast.knn(rows, k), strict=True):
        np.testing.assert_array_equal(ours, exact)


def test_it_states_its_recall_and_repeats_itself(monkeypatch):
    rows = planted(6000, 24)
    truth, _ = reid_fast.knn(rows, 10)
    index, similarity, recall = knn_ivf(rows, 10, probes=3, sample=3000)
    measured = np.mean([len(np.intersect1d(a, b)) for a, b in zip(index, truth, strict=True)]) / 10
    assert 0.5 < recall < 0.99
    assert abs(recall - measured) < 0.01
    assert (similarity[:, 1:-1] >= similarity[:, 2:]).all()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    again, _, _ = knn_ivf(rows, 10, probes=3)
    np.testing.assert_array_equal(again, index)
    assert knn_ivf(rows, 10)[2] > recall


@pytest.mark.parametrize("distinct", [1, 40])
def test_crowds_of_equal_rows_have_sound_rankings(distinct):
    rows = np.concatenate([planted(distinct, 8)[np.zeros(3000, int)], planted(500, 8)])
    index, similarity, recall = knn_ivf(rows, 30, probes=2)
    _C.check_neighbours(index, similarity)
    assert recall > 0.8


def test_long_lists_are_cut_up_and_empty_ones_left_out():
    own = torch.cat([torch.full((90,), 3), torch.arange(10) % 3 * 2])
    members, start, centroids = _in_lists(own, torch.arange(5.0)[:, None])
    assert sorted(members.tolist()) == list(range(100))
    assert np.diff(start).tolist() == [4, 3, 40, 40, 10, 3]
    assert centroids[:, 0].tolist() == [0, 2, 3, 3, 3, 4]
    assert all(len(set(own[part].tolist())) == 1 for part in np.split(members, start[1:-1]))


def test_few_probes_still_give_k_neighbours():
    index, similarity, _ = knn_ivf(planted(300, 8), 30, lists=100, probes=1)
    _C.check_neighbours(index, similarity)


def test_lists_that_do_not_fit_are_refused():
    rows = planted(10, 4)
    start, near = np.array([0, 9]), np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="lists: members must be"):
        _C.knn_in_lists(rows, 2, np.arange(10, dtype=np.int32), start, np.array([0, 1]), near)
