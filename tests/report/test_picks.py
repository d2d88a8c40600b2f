"""What a report picks to show, beside brute force; and its axes."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reid_fast.data.sets import ImageSet
from reid_fast.drawing import Box, Line
from reid_fast.report.axes import HEIGHT, SERIES, round_scale
from reid_fast.report.charts import curves, plain, stage_times
from reid_fast.report.clusters import CLUSTERS, IMAGES, pick_clusters
from reid_fast.report.mistakes import QUERIES, RANKS, hardest
from reid_fast.report.runs import RunRecord


def images(pids, cams, name="image"):
    paths = [Path(f"{name}{number:04d}.jpg") for number in range(len(pids))]
    return ImageSet(paths, np.asarray(pids, dtype=np.int64), np.asarray(cams, dtype=np.int64))


def test_the_largest_clusters_pure_and_mixed():
    rng = np.random.default_rng(3)
    labels = rng.integers(-1, 30, 401)
    pids = np.where(rng.random(401) < 0.02, rng.integers(0, 9, 401), labels % 9)
    cams = rng.integers(0, 4, 401)
    found = pick_clusters(labels, images(pids, cams))
    groups = {label: np.flatnonzero(labels == label) for label in range(30)}
    sizes = {label: len(rows) for label, rows in groups.items() if len(rows) > 1}
    pure = {label for label in sizes if len(set(pids[groups[label]])) == 1}
    assert (found.pure_count, found.mixed_count) == (len(pure), len(sizes) - len(pure))
    assert min(found.pure_count, found.mixed_count) > 0
    for clusters, kind in ((found.pure, pure), (found.mixed, sizes.keys() - pure)):
        order = sorted(kind, key=lambda label: (-sizes[label], label))
        assert [cluster.label for cluster in clusters] == order[:CLUSTERS]
        for cluster in clusters:
            counts = Counter(pids[groups[cluster.label]].tolist())
            assert list(cluster.identities) == sorted(counts.values(), reverse=True)
            assert cluster.cameras == len(set(cams[groups[cluster.label]].tolist()))
            assert len(cluster.members) == min(IMAGES, cluster.images) == len({one.path for one in cluster.members})
            shown = {one.identity for one in cluster.members}
            assert shown == set(range(min(len(counts), IMAGES)))


def test_every_identity_and_camera_comes_before_more_of_the_same():
    pids, cams = [0] * 20 + [1] * 3 + [2], [0] * 15 + [1] * 5 + [1] * 3 + [0]
    (cluster,) = pick_clusters(np.zeros(24, dtype=np.int64), images(pids, cams)).mixed
    assert Counter(one.identity for one in cluster.members) == {0: 8, 1: 3, 2: 1}
    assert Counter(one.camera for one in cluster.members if one.identity == 0) == {0: 4, 1: 4}


def test_no_cluster_and_no_identity():
    alone = pick_clusters(np.array([-1, 0, 1, -1]), images([0, 1, 2, 3], [0] * 4))
    assert alone.pure == alone.mixed == alone.unknown == ()
    found = pick_clusters(np.array([0, 0, 1, 1, 1]), images([-1] * 5, [-1] * 5))
    assert [(cluster.label, cluster.images, cluster.cameras) for cluster in found.unknown] == [(1, 3, 0), (0, 2, 0)]


def test_the_hardest_mistakes_by_brute_force():
    rng = np.random.default_rng(5)
    Q, G = 31, 67
    query = images(rng.integers(0, 9, Q), rng.integers(0, 3, Q), "query")
    gallery = images(rng.integers(-1, 9, G), rng.integers(0, 3, G))
    features = F.normalize(torch.randn(Q + G, 5, generator=torch.Generator().manual_seed(1)))
    queries, others = features[:Q], features[Q:]
    expected = []
    for row in range(Q):
        similarity = (others @ queries[row]).numpy()
        same = gallery.pids == query.pids[row]
        seen = [i for i in np.argsort(-similarity, kind="stable") if gallery.pids[i] != -1]
        seen = [i for i in seen if not (same[i] and gallery.cams[i] == query.cams[row])]
        right = [place for place, i in enumerate(seen) if same[i]]
        if right and right[0] > 0:
            precision = np.mean([(n + 1) / (place + 1) for n, place in enumerate(right)])
            expected.append((-right[0], precision, row, seen, right))
    expected.sort(key=lambda one: one[:3])
    found = hardest(query, queries, gallery, others)
    assert len(found) == QUERIES < len(expected)
    for mistake, (first, precision, row, seen, right) in zip(found, expected, strict=False):
        assert mistake.path == query.paths[row]
        assert mistake.average_precision == pytest.approx(precision)
        assert mistake.matches == len(right)
        shown = [*range(RANKS), *([-first] if -first >= RANKS else [])]
        assert [one.rank for one in mistake.found] == [place + 1 for place in shown]
        assert [one.path for one in mistake.found] == [gallery.paths[seen[place]] for place in shown]
        assert [one.right for one in mistake.found] == [place in right for place in shown]


def test_a_query_that_is_answered_at_once_is_no_mistake():
    query, gallery = images([1, 2], [0, 0]), images([1, 2], [1, 1])
    assert hardest(query, torch.eye(2), gallery, torch.eye(2)) == []


@given(st.lists(st.floats(-1e12, 1e12).map(lambda v: v or 0.0), min_size=1, max_size=5), st.booleans())
def test_ticks_hold_every_value_at_even_steps(values, whole):
    values = [float(f"{value:.6g}") for value in values]
    if whole:
        values = [float(round(value)) for value in values]
    scale = round_scale(values, plain, whole=whole)
    steps = np.diff(scale.ticks)
    assert 2 <= len(scale.ticks) <= 9
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert all(-1e-6 <= scale.share(value) <= 1 + 1e-6 for value in values)
    assert not whole or all(tick == round(tick) for tick in scale.ticks)


def record(rows):
    return RunRecord("run", Path("run"), {}, {}, rows)


def test_bars_are_as_high_as_their_seconds():
    rows = [{"epoch": 1, "seconds": {"train": 30.0, "extract": 10.0}}, {"epoch": 2, "seconds": {"later": 5.0}}]
    chart = stage_times(record([{"epoch": 0, "seconds": {"evaluate": 3.0}}, *rows]))
    heights = {mark.title: mark.height for mark in chart.figure.marks if isinstance(mark, Box)}
    assert heights == {
        "epoch 1, extract: 10.00 s": pytest.approx(HEIGHT / 4),
        "epoch 1, train: 30.00 s": pytest.approx(HEIGHT * 3 / 4),
        "epoch 2, later: 5.00 s": pytest.approx(HEIGHT / 8),
    }
    assert stage_times(record([{"epoch": 0, "seconds": {}}])) is None


def test_a_teachers_scores_stand_beside_the_models():
    rows = [{"epoch": 1, "seconds": {}, "mAP": 0.5, "teacher_mAP": 0.6}, {"epoch": 2, "seconds": {}, "mAP": math.nan}]
    (chart,) = curves([record(rows)])
    assert chart.name == "mAP"
    assert "run: 50 % at epoch 1; run, teacher: 60 % at epoch 1" in chart.label


def test_every_line_of_a_chart_has_a_colour_of_its_own():
    rows = [{"epoch": 0, "mAP": 0.1, "teacher_mAP": 0.2}, {"epoch": 1, "mAP": 0.3, "teacher_mAP": 0.3}]
    plain_rows = [{"epoch": row["epoch"], "mAP": row["mAP"]} for row in rows]
    runs = [RunRecord(f"run{n}", Path(), {}, {}, plain_rows if n else rows) for n in range(6)]
    (chart,) = curves(runs)
    colours = [mark.colour for mark in chart.figure.marks if isinstance(mark, Line) and mark.colour in SERIES]
    assert len(colours) == len(set(colours)) == 7
