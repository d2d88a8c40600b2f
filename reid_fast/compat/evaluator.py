"""The published `Evaluator` of SpCL, Cluster Contrast and what was built on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reid_fast.clustering import rerank as reranking
from reid_fast.console import Console
from reid_fast.device import full_precision
from reid_fast.metrics import QueryScores, score_queries

Triples = Sequence[tuple[str, int, int]]  # name, identity, camera: what the published code calls a data set
_CMC = 100  # ranks of the curve that is returned
_UNIT = 1e-3  # by which the length of a normalised feature may be off, in half precision too


class Evaluator:
    """Scores of a model on queries and gallery."""

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: images [B, 3, H, W] to features [B, D] in eval mode.
        """
        self.model = model

    def evaluate(
        self,
        data_loader: Iterable[Any],
        query: Triples,
        gallery: Triples,
        cmc_flag: bool = False,
        rerank: bool = False,
    ) -> float | tuple[np.ndarray, float]:
        """Extract features, rank the gallery by Euclidean distance, print the scores.

        Args:
            data_loader: batches (images, names, ...) that hold every name of `query` and `gallery`.
            query, gallery: (name, identity, camera) of each image.
            cmc_flag: return the CMC curve too.
            rerank: rank by k-reciprocal re-ranking (k1 20, k2 6, λ 0.3) after the plain ranking, and return its scores.

        Returns:
            mAP in 0..1; with `cmc_flag` the CMC curve [100], and mAP.

        Raises:
            ValueError: an image that no batch has, or re-ranking of features that are not L2-normalised.
            UserError: no query has a correct match.
        """
        console = Console()
        with console.progress("evaluating") as report:
            found = _extract(self.model, data_loader, report)
        queries, others = (_stacked(found, part) for part in (query, gallery))
        ids = [np.array([image[column] for image in part]) for part in (query, gallery) for column in (1, 2)]
        half_squares = others.square().sum(1) / 2

        def near(rows: slice) -> Tensor:
            # |q - g|² orders as |g|²/2 - q·g does.
            with full_precision(others.device):
                return (queries[rows] @ others.T).sub_(half_squares)

        scores = score_queries(near, *ids, device=others.device)
        _say(console, scores)
        if rerank:
            _require_unit(queries, others)
            made = reranking(queries, others, say=lambda stage: console.say(f"re-ranking: {stage}"))
            with console.progress("re-ranking", "queries") as report:
                scores = score_queries(
                    lambda rows: made.distances(rows).neg_(), *ids, device=others.device, progress=report
                )
            _say(console, scores)
        mAP = scores.mean().mAP
        return (scores.cmc(_CMC).numpy(), mAP) if cmc_flag else mAP


@torch.no_grad()
def _extract(model: nn.Module, data_loader: Iterable[Any], report: Any) -> dict[str, Tensor]:
    """The feature of each image, by its name, on the CPU."""
    model.eval()
    weight = next(model.parameters(), None)
    features: dict[str, Tensor] = {}
    for images, names, *_ in data_loader:
        batch = model(images if weight is None else images.to(weight.device))
        features.update(zip(names, batch.float().cpu(), strict=True))
        report(len(features), None)
    return features


def _stacked(features: dict[str, Tensor], images: Triples) -> Tensor:
    missing = next((name for name, *_ in images if name not in features), None)
    if missing is not None:
        raise ValueError(f"the loader has no image {missing}")
    return torch.stack([features[name] for name, *_ in images])


def _require_unit(*parts: Tensor) -> None:
    if any((torch.linalg.vector_norm(part, dim=1) - 1).abs().max() > _UNIT for part in parts):
        raise ValueError("re-ranking needs L2-normalised features: let the model return them in eval mode")


def _say(console: Console, scores: QueryScores) -> None:
    mean = scores.mean()
    console.say(f"mAP {mean.mAP:.1%}, rank-1 {mean.rank1:.1%}, rank-5 {mean.rank5:.1%}, rank-10 {mean.rank10:.1%}")
