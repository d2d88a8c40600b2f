"""DCCC: golden values, the teacher, the schedules."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import assert_settings, phi, unit_phi
from stubs import assert_near, new_method, stepped

from reid_fast.command_line import parse

pytestmark = pytest.mark.usefixtures("raw_encoder")
Y = [0, 0, 2, 2, 0, 3]
PLAIN = 5.964139


def step(**options):
    method = new_method("dccc", **options)
    method.memory.rows = unit_phi(5, 0.5)
    losses, (gradient, of_teacher) = stepped(method, (phi(6, 2.0), phi(6, 2.2)), Y)
    assert of_teacher is None
    return method, sum(losses.values()), gradient


@pytest.mark.parametrize(
    ("smoothing", "update_temp", "loss", "norm", "row"),
    [
        (
            0.3,
            0.03,
            4.361873,
            3.397842,
            [-0.251604, -0.460483, -0.041167, 0.455107, 0.360315, -0.226416, -0.551419, -0.175158],
        ),
        (
            0.1,
            0.6,
            5.430050,
            4.393430,
            [0.166803, -0.736481, 0.065628, 0.445516, -0.171753, -0.035812, -0.296327, -0.329225],
        ),
    ],
)
def test_golden_loss_gradient_and_update(smoothing, update_temp, loss, norm, row):
    method, value, gradient = step(smoothing=smoothing, update_temp=update_temp)
    assert_near(value, loss)
    assert_near(gradient.norm(), norm)
    assert_near(method.memory.rows[0], row)
    assert torch.equal(method.memory.rows[[1, 4]], unit_phi(5, 0.5)[[1, 4]])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_is_the_weighted_sum_of_both(weight):
    _, value, gradient = step(smoothing=0.3, soft_weight=weight)
    assert_near(value, (1 - weight) * PLAIN + weight * 4.361873)
    parts = [step(smoothing=0.3, soft_weight=w)[2] for w in (0.0, 1.0)]
    assert_near(gradient, (1 - weight) * parts[0] + weight * parts[1])


def test_the_mean_update_is_the_limit_of_the_weighted_one():
    method, _, _ = step(update="mean")
    old, x = unit_phi(5, 0.5), unit_phi(6, 2.0)
    assert_near(method.memory.rows[0], F.normalize(0.1 * old[0] + 0.9 * x[[0, 1, 4]].mean(0), dim=0))


def test_the_teacher_is_overwritten_at_step_99_and_then_averages():
    method = new_method("dccc")
    momentum = {step: method.teacher_momentum(step) for step in (0, 98, 99, 100, 109, 1097, 1098, 5000)}
    expected = {
        0: 0.999,
        98: 0.999,
        99: 0.0,
        100: 0.5,
        109: 10 / 11,
        1097: 1 - 1 / 999,
        1098: 0.999,
        5000: 0.999,
    }
    assert momentum == pytest.approx(expected)
    method.memory.rows = unit_phi(5, 0.5)
    with torch.no_grad():
        method.encoder.scale.fill_(3.0)
    for number, scale in ((0, 1.002), (98, 1.003998), (99, 3.0)):
        stepped(method, (phi(6, 2.0), phi(6, 2.2)), Y, step=number)
        assert method.teacher.scale.item() == pytest.approx(scale)
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())


def test_eps_falls_by_a_hundredth_until_it_passes_the_lowest():
    method = new_method("dccc", eps=0.7)
    expected = {
        0: 0.6930,
        9: 0.6331,
        19: 0.5725,
        29: 0.5178,
        39: 0.4683,
        49: 0.4235,
        54: 0.4027,
        55: 0.3987,
        69: 0.3987,
    }
    assert {e: method.eps(e) for e in expected} == pytest.approx(expected, abs=5e-5)
    assert method.max_distance(9) == method.eps(9)
    other = new_method("dccc", eps=0.8)
    assert [other.eps(e) for e in (68, 69, 79)] == pytest.approx([0.3999, 0.3959, 0.3959], abs=5e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("fix", {0: 0.7, 60: 0.7}),
        ("linear", {0: 0.695, 9: 0.65, 60: 0.395, 69: 0.395}),
        ("step", {0: 0.7, 3: 0.7, 4: 0.67, 8: 0.67, 9: 0.64, 54: 0.37, 69: 0.37}),
        ("log", {0: 0.7, 35: 0.7 * (1 - 0.5 * np.log((np.e + 1) / 2)), 70: 0.35}),
    ],
)
def test_the_other_schedules(schedule, expected):
    method = new_method("dccc", eps=0.7, eps_schedule=schedule)
    assert {e: method.eps(e) for e in expected} == pytest.approx(expected, abs=1e-9)


def test_the_learning_rate_rises_for_ten_epochs_and_stays():
    method = new_method("dccc")
    expected = {0: 3.5e-5, 9: 3.185e-4, 10: 3.5e-4, 69: 3.5e-4}
    assert {e: method.lr(e) for e in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("market1501", {"eps": 0.7, "update_temp": 0.03, "smoothing": 0.3, "epochs": 70, "seed": 3407}),
        ("dukemtmcreid", {"eps": 0.7, "update_temp": 0.07, "smoothing": 0.1, "epochs": 70, "seed": 1}),
        ("veri776", {"eps": 0.7, "epochs": 70, "height": 224}),
        ("msmt17", {"eps": 0.8, "update_temp": 0.6, "smoothing": 0.1, "epochs": 80, "seed": 1, "iters": 200}),
    ],
)
def test_the_papers_settings(dataset, expected):
    config, _ = parse(["--method", "dccc", "-d", dataset])
    assert {name: getattr(config, name) for name in expected} == expected
    assert_settings(
        config,
        "batch_size 256, num_instances 16, bn_group 64, temp 0.05, momentum 0.1, soft_weight 1.0, ema 0.999, "
        "iters 200, pooling_type avg, eval_step 2",
    )
