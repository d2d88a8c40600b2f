"""Memories: a step is the loss against the rows as they were, then the rows' update, though the update comes first."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import unit_phi

from reid_fast import ops
from reid_fast.memories import CameraProxies, InstanceMemory, PrototypeMemory, Update

LABELS = np.array([0, 0, 2, 2, 1, 0, 1, -1, 2])
CAMS = np.array([0, 1, 1, 0, 0, 2, 2, 1, 1])
BATCH = torch.tensor([0, 5, 2, 3, 0, 8])


def batch(s=1.4):
    return unit_phi(len(BATCH), s).requires_grad_()


def labels_of(index):
    return torch.from_numpy(LABELS)[index]


def filled(memory, *cams):
    memory.fill(unit_phi(9, 0.5), LABELS, *cams)
    return memory


@pytest.mark.parametrize(
    "update",
    [
        Update(0.1),
        Update(0.3, "hard"),
        Update(0.2, "weighted", 0.05),
        Update(0.1, "pick", scores=torch.tensor([0.3, 0.1, 0.9, 0.4, 0.2, 0.8])),
    ],
    ids=lambda update: update.mode,
)
@pytest.mark.parametrize("soft", [False, True])
def test_a_prototype_step_is_a_loss_then_an_update(update, soft):
    memory, x, labels = filled(PrototypeMemory(8)), batch(), labels_of(BATCH)
    targets = torch.rand(6, 3).softmax(1) if soft else None
    rows, literal = memory.rows.clone(), x.detach().clone().requires_grad_()
    expected = ops.cluster_nce(literal, rows, labels, 0.05, targets=targets)
    expected.backward()
    how = update.momentum, update.mode, update.temperature
    ops.memory_update(rows, F.normalize(literal.detach()), labels, *how, scores=update.scores)

    loss = memory.step(x, labels, 0.05, update, targets=targets)
    assert torch.equal(memory.rows, rows), "the rows have moved before backward"
    loss.backward()
    assert torch.equal(loss, expected)
    torch.testing.assert_close(x.grad, literal.grad, rtol=1e-6, atol=1e-7)


def test_without_an_update_prototypes_stay():
    memory, x = filled(PrototypeMemory(8)), batch()
    before = memory.rows.clone()
    loss = memory.step(x, labels_of(BATCH), 0.5, normalize=False, smoothing=0.1)
    assert torch.equal(loss, ops.cluster_nce(x, before, labels_of(BATCH), 0.5, normalize=False, smoothing=0.1))
    assert torch.equal(memory.rows, before)


def test_the_rows_of_a_source_stay_in_front():
    memory = PrototypeMemory(8)
    memory.rows = unit_phi(2, 3.0)
    memory.fill(unit_phi(9, 0.5), LABELS, kept=2)
    assert torch.equal(memory.rows[:2], unit_phi(2, 3.0))
    mean = unit_phi(9, 0.5)[[4, 6]].mean(0)
    torch.testing.assert_close(memory.rows[3], F.normalize(mean, dim=0))


@pytest.mark.parametrize("focal", [0.0, 2.5])
def test_an_instance_step_is_a_loss_then_an_update(focal):
    memory, x, classes = InstanceMemory(8), batch(), np.where(LABELS < 0, 3, LABELS)
    memory.fill(unit_phi(9, 0.5))
    memory.relabel(classes)
    literal = x.detach().clone().requires_grad_()
    expected = ops.hybrid_nce(literal, memory.rows.clone(), memory.labels, BATCH, 0.05, focal)
    expected.backward()
    rows = memory.rows.clone()
    ops.memory_update(rows, literal.detach(), BATCH, 0.2)

    loss = memory.step(x, BATCH, 0.05, 0.2, focal)
    assert torch.equal(memory.rows, rows)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(x.grad, literal.grad, rtol=1e-4, atol=1e-5)
    means = torch.stack([rows[classes == label].mean(0) for label in range(4)])
    torch.testing.assert_close(memory.means, means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("intra", "inter"), [(True, 0.0), (False, 0.5), (True, 0.7)])
@pytest.mark.parametrize("momentum", [None, 0.2])
def test_a_proxy_step_gives_the_losses_that_are_asked_for_and_then_updates(intra, inter, momentum):
    memory, x = filled(CameraProxies(8), CAMS), batch()
    cams, labels = torch.from_numpy(CAMS)[BATCH], labels_of(BATCH)
    before, weights = memory.rows.clone(), ops.camera_weights(cams)
    losses = memory.step(x, labels, cams, 0.07, negatives=2, intra=intra, inter=inter, momentum=momentum)
    assert set(losses) == {name for name, asked in (("intra", intra), ("inter", inter)) if asked}
    if inter:
        expected = inter * ops.camera_nce(x, before, memory.labels, labels, 0.07, 2, weights=weights)
        assert torch.equal(losses["inter"], expected)
    moved = (memory.rows != before).any(1).nonzero()[:, 0].tolist()
    touched = sorted(set(memory.rows_of(cams, labels).tolist()))
    assert moved == ([] if momentum is None else touched)


def test_memories_are_saved_whatever_their_rows():
    for new, more in ((PrototypeMemory, ()), (CameraProxies, (CAMS,))):
        memory, other = filled(new(8), *more), new(8)
        other.load_state_dict(memory.state_dict())
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in memory.state_dict().items())
