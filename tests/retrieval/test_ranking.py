"""Ranked lists against a whole sort of every row, and against the scores of `evaluate`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import planted

import reid_fast
from reid_fast.data.sets import ImageSet, Paths, market_style
from reid_fast.errors import UserError
from reid_fast.metrics import rank_scores
from reid_fast.retrieval import own_files, rank, rank_again, ranking, same_camera


def sorted_whole(query, gallery, k, hidden=None):
    """Every row sorted by similarity, then by index, without what is hidden."""
    rows, values = np.full((len(query), k), -1), np.full((len(query), k), -np.inf, np.float32)
    for i, row in enumerate(query @ gallery.T):
        gone = set() if hidden is None else set(hidden[i].tolist())
        order = [j for j in sorted(range(len(row)), key=lambda j: (-row[j], j)) if j not in gone][:k]
        rows[i, : len(order)], values[i, : len(order)] = order, row[order]
    return rows, values


def integers(rng, n, width):
    """Features whose products are exact and often equal."""
    return rng.integers(-1, 2, (n, width)).astype(np.float32)


@pytest.mark.parametrize(("q", "g", "k"), [(1, 1, 1), (1, 7, 7), (5, 97, 10), (23, 41, 41), (3, 4, 9)])
@pytest.mark.parametrize("block", [2**23, 50])
def test_lists_are_the_head_of_the_sorted_rows_ties_included(monkeypatch, q, g, k, block) -> None:
    monkeypatch.setattr(ranking, "_BLOCK_ELEMENTS", block)
    rng = np.random.default_rng(q * g)
    for hide in (False, True):
        query, gallery = integers(rng, q, 5), integers(rng, g, 5)
        hidden = [np.flatnonzero(rng.random(g) < 0.4) for _ in range(q)] if hide else None
        index, similarity = rank(torch.from_numpy(query), torch.from_numpy(gallery), k, hidden)
        rows, values = sorted_whole(query, gallery, min(k, g), hidden)
        assert index.dtype == torch.int64
        np.testing.assert_array_equal(index, rows)
        np.testing.assert_array_equal(similarity, values)


def test_products_are_those_of_full_precision(lowered_precision) -> None:
    rows = torch.from_numpy(planted(60, 64))
    index, similarity = rank(rows[:7], rows, 5)
    assert index[:, 0].tolist() == list(range(7))
    exact = (rows[:7].double() @ rows.double().T).gather(1, index)
    torch.testing.assert_close(similarity.double(), exact, atol=1e-6, rtol=0)


def test_bad_requests_are_named() -> None:
    with pytest.raises(UserError, match="k must be at least 1, not 0"):
        rank(torch.ones(1, 2), torch.ones(3, 2), 0)
    with pytest.raises(UserError, match="query features have 3 columns, gallery features 2"):
        rank(torch.ones(1, 3), torch.ones(3, 2), 1)


def test_the_same_camera_rule_is_that_of_the_scores(market_folder: Path) -> None:
    data = market_style("tiny", market_folder)
    splits = data.query, data.gallery
    query, gallery = (torch.from_numpy(planted(len(part), 16, seed)) for seed, part in enumerate(splits))
    index, _ = rank(query, gallery, len(data.gallery), same_camera(data.query, data.gallery))
    right = (data.gallery.pids[index] == data.query.pids[:, None]) & (index >= 0).numpy()
    scores = rank_scores(query, data.query.pids, data.query.cams, gallery, data.gallery.pids, data.gallery.cams)
    assert scores.rank1 == right[:, 0].mean()
    assert scores.rank5 == right[:, :5].any(1).mean()
    places = [np.flatnonzero(row) + 1 for row in right]
    assert scores.mAP == pytest.approx(np.mean([np.mean(np.arange(1, len(p) + 1) / p) for p in places]))


def test_unknown_identities_or_cameras_hide_nothing() -> None:
    paths = Paths.of([Path("a"), Path("b")])

    def images(pids: list[int], cams: list[int]) -> ImageSet:
        return ImageSet(paths, np.array(pids), np.array(cams))

    for pids, cams in (([-1, -1], [0, 0]), ([0, 0], [-1, -1])):
        assert all(len(rows) == 0 for rows in same_camera(images(pids, cams), images(pids, cams)))
    assert [rows.tolist() for rows in same_camera(images([0, 1], [0, 0]), images([0, 0], [0, 1]))] == [[0], []]


def test_a_file_is_known_by_its_absolute_path(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    query = Paths.of(["a/1.jpg", "2.jpg", "3.jpg"])
    gallery = Paths.of([tmp_path / "2.jpg", tmp_path / "b/../a/1.jpg", "1.jpg", "2.jpg"])
    assert [rows.tolist() for rows in own_files(query, gallery)] == [[1], [0, 3], []]


def test_search_takes_files_pixels_and_features(trained: Path, market_folder: Path) -> None:
    encoder = reid_fast.load_encoder(trained, device="cpu")
    gallery = encoder.embed([market_folder / "bounding_box_test"])
    by_files = reid_fast.search(encoder, str(market_folder / "query"), market_folder / "bounding_box_test", k=3)
    assert by_files.index.shape == by_files.similarity.shape == (6, 3)
    assert by_files.gallery == gallery.paths
    queries = encoder.embed([market_folder / "query"])
    for query, others in ((queries, gallery), (queries.features, gallery.features), (list(queries.paths), gallery)):
        assert torch.equal(reid_fast.search(encoder, query, others, k=3).index, by_files.index)
    unnamed = reid_fast.search(encoder, np.zeros((2, 20, 10, 3), np.uint8), gallery, k=2)
    assert unnamed.query is None
    assert torch.equal(unnamed.index[0], unnamed.index[1])


def test_a_file_is_not_in_its_own_list(trained: Path, market_folder: Path) -> None:
    encoder = reid_fast.load_encoder(trained, device="cpu")
    found = encoder.embed([market_folder / "query"])
    lists = reid_fast.search(encoder, found, found, k=99)
    assert lists.index.shape == (6, 6)
    assert (lists.index[:, -1] == -1).all()
    assert not (lists.index == torch.arange(6)[:, None]).any()


def test_a_second_ranking_is_that_of_rerank_without_what_is_hidden() -> None:
    rows = torch.from_numpy(planted(70, 16))
    query, gallery = rows[:9], rows[9:]
    distance = reid_fast.rerank(query, gallery).distances(slice(0, 9)).numpy()
    rng = np.random.default_rng(0)
    hidden = [np.flatnonzero(rng.random(61) < 0.3) for _ in range(9)]
    for gone in (None, hidden):
        index, similarity = rank_again(query, gallery, 20, gone)
        for row in range(9):
            seen = np.setdiff1d(np.arange(61), [] if gone is None else gone[row])
            expected = seen[np.argsort(distance[row, seen], kind="stable")][:20]
            np.testing.assert_array_equal(index[row], expected)
            torch.testing.assert_close(similarity[row], gallery[expected] @ query[row])
    assert not torch.equal(index, rank(query, gallery, 20, hidden)[0])


def test_search_reranks(trained: Path, market_folder: Path) -> None:
    encoder = reid_fast.load_encoder(trained, device="cpu")
    query, gallery = (encoder.embed([market_folder / part]) for part in ("query", "bounding_box_train"))
    lists = reid_fast.search(encoder, query, gallery, k=36, reranked=True)
    expected = reid_fast.rerank(query.features, gallery.features).nearest(36)[0]
    assert torch.equal(lists.index, expected)
