"""Inter-instance contrastive encoding (Chen et al., ICCV 2021, arXiv 2103.16364).

Beside Cluster Contrast: a teacher that follows the student is clustered and evaluated; class centres and camera proxies
stay as they are for an epoch; and pictures of a batch are contrasted with each other across views and networks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid_fast import ops
from reid_fast.config import Config
from reid_fast.data.images.augmentation import View
from reid_fast.data.images.batch import Batch
from reid_fast.data.images.sampler import Rule, more_cameras
from reid_fast.data.sets.records import ImageSet
from reid_fast.memories.memory import CameraProxies, label_means
from reid_fast.methods.base import Method
from reid_fast.models.encoder import Encoder
from reid_fast.models.teacher import new_teacher

_STREAM = 0x49434500  # keeps these draws apart from every other use of the run's seed


class InterInstanceContrast(Method):
    """`--camera-agnostic` drops the loss across cameras and picks pictures without looking at cameras."""

    defaults: ClassVar[dict[str, Any]] = {
        "epochs": 40,
        "iters": 400,
        "batch_size": 32,
        "num_instances": 4,
        "bn_group": 8,
        "step_size": 0,
        "warmup_epochs": 10,
        "warmup_factor": 0.1,
        "eps": 0.55,
        "temp": 0.5,
        "smoothing": 0.1,
        "soft_weight": 10.0,
        "erase": 0.6,
        "eval_step": 1,
    }
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # What is clustered is the teacher: in 1,500 steps from scratch one that keeps 0.999 of itself finds too few.
        "small": {"eps": 0.5, "warmup_epochs": 2, "ema": 0.99},
    }

    def __init__(self, config: Config, train: ImageSet, source: ImageSet | None = None) -> None:
        super().__init__(config, train, source)
        self.teacher = new_teacher(self.encoder)
        self.proxies = CameraProxies(self.encoder.width)

    @property
    def needs_cams(self) -> bool:
        return not self.config.camera_agnostic

    @property
    def plans_by_cams(self) -> bool:
        return self.needs_cams and self.config.cam

    @property
    def model(self) -> Encoder:
        return self.teacher

    @property
    def others(self) -> dict[str, Encoder]:
        return {"student": self.encoder}

    @property
    def views(self) -> tuple[View, ...]:
        """Two strong views and the picture itself."""
        (view,) = super().views
        strong = replace(view, blur=0.5)
        return strong, strong, View(flip=0.0, pad=0, erase=0.0)

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        """Class centres, not made unit, and camera proxies."""
        self.memory = label_means(features, labels)
        if self.needs_cams:
            self.proxies.fill(features, labels, self.train_set.cams)
            if self.config.ice_norm == "reference":
                self.proxies.rows = F.normalize(self.proxies.rows, dim=0)

    def plan(self, labels: np.ndarray, epoch: int, rule: Rule = more_cameras) -> np.ndarray:
        return super().plan(labels, epoch, rule)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Class, hard, soft and camera loss; the first one on features that are not normalised, as published."""
        config, labels = self.config, batch.labels
        b = self.encoder.necked(self.encoder.pooled(batch.views[0]))
        strong, weak = (self.taught(batch, view) for view in (1, 2))
        with torch.autocast(b.device.type, enabled=False):
            hard = ops.hard_nce(b, strong, labels, config.hard_temp)
            soft = ops.soft_nce(b, strong, weak, config.soft_temp)
        centre = ops.cluster_nce(b, self.memory, labels, config.temp, normalize=False, smoothing=config.smoothing)
        losses = {"class": centre, "hard": hard, "soft": config.soft_weight * soft}
        if self.needs_cams:
            cross = self.proxies.across(b, labels, batch.cams, config.camera_temp, config.negatives)
            losses["camera"] = config.camera_weight * cross
        return losses

    @torch.no_grad()
    def taught(self, batch: Batch, view: int) -> Tensor:
        """[B, D] the teacher's unit features of a view.

        Its BatchNorm runs in training mode over groups of a shuffled batch, so that no group holds the student's.
        """
        rng = np.random.default_rng([_STREAM, self.config.seed, batch.step, view])
        order = torch.from_numpy(rng.permutation(len(batch.labels)))
        order, back = (index.to(batch.labels.device, non_blocking=True) for index in (order, order.argsort()))
        return self.teacher(batch.views[view][order])[back]

    def after_step(self, batch: Batch) -> None:
        """Only the teacher moves: the memory is constant during an epoch."""
        ops.ema_update(self.teacher.parameters(), self.encoder.parameters(), self.config.ema)
