"""What a method may change. Every default here is Cluster Contrast's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from reid_fast import ops
from reid_fast.config import Config
from reid_fast.data.augment import View
from reid_fast.data.batch import Batch
from reid_fast.data.records import ImageSet
from reid_fast.data.sampler import epoch_plan
from reid_fast.models.encoder import Encoder
from reid_fast.models.weights import load_weights

Extract = Callable[[Encoder], Tensor]  # an encoder -> the [N, D] unit features of all training pictures


class Method(nn.Module):
    """The hooks of one system; what it keeps lies in parameters and buffers, so it is saved and restored.

    One epoch calls, in this order: `features`, `labels`, `fill_memory`, `plan`, then for each step `loss` and
    `after_step`.
    """

    defaults: ClassVar[dict[str, Any]] = {}  # the paper's settings, by the names of `Config`
    recipes: ClassVar[dict[str, dict[str, Any]]] = {}  # further settings for one data set

    def __init__(self, config: Config, train: ImageSet) -> None:
        """
        Args:
            config: the run's settings.
            train: the N training pictures.
        """
        super().__init__()
        self.config = config
        self.train_set = train
        self.encoder = self.new_encoder()
        self.memory: Tensor
        self.register_buffer("memory", torch.empty(0, self.encoder.width))
        self._features: Tensor | None = None

    def new_encoder(self) -> Encoder:
        """An encoder with its initial weights."""
        config = self.config
        encoder = Encoder(config.arch, config.pooling_type, config.bn_group)
        load_weights(encoder, config.arch, config.weights)
        return encoder

    @property
    def model(self) -> Encoder:
        """The encoder that is clustered, evaluated and exported."""
        return self.encoder

    @property
    def views(self) -> tuple[View, ...]:
        """What a training picture is turned into."""
        return (View(pad=self.config.pad, erase=self.config.erase),)

    @property
    def max_distance(self) -> float:
        """The largest Jaccard distance that `labels` asks of its graph."""
        return self.config.eps

    def features(self, extract: Extract) -> Tensor:
        """The [N, D] unit features to cluster."""
        return extract(self.model)

    def labels(self, graph: sparse.csr_matrix) -> np.ndarray:
        """[N] int64 pseudo labels from the Jaccard graph; -1 takes no part in the epoch."""
        return ops.dbscan(graph, self.config.eps, self.config.min_samples)

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        """Rebuild the memory: the unit mean of each cluster's unit features, [C, D]."""
        kept = torch.from_numpy(np.flatnonzero(labels >= 0)).to(features.device)
        label = torch.from_numpy(labels).to(features.device)[kept]
        self.memory = F.normalize(_sum_by_label(features[kept].float(), label))

    def plan(self, labels: np.ndarray, epoch: int) -> np.ndarray:
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
            use_cams=config.cam,
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses; the loop minimises their sum."""
        x = self.encoder(batch.views[0])
        self._features = x.detach()
        return {"contrast": ops.cluster_nce(x, self.memory, batch.labels, self.config.temp)}

    def after_step(self, batch: Batch) -> None:
        """Update the memory from the features of the step's forward pass."""
        config = self.config
        ops.memory_update(self.memory, self._features, batch.labels, config.momentum, config.update)

    def lr(self, epoch: int) -> float:
        """The learning rate of epoch 0, 1, ...: divided by 10 every `step_size` epochs."""
        return self.config.lr * 0.1 ** (epoch // self.config.step_size)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # The memory has another number of rows every epoch: take the saved shape instead of refusing it.
        for name, buffer in self.named_buffers(prefix.rstrip("."), recurse=False):
            if name in state_dict and state_dict[name].shape != buffer.shape:
                setattr(self, name.removeprefix(prefix), buffer.new_empty(state_dict[name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _sum_by_label(features: Tensor, label: Tensor) -> Tensor:
    """[n, D] rows summed by their label: [C, D]."""
    order = torch.argsort(label, stable=True)
    counts = torch.bincount(label)
    return torch.segment_reduce(features[order], "sum", lengths=counts, axis=0)
