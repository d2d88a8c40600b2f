"""SpCL: golden values, relabelling, and a memory that is never extracted again."""

import numpy as np
import pytest
import torch
from inputs import assert_settings, phi, unit_phi, waves
from stubs import assert_near, new_method, stepped

import reid_fast
from reid_fast.command_line import parse

pytestmark = pytest.mark.usefixtures("raw_encoder")
LABELS = np.array([0, 0, 0, 1, 1, 3, 3, 4, 5, 3])  # class 2 is empty
INDEX = [0, 4, 0, 9]


def started(labels, features, **options):
    method = new_method("spcl", cams=[0] * len(labels), **options)
    found = method.extract_features(lambda encoder: features)
    method.fill_memory(found, labels)
    return method


def test_golden_loss_gradient_and_update():
    method = started(LABELS, unit_phi(10, 0.5))
    losses, (gradient,) = stepped(method, [phi(4, 2.0)], LABELS[INDEX], index=INDEX)
    assert_near(sum(losses.values()), 3.825642)
    assert_near(gradient.norm(), 3.005418)
    rows = method.memory.rows
    assert_near(rows[0], [-0.258934, 0.335242, 0.353063, -0.348374, -0.509425, 0.195217, 0.524140, -0.046918])
    assert_near(rows[9], [0.347239, 0.315354, -0.605677, 0.145420, 0.371409, -0.213502, -0.310988, 0.334283])
    untouched = [1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(rows[untouched], unit_phi(10, 0.5)[untouched])


def test_the_class_means_follow_their_members():
    method = started(LABELS, unit_phi(10, 0.5))
    for s in (2.0, 2.3, 2.9):
        stepped(method, [phi(4, s)], LABELS[INDEX], index=INDEX)
    expected = [method.memory.rows[label == LABELS].sum(0) / max(1, (label == LABELS).sum()) for label in range(6)]
    assert_near(method.memory.means, torch.stack(expected), atol=1e-6)


def test_relabelling_keeps_what_the_tight_and_the_loose_clustering_confirm():
    features = torch.from_numpy(waves())
    method = new_method("spcl", cams=[0] * 60, eps=0.5, eps_gap=0.1, k1=8, k2=3)
    method.memory.fill(features)
    assert method.max_distance(0) == pytest.approx(0.6)
    graph = reid_fast.jaccard_graph(features, 8, 3, method.max_distance(0))
    labels = method.assign_labels(graph, 0)
    assert method.threshold.item() == 0.5
    alone = np.flatnonzero(labels >= 13)
    assert alone.tolist() == [6, 7, 18, 21, 27, 34, 40, 41, 55, 58]
    assert (np.bincount(labels) > 1).sum() == 8


def test_the_threshold_of_the_first_epoch_is_kept_and_saved():
    features = torch.from_numpy(waves())
    graph = reid_fast.jaccard_graph(features, 8, 3, 0.6)
    options = {"cams": [0] * 60, "eps": 0.5, "eps_gap": 0.1}
    method, other = new_method("spcl", **options), new_method("spcl", **options)
    method.threshold.fill_(0.0)
    strict = method.assign_labels(graph, 1)
    assert method.threshold.item() == 0.0
    other.load_state_dict(method.state_dict())
    assert other.assign_labels(graph, 2).tolist() == strict.tolist()
    assert (np.bincount(strict) > 1).sum() < 8


def test_features_are_extracted_once():
    method = new_method("spcl", cams=[0] * 10)
    extractions = []

    def extract(encoder):
        extractions.append(encoder)
        return unit_phi(10, 0.5)

    first = method.extract_features(extract)
    method.fill_memory(first, LABELS)
    stepped(method, [phi(4, 2.0)], LABELS[INDEX], index=INDEX)
    later = method.extract_features(extract)
    assert extractions == [method.encoder]
    assert torch.equal(later, method.memory.rows)
    other = new_method("spcl", cams=[0] * 10)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.extract_features(None), later)
    assert torch.equal(other.memory.means, method.memory.means)


def test_refill_extracts_in_every_epoch():
    method = new_method("spcl", cams=[0] * 10, refill=True)
    for shift in (0.5, 0.7):
        rows = unit_phi(10, shift)
        assert torch.equal(method.extract_features(lambda _, rows=rows: rows), rows)
        assert torch.equal(method.memory.rows, rows)


def test_outliers_train_alone():
    labels = np.array([0, 0, 0, 0, 1, 2, 3, 4])
    method = started(labels, unit_phi(8, 0.3), batch_size=8, num_instances=4, iters=5)
    assert all(sorted(labels[row]) == [0, 0, 0, 0, 1, 2, 3, 4] for row in method.plan_epoch(labels, 0))


@pytest.mark.parametrize(
    ("dataset", "iters"), [("market1501", 400), ("msmt17", 800), ("veri776", 800), ("personx", 400)]
)
def test_the_papers_settings(dataset, iters):
    config, _ = parse(["--method", "spcl", "-d", dataset])
    assert config.iters == iters
    assert_settings(
        config,
        "batch_size 64, num_instances 4, bn_group 16, epochs 50, eps 0.6, eps_gap 0.02, momentum 0.2, temp 0.05, "
        "step_size 20, k1 30",
    )
