"""Cluster Contrast: values computed by the published code through the hooks that train."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import assert_settings, phi
from stubs import new_method, stepped

from reid_fast import jaccard_graph
from reid_fast.command_line import parse
from reid_fast.methods import method_class, method_names
from reid_fast.methods.base import Method

Y = torch.tensor([0, 0, 2, 2, 0, 3])
LOSS, NORM = 5.964139, 4.908295
GRADIENT = [0.199708, -0.663682, -0.992551, 0.490080, 0.521346, 0.304214, 0.714344, -0.574599]
UPDATED = {
    "serial": {
        0: [0.255825, -0.540230, 0.223888, 0.273359, -0.438084, 0.273275, 0.109844, -0.489073],
        2: [0.340257, 0.286663, -0.467936, -0.013105, 0.458803, -0.257380, -0.314598, 0.455189],
    },
    "hard": {
        0: [-0.251824, -0.460157, -0.041372, 0.454930, 0.360692, -0.226584, -0.551510, -0.174828],
        2: [0.327783, 0.196207, -0.454256, 0.057459, 0.452806, -0.307538, -0.324984, 0.489064],
    },
}


@pytest.fixture
def make(raw_encoder):
    return lambda cams=(0,) * 6, **options: new_method("cc", cams, **options)


@pytest.mark.parametrize("update", ["serial", "hard"])
def test_golden_loss_gradient_and_update(make, update):
    method = make(temp=0.05, momentum=0.1, update=update)
    before = F.normalize(phi(5, 0.5))
    method.memory.rows = before.clone()
    losses, (gradient,) = stepped(method, [phi(6, 2.0)], Y)
    assert sum(losses.values()) == pytest.approx(LOSS, abs=1e-5)
    assert gradient.norm().item() == pytest.approx(NORM, abs=1e-5)
    np.testing.assert_allclose(gradient[0], GRADIENT, atol=1e-5)
    for row, expected in UPDATED[update].items():
        np.testing.assert_allclose(method.memory.rows[row], expected, atol=1e-5)
    assert torch.equal(method.memory.rows[[1, 4]], before[[1, 4]])


@pytest.mark.parametrize(("n", "clusters"), [(1, 1), (17, 3), (101, 13)])
def test_the_memory_is_the_unit_mean_of_each_cluster(make, n, clusters):
    rng = np.random.default_rng(n)
    labels = np.concatenate([np.arange(clusters), rng.integers(-1, clusters, n - clusters)])
    features = F.normalize(torch.from_numpy(rng.normal(size=(n, 8)))).float()
    method = make(cams=[0] * n)
    method.fill_memory(features, labels)
    assert method.memory.rows.shape == (clusters, 8)
    for label in range(clusters):
        mean = np.mean([features[i].double().numpy() for i in range(n) if labels[i] == label], axis=0)
        np.testing.assert_allclose(method.memory.rows[label], mean / np.linalg.norm(mean), atol=1e-6)


def test_the_memory_is_saved_with_the_method_whatever_its_rows(make):
    method, other = make(), make()
    method.fill_memory(F.normalize(phi(12, 0.3)), np.arange(12) % 5)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.memory.rows, method.memory.rows)


def test_the_learning_rate_falls_by_ten_every_twenty_epochs(make):
    method = make(lr=3.5e-4, step_size=20)
    expected = {0: 3.5e-4, 19: 3.5e-4, 20: 3.5e-5, 39: 3.5e-5, 40: 3.5e-6, 49: 3.5e-6}
    assert all(math.isclose(method.lr(epoch), lr) for epoch, lr in expected.items())


def test_labels_come_from_the_features_and_outliers_take_no_part(make):
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(4, 8))
    true = np.repeat(np.arange(4), 10)
    features = torch.cat([centres[true] + 0.05 * torch.randn(40, 8), -centres.sum(0, keepdim=True)])
    features = F.normalize(features)
    method = make(cams=np.arange(41) % 3, batch_size=8, num_instances=4, iters=9)
    found = method.extract_features(lambda encoder: features)
    labels = method.assign_labels(jaccard_graph(found, 10, 1, method.max_distance(0)), 0)
    assert len(set(zip(labels[:40].tolist(), true.tolist(), strict=True))) == 4
    assert labels[40] == -1
    method.fill_memory(features, labels)
    assert method.memory.rows.shape == (4, 8)
    plan = method.plan_epoch(labels, epoch=0)
    assert plan.shape == (9, 8)
    assert (labels[plan] >= 0).all()
    assert all(set(Counter(row.tolist()).values()) == {4} for row in labels[plan])
    losses, _ = stepped(method, [features[plan[0]]], labels[plan[0]])
    assert sum(losses.values()) < 0.1


@pytest.mark.parametrize("cam", [True, False])
def test_the_plan_honours_the_cameras_and_their_switch(make, cam):
    cams = np.tile([0] * 8 + [1, 2], 4)
    method = make(cams=cams, batch_size=8, num_instances=4, iters=50, cam=cam)
    groups = method.plan_epoch(np.repeat(np.arange(4), 10), epoch=0).reshape(-1, 4)
    assert (cams[groups[:, 1:]] != cams[groups[:, :1]]).all() == cam


@pytest.mark.parametrize(
    ("dataset", "differs"),
    [
        ("market1501", {}),
        ("dukemtmcreid", {}),
        ("msmt17", {"iters": 400}),
        ("personx", {"eps": 0.7}),
        ("veri776", {"iters": 400, "height": 224, "width": 224}),
    ],
)
def test_the_papers_settings_are_the_defaults(dataset, differs):
    config, _ = parse(["--method", "cc", "--dataset", dataset])
    expected = {"iters": 200, "eps": 0.6, "height": 256, "width": 128} | differs
    assert {name: getattr(config, name) for name in expected} == expected
    assert_settings(
        config,
        "epochs 50, batch_size 256, num_instances 16, bn_group 64, k1 30, k2 6, min_samples 4, momentum 0.1, "
        "temp 0.05, update serial, lr 0.00035, weight_decay 0.0005, step_size 20, arch resnet50, pad 10, "
        "cam True, seed 1",
    )


def test_every_method_file_defines_one_method():
    assert "cc" in method_names()
    assert "base" not in method_names()
    assert all(issubclass(method_class(name), Method) for name in method_names())
