"""Re-ranking against the published algorithm on dense matrices, in NumPy and double precision."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import planted
from memory import peak_bytes
from sklearn.metrics import average_precision_score

import reid_fast
from reid_fast import _C, metrics
from reid_fast.metrics import score_queries


def published(query, gallery, k1=20, k2=6, share=0.3):
    """[Q, G] distances, by dense matrices of all pairs; ties rank the row itself first, then by index."""
    rows = np.concatenate([query, gallery]).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    n = len(rows)
    distance = (2 - 2 * rows @ rows.T) ** 2
    distance /= distance.max(axis=1, keepdims=True)
    np.fill_diagonal(distance, -1)
    ranking = np.argsort(distance.round(11), axis=1, kind="stable")
    np.fill_diagonal(distance, 0)

    def reciprocal(i, k):
        forward = ranking[i, : k + 1]
        return {j for j in forward.tolist() if i in ranking[j, : k + 1]}

    weights = np.zeros((n, n))
    for i in range(n):
        own = reciprocal(i, k1)
        expanded = set(own)
        for candidate in own:
            other = reciprocal(candidate, int(np.around(k1 / 2)))
            if len(other & own) > 2 / 3 * len(other):
                expanded |= other
        members = sorted(expanded)
        weight = np.exp(-distance[i, members])
        weights[i, members] = weight / weight.sum()
    if k2 != 1:
        weights = np.stack([weights[ranking[i, :k2]].mean(0) for i in range(n)])
    queries = len(query)
    shared = np.stack([np.minimum(row, weights[queries:]).sum(1) for row in weights[:queries]])
    return (1 - shared / (2 - shared)) * (1 - share) + distance[:queries, queries:] * share


def reranked(query, gallery, *arguments):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "k1 = .* neighbours asked")
        made = reid_fast.rerank(query, gallery, *arguments)
    return made.distances(slice(None)).numpy()


def people(queries, images, seed=0, width=16):
    rows = planted(queries + images, width, seed, per_cluster=9)
    return rows[:queries], rows[queries:]


@pytest.mark.parametrize("k1", [1, 3, 5, 6, 7, 20])  # k1/2 is rounded half to even
@pytest.mark.parametrize("k2", [1, 2, 6])
def test_distances_are_the_published_ones(k1, k2):
    query, gallery = people(23, 131)
    k2 = min(k2, k1 + 1)
    np.testing.assert_allclose(reranked(query, gallery, k1, k2), published(query, gallery, k1, k2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("queries", "images"), [(1, 1), (1, 2), (1, 61), (3, 9), (20, 1), (47, 301)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_awkward_numbers_of_images(queries, images, share):
    query, gallery = people(queries, images, seed=queries)
    expected = published(query, gallery, share=share)
    np.testing.assert_allclose(reranked(query, gallery, 20, 6, share), expected, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 40), st.integers(1, 8))
def test_duplicates_and_symmetric_neighbourhoods(seed, queries, images, k1):
    rng = np.random.default_rng(seed)
    rows = rng.choice([-0.5, 0.5], (queries + images, 4))  # unit rows with exact products: many ties
    rows[0], rows[1] = 0.5, -0.5  # or all might be equal
    k2 = int(rng.integers(1, k1 + 2))
    expected = published(rows[:queries], rows[queries:], k1, k2)
    np.testing.assert_allclose(reranked(rows[:queries], rows[queries:], k1, k2), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [3, 4])  # products are off by rounding, or exact
def test_equal_images_lie_at_zero(width):
    rows = np.full((7, width), 0.25, np.float32)
    np.testing.assert_array_equal(reranked(rows[:2], rows[2:], 3, 2, 1.0), 0)
    np.testing.assert_allclose(reranked(rows[:2], rows[2:], 6, 6, 0.3), 0, atol=1e-6)


def precision(distance, q_pids, q_cams, g_pids, g_cams):
    found = []
    for row, pid, cam in zip(distance, q_pids, q_cams, strict=True):
        seen = (g_pids != pid) | (g_cams != cam)
        if (g_pids[seen] == pid).any():
            found.append(average_precision_score(g_pids[seen] == pid, -row[seen]))
    return np.mean(found)


def test_the_mean_average_precision_is_the_published_one():
    rng = np.random.default_rng(3)
    query, gallery = people(60, 400, seed=5, width=24)
    centres = np.concatenate([query, gallery])[::9]
    pids = [np.argmax(part @ centres.T, axis=1) for part in (query, gallery)]
    cams = [rng.integers(0, 4, len(part)) for part in (query, gallery)]
    ids = pids[0], cams[0], pids[1], cams[1]
    made = reid_fast.rerank(query, gallery)
    scores = score_queries(lambda rows: -made.distances(rows), *ids, device=torch.device("cpu"), block=7).mean()
    assert scores.mAP == pytest.approx(precision(published(query, gallery), *ids), abs=1e-6)
    plain = precision(-query @ gallery.T, *ids)
    assert abs(scores.mAP - plain) > 1e-3, "re-ranking changes the ranking here"


def test_the_nearest_are_those_of_the_distances(monkeypatch):
    query, gallery = people(13, 90)
    made, seen = reid_fast.rerank(query, gallery, 8, 3), []
    monkeypatch.setattr(metrics, "_BLOCK_ELEMENTS", 5 * 90)
    index, distance = made.nearest(7, lambda *step: seen.append(step))
    expected = made.distances(slice(None)).numpy()
    np.testing.assert_allclose(distance.numpy(), np.sort(expected, axis=1)[:, :7], rtol=0, atol=1e-6)
    np.testing.assert_allclose(distance, np.take_along_axis(expected, index.numpy(), 1), rtol=0, atol=1e-6)
    assert all(len(set(row)) == 7 for row in index.tolist())
    assert seen == [(5, 13), (10, 13), (13, 13)]
    assert made.nearest(1000)[0].shape == (13, 90)


def test_threads_do_not_matter(monkeypatch):
    query, gallery = people(29, 600, width=12)
    found = []
    for threads in "1", "3":
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(reid_fast.rerank(query, gallery, 12, 4).distances(slice(3, 26)).numpy())
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("kind", ["spread", "crowd", "halves"])
@pytest.mark.parametrize("kernel", _C.similarity_kernels())
def test_the_smallest_cosine_of_a_row(kind, kernel):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(211, 37))
    if kind == "crowd":  # which the products of no kernel tell apart
        rows = rows[:1] + 1e-4 * rows
    elif kind == "halves":  # a hundred rows as far as can be
        rows = np.repeat([rows[0], -rows[0]], [105, 106], axis=0)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    expected = (rows.astype(np.float64) @ rows.T.astype(np.float64)).min(1)
    np.testing.assert_allclose(_C.knn_and_farthest(rows, 2, 0, 211, kernel)[2], expected, rtol=0, atol=3e-7)
    part, whole = (_C.knn_and_farthest(rows, 2, *of, kernel)[2] for of in ((50, 99), (0, 211)))
    np.testing.assert_array_equal(part, whole[50:99])


def test_no_matrix_of_all_pairs_is_formed():
    query, gallery = people(300, 11700, width=32)

    def work():
        made = reid_fast.rerank(query, gallery)
        for start in range(0, len(made), 30):
            made.distances(slice(start, start + 30))

    assert peak_bytes(work) < 12000 * 12000  # a quarter of a matrix in float32


def test_what_cannot_be_ranked_is_refused():
    query, gallery = people(3, 30)
    for arguments, text in (
        ((0, 1), "k1 must be at least 1"),
        ((5, 7), r"k2 must lie in 1..k1 \+ 1 = 6"),
        ((5, 0), "k2 must lie"),
        ((5, 2, 1.5), "lambda_ must lie"),
    ):
        with pytest.raises(ValueError, match=text):
            reid_fast.rerank(query, gallery, *arguments)
    with pytest.raises(ValueError, match="16 columns, gallery features 15"):
        reid_fast.rerank(query, gallery[:, 1:])
    gallery[7] = 0
    with pytest.raises(ValueError, match="row 7 is zero"):
        reid_fast.rerank(query, gallery)
    with pytest.warns(UserWarning, match="k1 = 20 neighbours asked of 6 rows: each has 5"):
        reid_fast.rerank(query, gallery[:3])


@pytest.mark.gpu
def test_cuda_equals_cpu():
    query, gallery = people(47, 501, width=64)
    made = reid_fast.rerank(torch.from_numpy(query).cuda(), torch.from_numpy(gallery).cuda())
    assert made.distances(slice(2, 9)).is_cuda
    np.testing.assert_allclose(made.distances(slice(None)).cpu(), reranked(query, gallery), rtol=0, atol=1e-5)
