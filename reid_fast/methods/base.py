"""What a method may change. Every default here is Cluster Contrast's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from reid_fast import ops
from reid_fast.config import Config
from reid_fast.data.augment import View
from reid_fast.data.batch import Batch
from reid_fast.data.records import ImageSet
from reid_fast.data.sampler import Rule, epoch_plan, other_cameras
from reid_fast.errors import UserError
from reid_fast.labels.cluster import Clock, jaccard_graph
from reid_fast.labels.communities import hdbscan, infomap, similarity_graph
from reid_fast.models.encoder import Encoder
from reid_fast.models.memory import VaryingBuffers, label_means
from reid_fast.models.weights import load_weights
from reid_fast.ops.jaccard import BELOW_ONE

Extract = Callable[[Encoder], Tensor]  # an encoder -> the [N, D] unit features of all training pictures


class Method(VaryingBuffers):
    """The hooks of one system; what it keeps lies in parameters and buffers, so it is saved and restored.

    One epoch calls, in this order: `features`, `graph`, `labels`, `fill_memory`, `plan`, then for each step `loss` and
    `after_step`. Epochs are counted from 0.
    """

    defaults: ClassVar[dict[str, Any]] = {}  # the paper's settings, by the names of `Config`
    needs_radius: ClassVar[bool] = False  # whether `labels` compares or schedules radii of DBSCAN
    recipes: ClassVar[dict[str, dict[str, Any]]] = {  # further settings for one data set or recipe
        "msmt17": {"iters": 400},
        "personx": {"eps": 0.7},
        "veri776": {"iters": 400},
        "small": {"eps": 0.5},  # features from scratch lie closer together than pretrained ones
    }

    def __init__(self, config: Config, train: ImageSet) -> None:
        """
        Args:
            config: the run's settings.
            train: the N training pictures.

        Raises:
            UserError: the method needs camera ids and a picture has none.
        """
        super().__init__()
        self.config = config
        self.train_set = train
        if self.needs_radius and config.cluster != "dbscan":
            raise UserError(
                f"--method {self._shown} clusters at several radii, which --cluster {config.cluster} does not know: "
                "use --cluster dbscan"
            )
        if self.needs_cams and (train.cams < 0).any():
            picture = train.paths[int((train.cams < 0).argmax())]
            raise UserError(
                f"--method {self._shown} needs each picture's camera, and that of {picture} is "
                "unknown: give a --pattern that finds it, or choose another method, such as cc with --no-cam"
            )
        self.encoder = self.new_encoder()
        self.memory: Tensor
        self.register_buffer("memory", torch.empty(0, self.encoder.width))
        self._features: Tensor | None = None

    @property
    def _shown(self) -> str:
        return self.config.method.replace("_", "-")

    @property
    def needs_cams(self) -> bool:
        """Whether every training picture must have a known camera."""
        return False

    @property
    def plans_by_cams(self) -> bool:
        """Whether the sampler looks at cameras when it picks an identity's pictures."""
        return self.config.cam

    def new_encoder(self) -> Encoder:
        """An encoder with its initial weights."""
        config = self.config
        encoder = Encoder(config.arch, config.pooling_type, config.bn_group, config.stem_relu)
        load_weights(encoder, config.arch, config.weights)
        return encoder

    @property
    def model(self) -> Encoder:
        """The encoder that is clustered, evaluated and exported."""
        return self.encoder

    @property
    def others(self) -> dict[str, Encoder]:
        """Encoders that are evaluated beside `model`, by name: the scores of "teacher" are `teacher_mAP` etc."""
        return {}

    @property
    def views(self) -> tuple[View, ...]:
        """What a training picture is turned into."""
        return (View(pad=self.config.pad, erase=self.config.erase),)

    def eps(self, epoch: int) -> float:
        """The clustering radius of an epoch, a Jaccard distance."""
        return self.config.eps

    def max_distance(self, epoch: int) -> float:
        """The largest Jaccard distance that `labels` asks of its graph."""
        return BELOW_ONE if self.config.cluster == "hdbscan" else self.eps(epoch)

    def features(self, extract: Extract) -> Tensor:
        """The [N, D] unit features to cluster."""
        return extract(self.model)

    def graph(self, features: Tensor, epoch: int, clock: Clock) -> sparse.csr_matrix:
        """[N, N] what `labels` clusters: Jaccard distances, or similarities for Infomap."""
        config = self.config
        if config.cluster == "infomap":
            with clock.stage("knn"):
                return similarity_graph(features, config.neighbours, config.min_similarity)
        sizes = config.k1, config.k2, self.max_distance(epoch)
        return jaccard_graph(features, *sizes, clock, search=config.knn)

    def labels(self, graph: sparse.csr_matrix, epoch: int) -> np.ndarray:
        """[N] int64 pseudo labels from the graph; -1 takes no part in the epoch."""
        config = self.config
        if config.cluster == "infomap":
            return infomap(graph, config.min_cluster)
        if config.cluster == "hdbscan":
            return hdbscan(graph, config.min_samples, config.min_cluster)
        return ops.dbscan(graph, self.eps(epoch), config.min_samples)

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        """Rebuild the memory: the unit mean of each cluster's unit features, [C, D]."""
        self.memory = F.normalize(label_means(features, labels))

    def plan(self, labels: np.ndarray, epoch: int, rule: Rule = other_cameras) -> np.ndarray:
        """[iters, B] picture indices: the batches of an epoch."""
        config = self.config
        return epoch_plan(
            labels,
            self.train_set.cams,
            batch_size=config.batch_size,
            num_instances=config.num_instances,
            iters=config.iters,
            seed=config.seed,
            epoch=epoch,
            use_cams=self.plans_by_cams,
            rule=rule,
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses; the loop minimises their sum."""
        x = self.encoder(batch.views[0])
        self._features = x.detach()
        return self.contrast(x, batch)

    def contrast(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The contrast of features x [B, D] with the prototypes."""
        return {"contrast": ops.cluster_nce(x, self.memory, batch.labels, self.config.temp)}

    def after_step(self, batch: Batch) -> None:
        """Update the memory from the features of the step's forward pass."""
        config, mode, temperature = self.config, self.config.update, self.config.update_temp
        if mode == "mean":
            mode, temperature = "weighted", math.inf
        ops.memory_update(self.memory, self._features, batch.labels, config.momentum, mode, temperature)

    def lr(self, epoch: int) -> float:
        """The learning rate of an epoch: a rise over `warmup_epochs`, divisions by 10 every `step_size`."""
        config = self.config
        risen = min(1.0, epoch / config.warmup_epochs) if config.warmup_epochs else 1.0
        divisions = epoch // config.step_size if config.step_size else 0
        return config.lr * (config.warmup_factor * (1 - risen) + risen) * 0.1**divisions
