"""CACL: golden values, two networks, refinement."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import assert_settings, phi, unit_phi
from stubs import assert_near, batch_of, new_method, stepped
from torch import nn

import reid_fast
from reid_fast.command_line import parse
from reid_fast.methods.cacl import Predictor
from reid_fast.models.norm import GroupedBatchNorm1d

pytestmark = pytest.mark.usefixtures("raw_encoder")
LABELS = np.array([0, 0, 0, 1, 1, 3, 3, 4, 5, 3])
INDEX = [0, 4, 0, 9]


class Given(nn.Module):
    """A predictor that returns given features, made unit, whatever it sees."""

    def __init__(self, raw):
        super().__init__()
        self.raw = nn.Parameter(raw.clone())

    def forward(self, pooled):
        return F.normalize(self.raw + 0 * pooled)


def started(**options):
    method = new_method("cacl", cams=[0] * 10, **options)
    memories = {method.encoder: unit_phi(10, 0.5), method.grey_encoder: unit_phi(10, 0.8)}
    method.fill_memory(method.extract_features(memories.__getitem__), LABELS)
    method.predictor = Given(phi(4, 1.1))
    return method


def test_golden_losses_gradients_and_updates():
    method = started()
    losses, (colour, grey) = stepped(method, (phi(4, 2.0), phi(4, 2.4)), LABELS[INDEX], index=INDEX)
    assert_near(losses["colour"], 3.355211)
    assert_near(losses["grey"] + losses["cluster"] + losses["instance"], 4.073133)
    assert_near(colour.norm(), 3.584335)
    assert_near(grey.norm(), 4.249959)
    assert_near(method.predictor.raw.grad.norm(), 0.251120)
    assert_near(  # branch 1's memory is SpCL's
        method.colour.rows[0], [-0.258934, 0.335242, 0.353063, -0.348374, -0.509425, 0.195217, 0.524140, -0.046918]
    )
    row = F.normalize(0.2 * unit_phi(10, 0.8)[4] + 0.8 * unit_phi(4, 2.4)[1], dim=0)
    assert_near(method.grey.rows[4], row)


def test_the_grey_network_learns_from_its_own_memory_alone():
    """Its features are a constant target of the predictor."""
    method, alone = started(), started()
    _, (_, grey) = stepped(method, (phi(4, 2.0), phi(4, 2.4)), LABELS[INDEX], index=INDEX)
    raw = phi(4, 2.4).requires_grad_()
    alone.training_step(batch_of((phi(4, 2.0), raw), LABELS[INDEX], INDEX))["grey"].backward()
    assert torch.equal(grey, raw.grad)


@pytest.mark.parametrize("focal", [0.0, 2.0])
def test_the_focal_exponent(focal):
    method = started(focal=focal)
    losses, _ = stepped(method, (phi(4, 2.0), phi(4, 2.4)), LABELS[INDEX], index=INDEX)
    x, V = unit_phi(4, 2.0).double(), unit_phi(10, 0.5).double()
    means = torch.stack([V[c == LABELS].mean(0) if (c == LABELS).any() else V[0] * 0 for c in range(6)])
    exp = (x @ means.T / 0.05).exp() * torch.tensor([(c == LABELS).any() for c in range(6)])
    p = (exp / (exp.sum(1, keepdim=True) + 1e-6))[range(4), LABELS[INDEX]]
    assert_near(losses["colour"], -((1 - p) ** focal * (p + 1e-6).log()).mean())


def test_both_memories_begin_with_colour_images_and_are_kept():
    method = started()
    stepped(method, (phi(4, 2.0), phi(4, 2.4)), LABELS[INDEX], index=INDEX)
    assert torch.equal(method.extract_features(None), method.colour.rows)
    other = new_method("cacl", cams=[0] * 10)
    other.predictor = Given(phi(4, 1.1))
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.extract_features(None), method.colour.rows)
    assert torch.equal(other.grey.means, method.grey.means)
    assert [view.grey for view in method.views] == [False, True]
    assert method.encoder is not method.grey_encoder


def test_refill_takes_both_memories_from_their_encoders_again():
    method = started(refill=True)
    later = {method.encoder: unit_phi(10, 0.6), method.grey_encoder: unit_phi(10, 0.9)}
    assert torch.equal(method.extract_features(later.__getitem__), later[method.encoder])
    assert torch.equal(method.grey.rows, later[method.grey_encoder])


@pytest.mark.parametrize(("norm", "moved"), [("reference", [24, 25, 26, 28, 29]), ("mean", None)])
def test_refinement_through_the_labels(norm, moved):
    i, j = np.arange(60)[:, None], np.arange(16)
    rows = np.sin(1.3 * (i // 6 + 1) * (j + 1)) + 0.9 * np.cos(0.7 + 2.1 * i + 1.1 * j + 0.37 * i * j)
    features = F.normalize(torch.from_numpy(rows)).float()
    method = new_method("cacl", cams=[0] * 60, eps=0.5, eps_gap=0.1, refine_norm=norm)
    graph = reid_fast.jaccard_graph(features, 8, 3, method.max_distance(0))
    labels = method.assign_labels(graph, 0)
    found = np.flatnonzero(labels >= 13).tolist()
    assert found == moved if moved else found != [24, 25, 26, 28, 29]


def test_the_predictor():
    torch.manual_seed(0)
    predictor = Predictor(8, bn_group=4)
    u = phi(8, 0.2)
    z = predictor(u)
    linear = u @ predictor.linear.weight.T
    expected = torch.cat([F.batch_norm(part, None, None, training=True) for part in linear.split(4)])
    assert_near(z.detach(), F.normalize(expected).detach())
    assert isinstance(predictor.norm, GroupedBatchNorm1d)
    assert not predictor.norm.bias.requires_grad
    assert (predictor.linear.bias == 0).all()


def test_the_papers_settings():
    for dataset in ("market1501", "msmt17"):
        config, _ = parse(["--method", "cacl", "-d", dataset])
        assert_settings(
            config,
            "iters 400, batch_size 64, num_instances 4, bn_group 16, epochs 80, eps 0.6, momentum 0.2, temp 0.05, "
            "focal 4.0, refine_ratio 1.0, seed 111",
        )
