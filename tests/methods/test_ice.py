"""ICE: golden values, the teacher's shuffled passes, batches over cameras."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import assert_settings, phi, unit_phi
from stubs import assert_near, batch_of, drawn_for, new_method, stepped

from reid_fast.command_line import parse
from reid_fast.errors import UserError

pytestmark = pytest.mark.usefixtures("raw_encoder")
CAMS = np.repeat([0, 1, 2], 4)
LABELS = np.array([0, 0, 1, 2, 0, 1, 1, -1, 2, 2, 3, 0])
BATCH = [0, 1, 5, 6, 8, 11]


def test_golden_losses_and_gradient():
    method = new_method("ice", camera_agnostic=True)
    method.memory.rows = 0.9 * unit_phi(5, 0.5)
    before = method.memory.rows.clone()
    losses, (gradient, *of_teacher) = stepped(method, (phi(6, 2.0), phi(6, 2.4), phi(6, 2.7)), [0, 0, 1, 1, 2, 2])
    assert_near(losses["class"], 1.948568)
    assert_near(losses["hard"], 9.857420)
    assert_near(losses["soft"], 0.105449)
    assert set(losses) == {"class", "hard", "soft"}
    assert_near(gradient.norm(), 1.894352)
    assert of_teacher == [None, None]
    assert torch.equal(method.memory.rows, before)


@pytest.mark.parametrize(("norm", "loss"), [("reference", 12.660404), ("fixed", 12.850306)])
def test_golden_camera_loss(norm, loss):
    method = new_method("ice", cams=CAMS, negatives=3, ice_norm=norm)
    method.fill_memory(unit_phi(12, 0.5), LABELS)
    losses, _ = stepped(method, 3 * [phi(6, 2.0)], LABELS[BATCH], index=BATCH, cams=CAMS[BATCH])
    assert_near(losses["inter"], loss, atol=2e-5)


def test_the_class_centres_are_means_that_are_not_normalised():
    method = new_method("ice", cams=CAMS)
    method.fill_memory(unit_phi(12, 0.5), LABELS)
    assert_near(method.memory.rows[0], unit_phi(12, 0.5)[LABELS == 0].mean(0))


def test_the_teacher_sees_a_shuffled_batch_and_its_features_return_in_order():
    method = new_method("ice", camera_agnostic=True)
    seen = []

    def forward(images):
        seen.append(images.clone())
        return F.normalize(images)

    method.teacher.forward = forward
    views = [phi(32, s) for s in (2.0, 2.4, 2.7)]
    batch = drawn_for(method, batch_of(views, np.arange(32), step=7))
    for view in (1, 2):
        assert torch.equal(method.teacher_features(batch, view), F.normalize(views[view]))
        assert not torch.equal(seen[-1], views[view])
        assert torch.equal(seen[-1].sort(0).values, views[view].sort(0).values)
    order = (seen[0][:, None] == views[1]).all(2).int().argmax(1)
    assert not torch.equal(seen[1], views[2][order]), "each pass has its own permutation"
    method.teacher_features(batch, 1)
    assert torch.equal(seen[2], seen[0]), "a resumed step shuffles alike"
    method.teacher_features(drawn_for(method, batch_of(views, np.arange(32), step=8)), 1)
    assert not torch.equal(seen[3], seen[0])


def test_a_steps_shuffles_depend_on_the_step_alone():
    """Whatever step a run resumes at, and however many are drawn at once."""
    batches = [batch_of((), np.zeros(5), step=step) for step in (0, 255, 256, 1000)]
    method = new_method("ice", camera_agnostic=True, seed=3)
    for batch in [*batches, *reversed(batches)]:
        for view in (1, 2):
            expected = np.random.default_rng([0x49434500, 3, batch.step, view]).permutation(5)
            forth, back = method.draw(batch)[view - 1]
            assert forth.tolist() == expected.tolist()
            assert forth[back].tolist() == list(range(5))


def test_the_teacher_follows_the_student_and_is_the_model():
    method = new_method("ice", camera_agnostic=True)
    method.memory.rows = unit_phi(5, 0.5)
    with torch.no_grad():
        method.encoder.scale.fill_(3.0)
    stepped(method, 3 * [phi(6, 2.0)], [0, 0, 1, 1, 2, 2])
    assert method.teacher.scale.item() == pytest.approx(1.002)
    assert method.model is method.teacher
    assert method.others == {"student": method.encoder}


def test_views():
    strong, also_strong, weak = new_method("ice").views
    assert strong == also_strong
    assert (strong.flip, strong.pad, strong.erase, strong.blur) == (0.5, 10, 0.6, 0.5)
    assert (weak.flip, weak.pad, weak.erase, weak.blur, weak.grey) == (0, 0, 0, 0, False)


def test_batches_spread_over_cameras_unless_agnostic():
    cams, labels = np.tile([0, 0, 0, 0, 0, 0, 0, 1, 2, 3], 8), np.repeat(np.arange(8), 10)
    for agnostic in (False, True):
        method = new_method("ice", cams=cams, batch_size=16, num_instances=4, iters=20, camera_agnostic=agnostic)
        groups = method.plan_epoch(labels, 0).reshape(-1, 4)
        assert (labels[groups] == labels[groups[:, :1]]).all()
        assert all(len(set(group)) == 4 for group in groups.tolist())
        spread = [len(set(group)) == 4 for group in cams[groups].tolist()]
        assert all(spread) != agnostic


def test_unknown_cameras_are_refused_unless_agnostic():
    assert new_method("ice", cams=[-1, -1], camera_agnostic=True).config.needs_cameras is False
    with pytest.raises(UserError, match="camera"):
        new_method("ice", cams=[0, -1])


def test_the_learning_rate_rises_for_ten_epochs_and_stays():
    method = new_method("ice")
    expected = {0: 3.5e-5, 9: 3.185e-4, 10: 3.5e-4, 39: 3.5e-4}
    assert {e: method.lr(e) for e in expected} == pytest.approx(expected)


def test_the_papers_settings():
    for dataset in ("market1501", "msmt17", "dukemtmcreid"):
        config, _ = parse(["--method", "ice", "-d", dataset])
        assert_settings(
            config,
            "epochs 40, iters 400, batch_size 32, num_instances 4, bn_group 8, eps 0.55, k1 30, temp 0.5, "
            "camera_temp 0.07, hard_temp 0.1, soft_temp 0.4, ema 0.999, smoothing 0.1, soft_weight 10.0, "
            "camera_weight 0.5, negatives 50, ice_norm reference, erase 0.6, camera_agnostic False",
        )
