"""Robust contrastive learning (DOI 10.1007/s13042-023-01997-1): attention over the members of a cluster.

Beside Cluster Contrast: self-attention weighs a cluster's members when its prototype is made (CSA), and a member that
receives little attention is a hard positive, which updates the prototype (HPS). The abstract fixes no formula: those of
this file are this project's reading, and every part has its switch. `--rcl-init mean --rcl-update seq` is Cluster
Contrast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_fast import ops
from reid_fast.config import Overlay
from reid_fast.data.images import Batch
from reid_fast.device import to_device
from reid_fast.marks import Count, NotNegative, Positive
from reid_fast.memories import Update
from reid_fast.methods.base import PrototypeContrast
from reid_fast.methods.settings import CommunitySettings, PrototypeSettings

MOST_MEMBERS = 256  # of a cluster that attend to each other
_ROWS, _SCORES = 8192, 1 << 26  # the most images, and scores of theirs, held at once while the attention is trained
_STREAM = 0x52434C00  # keeps these draws apart from every other use of the run's seed


class Aggregation(nn.Module):
    """Multi-head self-attention with the diagonal masked and the members themselves as values (SAA)."""

    def __init__(self, width: int, heads: int = 8, head_width: int = 256) -> None:
        super().__init__()
        blocks = [nn.init.orthogonal_(torch.empty(width, min(width, head_width))) for _ in range(heads)]
        # Equal projections: attention begins as the projected cosine.
        self.query = nn.Parameter(torch.stack(blocks))
        self.key = nn.Parameter(self.query.detach().clone())
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Attention received by the [n, D] L2-normalised rows x, [n], and prototypes; see `ops.cluster_attention`."""
        return ops.cluster_attention(*self._project(x), x, offsets, self.log_scale.exp())

    def received(self, x: Tensor, offsets: Tensor) -> Tensor:
        """[n] the attention alone; clusters may be empty."""
        return ops.received_attention(*self._project(x), offsets, self.log_scale.exp())

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(x @ self.query, dim=-1), F.normalize(x @ self.key, dim=-1)


@dataclass(frozen=True, kw_only=True)
class RclConfig(PrototypeSettings, CommunitySettings):
    """Attention over cluster members."""

    rcl_init: Literal["csa", "mean"] = "csa"
    """prototypes of an epoch: members weighted by the attention they receive, or their mean"""
    rcl_update: Literal["hps", "hard_cos", "seq"] = "hps"
    """update with the member of least attention, with the least similar one, or sample after sample"""
    saa_train: Literal["weighted", "plain", "none"] = "weighted"
    """train the attention with each image weighted by its attention, with all alike, or not at all"""
    saa_steps: Count = 20
    """steps that train the attention at the start of an epoch"""
    saa_lr: Positive = 1e-4
    """learning rate of the attention"""
    hps_guard: NotNegative = 0.0
    """pass over members whose attention is below this share of the average; 0: none"""


class RobustContrast(PrototypeContrast):
    """The attention is trained for a few steps at the start of each epoch and fixed during it."""

    config: RclConfig
    recipes: ClassVar[Mapping[str, Overlay]] = {
        **PrototypeContrast.recipes,
        # Clusters from scratch hold intruders, and the member of least attention is one of them.
        "small": {**PrototypeContrast.recipes["small"], "hps_guard": 0.5},
    }

    def build(self) -> None:
        super().build()
        # Trained here, apart from the encoder: the driver's optimiser takes what requires a gradient.
        self.attention = Aggregation(self.encoder.width).requires_grad_(False)

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        """Train the attention on the epoch's features, then make the prototypes with it (CSA)."""
        order, offsets = (to_device(v, features.device) for v in members_by_cluster(labels, self.config.seed))
        x = features[order]
        if self.config.saa_train != "none":
            self._train_attention(x, offsets)
        if self.config.rcl_init == "mean":
            super().fill_memory(features, labels)
        else:
            self.memory.rows = self.attention(x, offsets)[1]

    def _train_attention(self, x: Tensor, offsets: Tensor) -> None:
        self.attention.requires_grad_(True)
        optimizer = torch.optim.Adam(self.attention.parameters(), lr=self.config.saa_lr)
        for _ in range(self.config.saa_steps):
            optimizer.zero_grad()
            backward_csa(self.attention, x, offsets, self.config.temp, self.config.saa_train == "weighted")
            optimizer.step()
        optimizer.zero_grad()
        self.attention.requires_grad_(False)

    def update_rule(self, x: Tensor, batch: Batch) -> Update:
        if self.config.rcl_update == "hps":
            return Update(self.config.momentum, "pick", scores=self.dispersion(x, batch.labels))
        return Update(self.config.momentum, {"seq": "serial", "hard_cos": "hard"}[self.config.rcl_update])

    @torch.no_grad()
    def dispersion(self, x: Tensor, labels: Tensor) -> Tensor:
        """δ = 1 - n·w of each of x [B, D] among the n of its cluster in the batch: [B], the highest one is picked.

        Members whose n·w lies below `--hps-guard` rank behind all others of their cluster.
        """
        order = labels.argsort(stable=True)
        first = F.pad(labels[order].diff() != 0, (1, 0), value=True)
        group = first.cumsum(0) - 1
        # One offset per image, clusters behind the last one being empty: their number stays on the device.
        offsets = torch.searchsorted(group, torch.arange(len(x) + 1, device=x.device))
        n = offsets.diff()[group]
        share = n * self.attention.received(x[order], offsets)
        ranked = 1 - share - 2 * n * (share < self.config.hps_guard)
        return torch.empty_like(ranked).scatter_(0, order, ranked)


def members_by_cluster(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The members of each cluster, at most 256 of each, drawn at random.

    Args:
        labels: [N] int64, -1 is left out.
        seed: of the draw.

    Returns:
        Image indices [n], cluster by cluster, and where each cluster starts, [C + 1] int64.
    """
    rng = np.random.default_rng([_STREAM, seed])
    chosen = rng.permutation(np.flatnonzero(labels >= 0))
    chosen = chosen[np.argsort(labels[chosen], kind="stable")]
    counts = np.bincount(labels[chosen])
    rank = np.arange(len(chosen)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = chosen[rank < MOST_MEMBERS]
    chosen = chosen[np.lexsort((chosen, labels[chosen]))]
    sizes = np.minimum(counts, MOST_MEMBERS)
    return chosen, np.concatenate([[0], np.cumsum(sizes)])


def backward_csa(attention: Aggregation, x: Tensor, offsets: Tensor, temperature: float, weighted: bool) -> Tensor:
    """Add the gradient of the loss that trains the attention to its parameters.

    L = Σ_j v_j · -log softmax_c(x_j·c / τ)[cluster of j] over the prototypes c of all clusters, with v_j = w_j / C, w
    the attention received, or, unweighted, 1 / n. Unweighted, it turns the attention towards the wrong members, whose
    error it lowers most. The scores are held for a slice of the images at a time.

    Args:
        attention: its parameters require gradients.
        x: [n, D] L2-normalised rows, cluster by cluster.
        offsets: [C + 1] int64, where each cluster starts.
        temperature: τ.
        weighted: see above.

    Returns:
        L, a scalar.
    """
    labels = torch.repeat_interleave(offsets.diff(), output_size=len(x))
    weights, prototypes = attention(x, offsets)
    v = weights / len(prototypes) if weighted else torch.full_like(weights, 1 / len(x))
    leaf_v, leaf_c = v.detach().requires_grad_(), prototypes.detach().requires_grad_()
    total = x.new_zeros(())
    step = max(1, min(_ROWS, _SCORES // len(prototypes)))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        scores = x[rows] @ leaf_c.T / temperature
        loss = (leaf_v[rows] * F.cross_entropy(scores, labels[rows], reduction="none")).sum()
        loss.backward()
        total += loss.detach()
    outputs, gradients = [prototypes], [leaf_c.grad]
    if weighted:
        outputs.append(v)
        gradients.append(leaf_v.grad)
    torch.autograd.backward(outputs, gradients)
    return total
