"""What each optimiser does with a gradient and with the weights themselves, by its formula in float64."""

import pytest
import torch

from reid_fast.config import Config
from reid_fast.run import new_optimizer

LR, DECAY, STEPS = 0.1, 0.02, 4


def moved(kind, gradients):
    """A weight that begins at 1, after steps with these gradients."""
    w, mean, square, velocity = 1.0, 0.0, 0.0, 0.0
    for step, g in enumerate(gradients, 1):
        if kind == "adamw":
            w -= LR * DECAY * w
        else:
            g = g + DECAY * w
        velocity = 0.9 * velocity + g
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        adam = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)) ** 0.5 + 1e-8)
        w -= LR * (velocity if kind == "sgd" else adam)
    return w


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_weights_move_by_the_formula(kind):
    gradients = torch.linspace(-2, 3, 7) * torch.linspace(1, -0.5, STEPS)[:, None]
    weight = torch.nn.Parameter(torch.ones(7))
    optimizer = new_optimizer(Config(optimizer=kind, lr=LR, weight_decay=DECAY), [weight])
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    expected = [moved(kind, column) for column in gradients.T.double().tolist()]
    torch.testing.assert_close(weight.detach(), torch.tensor(expected), rtol=1e-4, atol=1e-5)
