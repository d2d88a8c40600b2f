"""Dynamic clustering and cluster contrastive learning (arXiv 2303.06810, ICASSP 2024).

Beside Cluster Contrast: the clustering radius falls from epoch to epoch, prototypes follow a weighted mean of the
batch, and a teacher that sees another view softens the targets.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from reid_fast.data.images import Batch, View
from reid_fast.marks import Count, CountOrZero, Distance, Kept, Share
from reid_fast.methods.base import PrototypeContrast
from reid_fast.methods.settings import UpdateSettings
from reid_fast.models.encoder import Encoder
from reid_fast.models.teacher import follow, new_teacher

LOWEST_EPS = 0.399  # eps falls no more once it has reached it
COPY_STEP = 99  # the step that overwrites the teacher with the student, as published


@dataclass(frozen=True, kw_only=True)
class DcccConfig(UpdateSettings):
    """Falling eps, and a teacher that softens the targets."""

    epochs: Count = 70
    step_size: CountOrZero = 0
    warmup_epochs: CountOrZero = 10
    eps: Distance = 0.7
    eval_step: Count = 2
    update: Literal["serial", "hard", "weighted", "mean"] = "weighted"
    eps_schedule: Literal["expo", "linear", "step", "log", "fix"] = "expo"
    """how --eps falls from epoch to epoch"""
    smoothing: Share = 0.3
    """ε: share of the target that is spread as the teacher scores the clusters"""
    soft_weight: Share = 1.0
    """λ: weight of the softened contrast, against the plain one's 1 - λ"""
    ema: Kept = 0.999
    """share of its own weights that the teacher keeps in a step"""


class DynamicClusterContrast(PrototypeContrast):
    """`--smoothing` is ε, `--update-temp` τ_w, `--soft-weight` λ: 1 trains on the softened targets alone."""

    config: DcccConfig
    recipes: ClassVar = {
        "market1501": {"seed": 3407},
        "dukemtmcreid": {"update_temp": 0.07, "smoothing": 0.1},
        "msmt17": {"eps": 0.8, "update_temp": 0.6, "smoothing": 0.1, "epochs": 80},
        "vit": {"iters": 200, "momentum": 0.2},
        # A rise of the learning rate merges the first clusters, and 1,500 steps need a teacher that follows.
        "small": {"eps": 0.55, "warmup_epochs": 0, "ema": 0.99},
    }

    def build(self) -> None:
        super().build()
        self.teacher = new_teacher(self.encoder)

    @property
    def others(self) -> dict[str, Encoder]:
        return {"teacher": self.teacher}

    @property
    def views(self) -> tuple[View, ...]:
        return 2 * super().views

    def eps(self, epoch: int) -> float:
        """eps after the epoch's own reduction, so the first epoch's is below `--eps` already."""
        start, schedule = self.config.eps, self.config.eps_schedule
        if schedule == "log":
            return start * (1 - 0.5 * math.log(epoch * (math.e - 1) / self.config.epochs + 1))
        eps = start
        for past in range(1, epoch + 2):
            if eps > LOWEST_EPS:
                eps = _reduced(eps, schedule, past)
        return eps

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy against (1 - λε)·onehot + λε·softmax of the teacher's scores.

        It is (1 - λ) times the plain contrast plus λ times the softened one: cross entropy is linear in its targets.
        """
        config = self.config
        x = batch.gather(self.encoder(batch.views[0]))
        with torch.no_grad():
            features = batch.gather(self.teacher(batch.views[1]))
        with torch.autocast(x.device.type, enabled=False):
            soft = (features @ self.memory.rows.T / config.temp).softmax(1)
        share = config.soft_weight * config.smoothing
        targets = torch.zeros_like(soft).scatter_(1, batch.labels[:, None], 1 - share) + share * soft
        return self.contrast(x, batch, targets)

    def step_constants(self, batch: Batch) -> Hashable:
        return self.teacher_momentum(batch.step)

    def finish_step(self, batch: Batch) -> None:
        momentum = self.teacher_momentum(batch.step)
        follow(self.teacher, self.encoder, momentum)

    def teacher_momentum(self, step: int) -> float:
        """α: constant, then a running mean of the student from step 99 on, then constant again."""
        if step < COPY_STEP:
            return self.config.ema
        return min(self.config.ema, 1 - 1 / (step - COPY_STEP + 1))


def _reduced(eps: float, schedule: str, epoch: int) -> float:
    """The next eps; `epoch` counts from 1."""
    if schedule == "expo":
        return 0.99 * eps
    if schedule == "linear":
        return eps - 0.005
    if schedule == "step" and epoch % 5 == 0:
        return eps - 0.03
    return eps
