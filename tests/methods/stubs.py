"""What the tests of the methods share: an encoder that returns what it is given, and one step of the driver."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from reid_fast import methods
from reid_fast.data.images import Batch
from reid_fast.data.sets import ImageSet, TrainingSet
from reid_fast.methods import settings_class


class RawEncoder(nn.Module):
    """Takes the "images" for the features before the norm, times a parameter that is 1."""

    width = 8

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def pooled(self, raw):
        return raw * self.scale

    def necked(self, pooled):
        return pooled

    def forward(self, raw):
        return F.normalize(self.necked(self.pooled(raw)))


def images(cams, pids=None, prefix="t"):
    pids = np.zeros(len(cams), np.int64) if pids is None else np.asarray(pids)
    return ImageSet(tuple(f"{prefix}{i}" for i in range(len(cams))), pids, np.asarray(cams, np.int64))


def new_method(name, cams=(0,) * 6, source=None, **options):
    """A method with its own defaults, over images from these cameras."""
    config = settings_class(name)(method=name, **options)
    return methods.new_method(config, TrainingSet(images(cams), source))


def batch_of(views, labels, index=None, cams=None, epoch=0, step=0):
    labels = torch.as_tensor(labels)
    index = torch.arange(len(labels)) if index is None else torch.as_tensor(index)
    cams = torch.zeros_like(labels) if cams is None else torch.as_tensor(cams)
    return Batch(tuple(views), labels, index, cams, epoch, step)


def drawn_for(method, batch):
    """The batch as the driver hands it to a step."""
    return replace(batch, drawn=method.draw(batch))


def stepped(method, raws, labels, **batch):
    """One step as the driver takes it, and what follows the optimiser's: (losses, each view's gradient)."""
    raws = [raw.clone().requires_grad_() for raw in raws]
    batch = drawn_for(method, batch_of(raws, labels, **batch))
    losses = method.training_step(batch)
    sum(losses.values()).backward()
    method.finish_step(batch)
    return {name: loss.item() for name, loss in losses.items()}, [raw.grad for raw in raws]


def assert_near(actual, expected, atol=1e-5):
    np.testing.assert_allclose(np.asarray(actual, dtype=np.float64), expected, atol=atol)
