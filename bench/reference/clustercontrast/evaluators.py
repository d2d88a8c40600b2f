"""Features of a loader's images, and their scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

Triples = Sequence[tuple[str, int, int]]


@torch.no_grad()
def extract_features(
    model: nn.Module, data_loader: Iterable[Any], print_freq: int = 50
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The feature and the identity of every image, by its name."""
    model.eval()
    features, pids = {}, {}
    for images, names, of_batch, *_ in data_loader:
        for name, feature, pid in zip(names, model(images.cuda()).cpu(), of_batch, strict=True):
            features[name], pids[name] = feature, pid
    return features, pids


class Evaluator:
    """Scores of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def evaluate(
        self, data_loader: Iterable[Any], query: Triples, gallery: Triples, cmc_flag: bool = False
    ) -> tuple[np.ndarray, float] | float:
        """(CMC, mAP), or mAP alone: each query's images ranked whole, and its own camera's left out."""
        features, _ = extract_features(self.model, data_loader)
        rows = [torch.stack([features[name] for name, _, _ in part]) for part in (query, gallery)]
        order = (distance := torch.cdist(*rows).numpy()).argsort(axis=1)
        pids, cams = (np.array([triple[column] for triple in gallery]) for column in (1, 2))
        precisions, firsts = [], []
        for (_, pid, cam), found, distances in zip(query, order, distance, strict=True):
            seen = found[(pids[found] != pid) | (cams[found] != cam)]
            if (match := pids[seen] == pid).any():
                precisions.append(average_precision_score(match, -distances[seen]))
                firsts.append(match.argmax())
        cmc = np.bincount(firsts, minlength=100).cumsum()[:100] / len(firsts)
        return (cmc, float(np.mean(precisions))) if cmc_flag else float(np.mean(precisions))
