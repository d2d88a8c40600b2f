"""What a method may change. Every default here is Cluster Contrast's."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from reid_fast import clustering, ops
from reid_fast.clock import Clock
from reid_fast.clustering.communities import hdbscan, infomap, similarity_graph
from reid_fast.clustering.jaccard import BELOW_ONE
from reid_fast.config import Config
from reid_fast.data.images.augmentation import View
from reid_fast.data.images.batch import Batch
from reid_fast.data.images.sampler import Rule, epoch_plan, other_cameras
from reid_fast.data.sets.records import ImageSet
from reid_fast.errors import UserError
from reid_fast.labels.graph import jaccard_graph
from reid_fast.memories.memory import VaryingBuffers, label_means
from reid_fast.models.encoder import Encoder
from reid_fast.models.norm import split_domains
from reid_fast.models.weights import load_weights


class Extract(Protocol):
    """What gets an encoder's [N, D] unit features of all training pictures, or of those of the source."""

    def __call__(self, encoder: Encoder, *, source: bool = False) -> Tensor: ...


class Method(VaryingBuffers):
    """The hooks of one system; what it keeps lies in parameters and buffers, so it is saved and restored.

    One epoch calls, in this order: `features`, `graph`, `labels`, `fill_memory`, `plan`, then for each step `loss` and
    `after_step`. Epochs are counted from 0.
    """

    defaults: ClassVar[dict[str, Any]] = {}  # the paper's settings, by the names of `Config`
    adapts: ClassVar[bool] = False  # whether it can learn from a labelled source too
    needs_radius: ClassVar[bool] = False  # whether `labels` compares or schedules radii of DBSCAN
    recipes: ClassVar[dict[str, dict[str, Any]]] = {  # further settings for one data set or recipe
        "msmt17": {"iters": 400},
        "personx": {"eps": 0.7},
        "veri776": {"iters": 400},
        "small": {"eps": 0.5},  # features from scratch lie closer together than pretrained ones
    }

    def __init__(self, config: Config, train: ImageSet, source: ImageSet | None = None) -> None:
        """
        Args:
            config: the run's settings.
            train: the N training pictures.
            source: pictures of S known identities, 0..S-1, to learn from too (domain adaptation).

        Raises:
            UserError: the method needs camera ids and a picture has none, or it cannot use a source.
        """
        super().__init__()
        self.config = config
        self.train_set = train
        self.source = source
        if self.needs_radius and config.cluster != "dbscan":
            raise UserError(
                f"--method {self._shown} clusters at several radii, which --cluster {config.cluster} does not know: "
                "use --cluster dbscan"
            )
        if source is not None and not self.adapts:
            raise UserError(f"--method {self._shown} cannot learn from a --source: use cc or spcl")
        if self.needs_cams and (train.cams < 0).any():
            picture = train.paths[int((train.cams < 0).argmax())]
            raise UserError(
                f"--method {self._shown} needs each picture's camera, and that of {picture} is "
                "unknown: give a --pattern that finds it, or choose another method, such as cc with --no-cam"
            )
        self.encoder = self.new_encoder()
        self.memory: Tensor
        self.register_buffer("memory", torch.empty(0, self.encoder.width))

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
        if config.source:
            encoder.neck.bias.requires_grad_(config.domain_bias)
            split_domains(encoder)
        return encoder

    @property
    def source_classes(self) -> int:
        """S, the identities of the source; 0 without one."""
        return 0 if self.source is None else self.source.identities

    @property
    def domains(self) -> int:
        """1, or 2 with a source: a loss is a sum of their means."""
        return 1 if self.source is None else 2

    def joint_labels(self, labels: np.ndarray) -> np.ndarray:
        """The classes of the training pictures, numbered after the source's, then those of its own pictures."""
        if self.source is None:
            return labels
        return np.concatenate([np.where(labels >= 0, labels + self.source_classes, -1), self.source.pids])

    def source_centroids(self, extract: Extract) -> Tensor:
        """[S, D] the unit mean of each source identity's unit features; [0, D] without a source."""
        if self.source is None:
            return self.memory[:0]
        return F.normalize(label_means(extract(self.model, source=True), self.source.pids))

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
        """The [N, D] unit features to cluster. The first epoch also makes the source's rows of the memory."""
        if len(self.memory) < self.source_classes:
            self.memory = self.source_centroids(extract)
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
        return clustering.dbscan(graph, self.eps(epoch), config.min_samples)

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        """Rebuild the memory behind the source's rows: the unit mean of each cluster's unit features, [S + C, D]."""
        kept = self.memory[: self.source_classes]
        self.memory = torch.cat([kept, F.normalize(label_means(features, labels))])

    def plan(self, labels: np.ndarray, epoch: int, rule: Rule = other_cameras) -> np.ndarray:
        """[iters, B] picture indices: the batches of an epoch. With a source [iters, 2B], its pictures first.

        Indices from N on are those of the source's pictures.
        """
        config = self.config
        settings = {
            "batch_size": config.batch_size,
            "num_instances": config.num_instances,
            "seed": config.seed,
            "epoch": epoch,
            "use_cams": self.plans_by_cams,
            "rule": rule,
        }
        plan = epoch_plan(labels, self.train_set.cams, iters=config.iters, **settings)
        if self.source is None:
            return plan
        of_source = epoch_plan(self.source.pids, self.source.cams, iters=len(plan), **settings)
        return np.concatenate([len(self.train_set) + of_source, plan], axis=1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses; the loop minimises their sum."""
        return self.contrast(self.encoder(batch.views[0]), batch)

    def contrast(self, x: Tensor, batch: Batch, targets: Tensor | None = None) -> dict[str, Tensor]:
        """The contrast of features x [B, D] with the prototypes, which x then updates: one op.

        `targets` [B, C] are soft ones, in place of the labels.
        """
        config = self.config
        loss = ops.cluster_step(
            x, self.memory, batch.labels, config.temp, config.momentum,
            targets=targets, **self.update_rule(x.detach(), batch),
        )  # fmt: skip
        return {"contrast": self.domains * loss}

    def update_rule(self, x: Tensor, batch: Batch) -> dict[str, Any]:
        """How features x [B, D] update the prototypes: `ops.cluster_step`'s mode and what that mode needs."""
        mode, temperature = self.config.update, self.config.update_temp
        if mode == "mean":
            mode, temperature = "weighted", math.inf
        return {"mode": mode, "update_temperature": temperature}

    def after_step(self, batch: Batch) -> None:
        """What follows the optimiser's step; here, nothing."""

    def lr(self, epoch: int) -> float:
        """The learning rate of an epoch: a rise over `warmup_epochs`, divisions by 10 every `step_size`."""
        config = self.config
        risen = min(1.0, epoch / config.warmup_epochs) if config.warmup_epochs else 1.0
        divisions = epoch // config.step_size if config.step_size else 0
        return config.lr * (config.warmup_factor * (1 - risen) + risen) * 0.1**divisions
