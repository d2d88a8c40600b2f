"""What a method may change. Every default here is Cluster Contrast's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from reid_fast import clustering
from reid_fast.clustering.jaccard import Neighbours
from reid_fast.config import Config, Overlay
from reid_fast.data.images import Batch, Rule, View, epoch_plan, images_of_pass, other_cameras
from reid_fast.data.sets import ImageSet, TrainingSet
from reid_fast.errors import UserError
from reid_fast.memories import PrototypeMemory, Update, VaryingBuffers, label_means
from reid_fast.methods.settings import CommunitySettings, PrototypeSettings, SourceSettings, UpdateSettings
from reid_fast.models.archs import Options
from reid_fast.models.encoder import Encoder
from reid_fast.models.norm import split_domains
from reid_fast.models.weights import load_weights


class Extract(Protocol):
    """Makes the [N, D] L2-normalised features of all target images, or of the source's."""

    def __call__(self, encoder: Encoder, *, source: bool = False) -> Tensor: ...


class Method(VaryingBuffers, ABC):
    """The hooks of one system; what it keeps lies in parameters and buffers, so it is saved and restored.

    One epoch calls, in this order: `extract_features`, `build_graph`, `assign_labels`, `fill_memory`, `plan_epoch`,
    then for each step `draw`, `training_step` and, behind the optimiser's, `finish_step`. Epochs are counted from 0.
    Where several ranks train, the first one alone builds the graph and assigns the labels; all else each of them does.

    The type of `config` is the dataclass of the settings that the method reads; its defaults are the paper's.
    """

    config: Config
    recipes: ClassVar[Mapping[str, Overlay]] = {}  # further settings for a data set, a recipe, a "recipe on data set"

    def __init__(self, config: Config, images: TrainingSet) -> None:
        """
        Args:
            config: the run's settings, of the method's own type.
            images: what is trained on.

        Raises:
            UserError: the method needs camera ids and an image has none.
        """
        super().__init__()
        unknown = images.target.cams < 0
        if config.needs_cameras and unknown.any():
            raise UserError(
                f"--method {config.method.replace('_', '-')} needs each image's camera, and that of "
                f"{images.target.paths[int(unknown.argmax())]} is unknown: give a --pattern that finds it, or choose "
                "another method, such as cc with --no-cam"
            )
        self.config, self.images = config, images
        self.build()

    def build(self) -> None:
        """Make the parts: encoders and memories."""
        self.encoder = self.new_encoder()

    def new_encoder(self) -> Encoder:
        """An encoder with its initial weights; with a source, BatchNorm by domain."""
        config = self.config
        options = Options(config.size, config.stem_relu, config.drop_path)
        encoder = Encoder(config.arch, config.pooling_type, config.bn_group, options)
        load_weights(encoder, config.arch, config.weights)
        if isinstance(config, SourceSettings) and self.images.source is not None:
            encoder.neck.bias.requires_grad_(config.domain_bias)
            split_domains(encoder)
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
        """What a training image is turned into."""
        return (View(pad=self.config.pad, erase=self.config.erase),)

    @property
    def sampling_rule(self) -> Rule:
        """Which of an identity's images come into a batch."""
        return other_cameras

    def eps(self, epoch: int) -> float:
        """DBSCAN's eps in an epoch, a Jaccard distance."""
        return self.config.eps

    def max_distance(self, epoch: int) -> float:
        """The largest Jaccard distance that `assign_labels` asks of its graph."""
        other = _other_clustering(self.config)
        return clustering.BELOW_ONE if other and other.cluster == "hdbscan" else self.eps(epoch)

    def extract_features(self, extract: Extract) -> Tensor:
        """The [N, D] L2-normalised features to cluster."""
        return extract(self.model)

    def source_centroids(self, extract: Extract) -> Tensor:
        """[S, D] the normalised mean of each source identity's features; [0, D] without a source."""
        if self.images.source is None:
            return torch.empty(0, self.encoder.width, device=next(self.encoder.parameters()).device)
        return F.normalize(label_means(extract(self.model, source=True), self.images.source.pids))

    @property
    def neighbours(self) -> int:
        """K, the nearest images of each, itself included, that the graph is made of."""
        other = _other_clustering(self.config)
        return other.neighbours if other and other.cluster == "infomap" else self.config.k1

    def build_graph(self, features: Tensor, neighbours: Neighbours, epoch: int) -> sparse.csr_matrix:
        """[N, N] what `assign_labels` clusters: Jaccard distances, or similarities for Infomap."""
        config, other = self.config, _other_clustering(self.config)
        if other and other.cluster == "infomap":
            return clustering.similarity_graph(neighbours, other.min_similarity)
        sizes = config.k1, config.k2, self.max_distance(epoch)
        return clustering.jaccard_graph(features, *sizes, neighbours=neighbours)

    def assign_labels(self, graph: sparse.csr_matrix, epoch: int) -> np.ndarray:
        """[N] int64 pseudo labels from the graph; -1 takes no part in the epoch."""
        config, other = self.config, _other_clustering(self.config)
        if other is None:
            return clustering.dbscan(graph, self.eps(epoch), config.min_samples)
        if other.cluster == "infomap":
            return clustering.infomap(graph, other.min_cluster)
        return clustering.hdbscan(graph, config.min_samples, other.min_cluster)

    @abstractmethod
    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        """Make the epoch's memory of the [N, D] features and their [N] labels."""

    def plan_epoch(self, labels: np.ndarray, epoch: int) -> np.ndarray:
        """[iters, B] the batches of an epoch, as indices into `images`. With a source [iters, 2B], its images first."""
        plan = self._plan(self.images.target, self.sampled_classes(labels), epoch, self.config.iters)
        if self.images.source is None:
            return plan
        of_source = self._plan(self.images.source, self.images.source.pids, epoch, len(plan))
        return np.concatenate([of_source, self.images.first + plan], axis=1)

    def sampled_classes(self, labels: np.ndarray) -> np.ndarray:
        """[N] the classes, each with `--num-instances` images, that batches are made of; -1 takes no part."""
        return labels

    def images_of_pass(self, labels: np.ndarray) -> int:
        """How many images one pass over all classes gives: where they fill no batch, a batch has several passes."""
        return images_of_pass(self.sampled_classes(labels), self.config.num_instances, self.sampling_rule)

    def _plan(self, images: ImageSet, labels: np.ndarray, epoch: int, iters: int) -> np.ndarray:
        config = self.config
        return epoch_plan(
            labels,
            images.cams,
            batch_size=config.batch_size,
            num_instances=config.num_instances,
            iters=iters,
            seed=config.seed,
            epoch=epoch,
            use_cams=config.samples_by_camera,
            rule=self.sampling_rule,
        )

    def draw(self, batch: Batch) -> Tensor | None:
        """What a step needs of the host beside its images, on the device: it gets it as `batch.drawn`."""
        return None

    def step_constants(self, batch: Batch) -> Hashable:
        """The numbers of the host in a step that change within an epoch: a captured step holds for one value."""
        return ()

    @abstractmethod
    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, whose sum the loop minimises; the memory has moved when it returns.

        What is computed of the batch's images passes through `batch.gather` before it meets anything else: the losses
        are those of the whole step, whichever rank computes them.
        """

    def finish_step(self, batch: Batch) -> None:
        """What follows the optimiser's step; here, nothing."""

    def lr(self, epoch: int) -> float:
        """The learning rate of an epoch: a rise over `warmup_epochs`, divisions by 10 every `step_size`."""
        config = self.config
        risen = min(1.0, epoch / config.warmup_epochs) if config.warmup_epochs else 1.0
        divisions = epoch // config.step_size if config.step_size else 0
        return config.lr * (config.warmup_factor * (1 - risen) + risen) * 0.1**divisions


class PrototypeContrast(Method):
    """Cluster Contrast's memory and loss: a prototype per cluster, behind one per identity of a source."""

    config: PrototypeSettings
    recipes: ClassVar[Mapping[str, Overlay]] = {
        "msmt17": {"iters": 400},
        "personx": {"eps": 0.7},
        "veri776": {"iters": 400},
        "small": {"eps": 0.5},  # features from scratch lie closer together than pretrained ones
        "vit": {"iters": 200, "momentum": 0.2},
        "vit on msmt17": {"eps": 0.7, "bn_group": 128},  # published with two GPUs
    }

    def build(self) -> None:
        super().build()
        self.memory = PrototypeMemory(self.encoder.width)

    def extract_features(self, extract: Extract) -> Tensor:
        """The features to cluster; the first epoch also makes the source's rows of the memory."""
        if len(self.memory.rows) < self.images.source_classes:
            self.memory.rows = self.source_centroids(extract)
        return super().extract_features(extract)

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        self.memory.fill(features, labels, kept=self.images.source_classes)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        return self.contrast(batch.gather(self.encoder(batch.views[0])), batch)

    def contrast(self, x: Tensor, batch: Batch, targets: Tensor | None = None) -> dict[str, Tensor]:
        """The contrast of features x [B, D] with the prototypes, which x then updates.

        `targets` [B, C] are soft ones, in place of the labels.
        """
        update = self.update_rule(x.detach(), batch)
        loss = self.memory.step(x, batch.labels, self.config.temp, update, targets=targets)
        return {"contrast": self.images.domains * loss}

    def update_rule(self, x: Tensor, batch: Batch) -> Update:
        """How features x [B, D] update the prototypes; without `--update`, sample after sample."""
        config = self.config
        if not isinstance(config, UpdateSettings):
            return Update(config.momentum)
        if config.update == "mean":
            return Update(config.momentum, "weighted", math.inf)
        return Update(config.momentum, config.update, config.update_temp)


def _other_clustering(config: Config) -> CommunitySettings | None:
    """The settings of what stands in for DBSCAN, if anything does."""
    return config if isinstance(config, CommunitySettings) and config.cluster != "dbscan" else None
