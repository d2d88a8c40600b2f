"""The silhouette of clusters against one image at a time in NumPy, and what it says of clusterings."""

import numpy as np
import pytest
import torch
from inputs import planted

from reid_fast.labels import silhouette as module
from reid_fast.labels.silhouette import silhouette


def one_by_one(features, labels):
    """The definition, in float64."""
    x = features.astype(np.float64)
    members = {label: np.flatnonzero(labels == label) for label in set(labels.tolist()) if label >= 0}
    members = {label: rows for label, rows in members.items() if len(rows) > 1}
    total = 0.0
    for label, rows in members.items():
        for i in rows:

            def distance(those, i=i):
                centre = x[those].sum(0)
                return 1 - x[i] @ centre / np.linalg.norm(centre)

            a = distance([j for j in rows if j != i])
            b = min(distance(others) for other, others in members.items() if other != label)
            total += (b - a) / max(a, b)
    return total / len(x)


@pytest.mark.parametrize(("n", "width", "clusters"), [(5, 3, 2), (61, 7, 5), (97, 33, 13)])
@pytest.mark.parametrize("block", [1, 40, 2**23])
def test_it_is_what_one_image_at_a_time_gives(n, width, clusters, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", block)
    rng = np.random.default_rng(n)
    features = planted(n, width, seed=n)
    labels = rng.integers(-2, clusters, n).clip(-1) * 3  # labels need not follow on one another
    labels[:4] = [0, 0, 3, 3]
    labels[-1] = 3 * clusters  # a class of its own is an outlier
    labels[labels == -3] = -1
    found = silhouette(torch.from_numpy(features), labels)
    assert found == pytest.approx(one_by_one(features, labels), abs=2e-6)


def test_low_precision_features_are_widened():
    features = torch.from_numpy(planted(40, 8)).half()
    labels = np.arange(40) % 5
    assert silhouette(features, labels) == pytest.approx(silhouette(features.float(), labels), abs=1e-6)


def test_clusters_that_are_apart_score_more_than_mixed_ones_and_outliers_cost():
    rng = np.random.default_rng(0)
    centres, labels = np.eye(8, dtype=np.float32)[:5], np.repeat(np.arange(5), 12)
    rows = centres[labels] + 0.05 * rng.normal(size=(60, 8)).astype(np.float32)
    features = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    whole = silhouette(features, labels)
    assert whole > 0.9
    mixed = np.where(np.arange(60) % 4 == 0, np.roll(labels, 12), labels)
    assert silhouette(features, mixed) < whole - 0.3
    half = np.where(np.arange(60) % 2 == 0, -1, labels)
    assert silhouette(features, half) == pytest.approx(whole / 2, abs=0.02)


@pytest.mark.parametrize("labels", [[-1] * 6, [0] * 6, [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, -1, -1]])
def test_less_than_two_clusters_score_least(labels):
    assert silhouette(torch.from_numpy(planted(6, 4)), np.array(labels)) == -1


def test_equal_images_divide_by_nothing():
    features = torch.nn.functional.normalize(torch.ones(6, 4))
    assert silhouette(features, np.array([0, 0, 0, 1, 1, 1])) == pytest.approx(0, abs=1e-3)
