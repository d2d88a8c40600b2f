"""Scores against a literal per-query reference, the golden value, and the bound on memory."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reid_fast.errors import UserError
from reid_fast.metrics import Scores, check_evaluable, label_scores, rank_scores


def reference(query, q_pids, q_cams, gallery, g_pids, g_cams):
    """One query at a time, as the definition reads."""
    rows = []
    for feature, pid, cam in zip(query, q_pids, q_cams, strict=True):
        kept = ~((g_pids == pid) & (g_cams == cam)) & (g_pids != -1)
        score, correct = gallery[kept] @ feature, g_pids[kept] == pid
        if correct.any():
            ranks = np.flatnonzero(correct[np.argsort(-score, kind="stable")]) + 1
            rows.append((average_precision_score(correct, score), ranks[0], len(ranks) / ranks[-1]))
    ap, first, inp = np.array(rows).T
    return Scores(ap.mean(), *((first <= k).mean() for k in (1, 5, 10)), inp.mean(), len(rows), len(query) - len(rows))


def problem(queries, images, *, identities=9, cameras=3, tied=False, seed=0):
    """Features whose products are exact in float32, so that ties are ties in any order of summation."""
    rng = np.random.default_rng(seed)
    levels = 2 if tied else 2**9
    query = rng.integers(-levels, levels + 1, (queries, 5)).astype(np.float32) / levels
    gallery = rng.integers(-levels, levels + 1, (images, 5)).astype(np.float32) / levels
    q_ids = rng.integers(1, identities, queries), rng.integers(0, cameras, queries)
    g_ids = rng.integers(-1, identities, images), rng.integers(0, cameras, images)
    return query, *q_ids, gallery, *g_ids


def assert_same(got, expected):
    for field in Scores.__dataclass_fields__:
        assert getattr(got, field) == pytest.approx(getattr(expected, field), abs=1e-12), field


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("queries", "images"), [(1, 60), (13, 31), (37, 257)])
def test_equals_the_literal_reference(queries, images, tied):
    data = problem(queries, images, tied=tied)
    assert_same(rank_scores(*data), reference(*data))


@pytest.mark.parametrize("block", [1, 7, 37, 1000])
def test_the_block_does_not_matter(block):
    data = problem(37, 101, identities=40, tied=True)
    scores = rank_scores(*data, block=block)
    assert scores.skipped > 0
    assert scores == rank_scores(*data)


def test_golden_value():
    i, j = np.arange(60)[:, None], np.arange(16)
    g = i // 6
    features = np.sin(1.3 * (g + 1) * (j + 1)) + 0.9 * np.cos(0.7 + 2.1 * i + 1.1 * j + 0.37 * i * j)
    features = torch.from_numpy(features / np.linalg.norm(features, axis=1, keepdims=True)).float()
    pids, cams, is_query = g[:, 0], i[:, 0] % 3, i[:, 0] % 6 == 0
    query, gallery = ((features[part], pids[part], cams[part]) for part in (is_query, ~is_query))
    scores = rank_scores(*query, *gallery)
    assert scores.mAP == pytest.approx(0.903674, abs=1e-5)
    assert (scores.rank1, scores.rank5, scores.rank10) == pytest.approx((0.8, 1, 1))


def test_equal_scores_rank_by_gallery_index():
    one = np.ones((1, 1), dtype=np.float32)
    gallery = np.ones((6, 1), dtype=np.float32)
    scores = rank_scores(one, [1], [0], gallery, np.array([2, 1, 2, 1, 2, 2]), np.ones(6, dtype=np.int64))
    assert (scores.rank1, scores.rank5) == (0, 1)
    assert scores.mINP == pytest.approx(2 / 4)
    assert scores.mAP == pytest.approx(2 / 6)  # one step that holds all six


def test_same_camera_matches_and_junk_are_not_ranked():
    gallery = np.array([[1.0], [0.9], [0.8], [0.5]], dtype=np.float32)
    scores = rank_scores(gallery[:1], [4], [0], gallery, [4, -1, 4, 0], [0, 1, 1, 1])
    assert scores == Scores(1, 1, 1, 1, 1, queries=1, skipped=0)


def test_no_tensor_is_larger_than_a_block_of_scores():
    sizes = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    data = problem(211, 97)
    with Record():
        rank_scores(*data, block=8)
    assert max(sizes) == max(8 * 97, 211 * 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_float_types(dtype):
    query, q_pids, q_cams, gallery, g_pids, g_cams = problem(13, 31, tied=True)
    features = torch.tensor(query, dtype=dtype), torch.tensor(gallery, dtype=dtype)
    got = rank_scores(features[0], q_pids, q_cams, features[1], g_pids, g_cams)
    assert got == rank_scores(query, q_pids, q_cams, gallery, g_pids, g_cams)


def test_the_callers_precision_changes_nothing(lowered_precision):
    data = problem(37, 257)
    expected = reference(*data)
    assert_same(rank_scores(*data), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(rank_scores(*data), expected)


def test_progress_counts_queries():
    seen = []
    rank_scores(*problem(13, 31), block=5, progress=lambda *step: seen.append(step))
    assert seen == [(5, 13), (10, 13), (13, 13)]


def test_one_camera_cannot_be_scored():
    query, q_pids, q_cams, gallery, g_pids, g_cams = problem(13, 31, cameras=1)
    with pytest.raises(UserError, match="more than one camera"):
        rank_scores(query, q_pids, q_cams, gallery, g_pids, g_cams)
    with pytest.raises(UserError, match="more than one camera"):
        check_evaluable(q_pids, q_cams, g_pids, g_cams)


def test_the_check_counts_what_will_be_scored():
    query, q_pids, q_cams, gallery, g_pids, g_cams = problem(37, 101, identities=40)
    scores = rank_scores(query, q_pids, q_cams, gallery, g_pids, g_cams)
    assert check_evaluable(q_pids, q_cams, g_pids, g_cams) == scores.queries


def test_bad_arguments_are_named():
    query, q_pids, q_cams, gallery, g_pids, g_cams = problem(13, 31)
    with pytest.raises(ValueError, match="gallery: 31 features, but pids and cams of shape"):
        rank_scores(query, q_pids, q_cams, gallery, g_pids[1:], g_cams)
    with pytest.raises(ValueError, match="5 columns, gallery features 4"):
        rank_scores(query, q_pids, q_cams, gallery[:, 1:], g_pids, g_cams)
    query[3, 2] = np.nan
    with pytest.raises(ValueError, match="query features: row 3"):
        rank_scores(query, q_pids, q_cams, gallery, g_pids, g_cams)


@pytest.mark.gpu
def test_cuda_equals_cpu(lowered_precision):
    query, q_pids, q_cams, gallery, g_pids, g_cams = data = problem(37, 257, tied=True)
    features = torch.tensor(query).cuda(), torch.tensor(gallery).cuda()
    with torch.autocast("cuda", torch.float16):
        got = rank_scores(features[0], q_pids, q_cams, features[1], g_pids, g_cams)
    assert_same(got, rank_scores(*data))


def test_label_scores_count_pairs_and_entropies_over_the_clustered_known_images():
    rng = np.random.default_rng(0)
    labels, pids = rng.integers(-1, 5, 83), rng.integers(-1, 4, 83)
    labels[:40] = pids[:40]
    scores = label_scores(labels, pids)

    kept = (labels >= 0) & (pids >= 0)
    table = np.array([[np.sum(kept & (labels == k) & (pids == p)) for p in range(4)] for k in range(5)])
    rows, columns, n = table.sum(1), table.sum(0), table.sum()

    def pairs(counts):
        return (counts * (counts - 1) / 2).sum()

    def entropy(counts):
        share = counts[counts > 0] / n
        return -(share * np.log(share)).sum()

    chance = pairs(rows) * pairs(columns) / pairs(n)
    ari = (pairs(table) - chance) / ((pairs(rows) + pairs(columns)) / 2 - chance)
    mutual = entropy(rows) + entropy(columns) - entropy(table.ravel())
    assert scores["ari"] == pytest.approx(ari)
    assert scores["nmi"] == pytest.approx(2 * mutual / (entropy(rows) + entropy(columns)))


@pytest.mark.parametrize(("labels", "pids"), [([-1, -1, -1], [0, 0, 1]), ([0, 0, -1], [-1, -1, 2])])
def test_label_scores_are_absent_where_nothing_is_known(labels, pids):
    assert label_scores(np.array(labels), np.array(pids)) == {}


def test_label_scores_of_the_true_labels_under_other_names_are_one():
    pids = np.repeat(np.arange(5), 7)
    assert label_scores((pids + 2) % 5, pids) == pytest.approx({"nmi": 1.0, "ari": 1.0})
