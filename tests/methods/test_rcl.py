"""RCL: the switches that make it Cluster Contrast, attention against its formula, the guard."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import phi, unit_phi
from stubs import assert_near, new_method, stepped

from reid_fast.methods.rcl import MOST_MEMBERS, Aggregation, backward_csa, members_by_cluster

pytestmark = pytest.mark.usefixtures("raw_encoder")
Y = [0, 0, 2, 2, 0, 3]


def attention_of(module, x):
    """w of the members of one cluster, by the formula."""
    n, scale = len(x), module.log_scale.exp()
    weights = torch.zeros(n)
    for query, key in zip(module.query, module.key, strict=True):
        q, k = F.normalize(x @ query), F.normalize(x @ key)
        scores = scale * q @ k.T
        scores.fill_diagonal_(-torch.inf)
        weights += scores.softmax(1).sum(0)
    return weights / (len(module.query) * n)


def disturbed(module):
    """Projections that differ, as after training."""
    torch.manual_seed(1)
    with torch.no_grad():
        module.key += 0.3 * torch.randn_like(module.key)
    return module


def clustered(n=40, clusters=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(clusters), rng.integers(-1, clusters, n - clusters)])
    return F.normalize(torch.from_numpy(rng.normal(size=(n, 8)))).float(), labels


@pytest.mark.parametrize(("update", "of_cc"), [("seq", "serial"), ("hard_cos", "hard")])
def test_without_attention_it_is_cluster_contrast(update, of_cc):
    features, labels = clustered()
    rcl = new_method("rcl", rcl_init="mean", rcl_update=update, saa_train="none")
    cc = new_method("cc", update=of_cc)
    results = []
    for method in (rcl, cc):
        method.fill_memory(features, labels)
        losses, (gradient,) = stepped(method, [phi(6, 2.0)], Y)
        results.append((losses, gradient, method.memory.rows))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])


def test_prototypes_are_members_weighted_by_the_attention_they_receive():
    features, labels = clustered()
    method = new_method("rcl", saa_train="none")
    disturbed(method.attention)
    method.fill_memory(features, labels)
    for label in range(5):
        x = features[labels == label]
        w = attention_of(method.attention, x)
        assert_near(w.sum(), 1)
        assert_near(method.memory.rows[label], F.normalize(w @ x, dim=0))


def test_the_projections_begin_equal_and_orthonormal():
    module = Aggregation(300)
    assert module.query.shape == (8, 300, 256)
    assert torch.equal(module.query, module.key)
    assert_near((module.query.mT @ module.query).detach(), np.broadcast_to(np.eye(256), (8, 256, 256)))
    assert module.log_scale.exp().item() == pytest.approx(10)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_gradient_that_trains_the_attention(monkeypatch, weighted):
    monkeypatch.setattr("reid_fast.methods.rcl._ROWS", 7)
    features, labels = clustered()
    order, offsets = map(torch.from_numpy, members_by_cluster(labels, seed=0))
    module, literal = (disturbed(new_method("rcl").attention).requires_grad_() for _ in range(2))
    literal.load_state_dict(module.state_dict())
    total = backward_csa(module, features[order], offsets, 0.05, weighted)

    clusters = [features[labels == label] for label in range(5)]
    weights = [attention_of(literal, x) for x in clusters]
    prototypes = torch.stack([F.normalize(w @ x, dim=0) for w, x in zip(weights, clusters, strict=True)])
    loss = 0.0
    for label, (w, x) in enumerate(zip(weights, clusters, strict=True)):
        errors = F.cross_entropy(x @ prototypes.T / 0.05, torch.full((len(x),), label), reduction="none")
        loss += (w * errors).sum() / 5 if weighted else errors.sum() / (labels >= 0).sum()
    loss.backward()
    assert_near(total, loss.item())
    for ours, theirs in zip(module.parameters(), literal.parameters(), strict=True):
        assert_near(ours.grad, theirs.grad, atol=1e-4 * theirs.grad.abs().max().item())


@pytest.mark.parametrize("train", ["weighted", "plain"])
def test_training_lowers_its_loss_and_leaves_nothing_to_the_encoders_optimiser(train):
    features, labels = clustered(200, 8)
    method = new_method("rcl", saa_train=train)
    order, offsets = map(torch.from_numpy, members_by_cluster(labels, seed=1))

    def loss_of(state):
        probe = Aggregation(8)
        probe.load_state_dict(state)
        return backward_csa(probe, features[order], offsets, 0.05, train == "weighted")

    before = loss_of(method.attention.state_dict())
    method.fill_memory(features, labels)
    assert loss_of(method.attention.state_dict()) < before
    assert not any(parameter.requires_grad for parameter in method.attention.parameters())
    assert all(parameter.grad is None for parameter in method.attention.parameters())
    assert not method.memory.rows.requires_grad


def test_the_update_picks_the_member_that_receives_least_attention():
    features, labels = clustered(12, 4)
    method = new_method("rcl", saa_train="none")
    disturbed(method.attention)
    method.fill_memory(features, labels)
    before, x = method.memory.rows.clone(), unit_phi(6, 2.0)
    stepped(method, [phi(6, 2.0)], Y)
    for label in (0, 2, 3):
        members = x[torch.tensor(Y) == label]
        chosen = members[attention_of(method.attention, members).argmin()] if len(members) > 1 else members[0]
        assert_near(method.memory.rows[label], F.normalize(0.1 * before[label] + 0.9 * chosen, dim=0))
    assert torch.equal(method.memory.rows[1], before[1])


@pytest.mark.parametrize("guard", [0.0, 0.3, 0.9, 5.0])
def test_the_guard_passes_over_members_that_receive_too_little(guard):
    method = new_method("rcl", hps_guard=guard)
    disturbed(method.attention)
    x, labels = unit_phi(24, 0.7), torch.arange(24) % 4
    scores = method.dispersion(x, labels)
    for label in range(4):
        members = (labels == label).nonzero()[:, 0]
        share = len(members) * attention_of(method.attention, x[members])
        allowed = members[share >= guard] if (share >= guard).any() else members
        expected = allowed[share[(share >= guard) | (not (share >= guard).any())].argmin()]
        assert members[scores[members].argmax()] == expected


def test_large_clusters_attend_among_some_of_their_members():
    labels = np.concatenate([np.zeros(700, int), np.ones(3, int), np.full(9, -1), np.full(256, 2)])
    order, offsets = members_by_cluster(labels, seed=3)
    assert np.diff(offsets).tolist() == [MOST_MEMBERS, 3, 256]
    assert len(set(order.tolist())) == len(order)
    assert labels[order].tolist() == sorted(labels[order].tolist())
    assert order.max() > 300
    assert members_by_cluster(labels, seed=3)[0].tolist() == order.tolist()
