"""How well clusters lie apart, judged without labels: what `--save-best` and `--patience` go by."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid_fast.device import full_precision, to_device
from reid_fast.labels.company import in_company
from reid_fast.ops import class_means

_BLOCK_ELEMENTS = 2**23  # image × cluster similarities held at once: 32 MiB in float32


@torch.no_grad()
def silhouette(features: Tensor, labels: np.ndarray) -> float:
    """The mean silhouette of images to the centres of clusters; an image outside all clusters counts as 0.

    With the cosine distances a to the centre of the other images of an image's own cluster and b to the nearest centre
    of another cluster, an image's silhouette is (b - a) / max(a, b), in -1..1: Rousseeuw's (J. Comput. Appl. Math.,
    1987), to centres instead of all images (Hruschka et al., "Evolutionary algorithms for clustering gene-expression
    data", ICDM 2004), so that it costs N·C·D. The image itself is left out of its centre, or small clusters would seem
    the tightest. Since outliers count, it does not rise when fewer and easier images are clustered.

    Args:
        features: [N, D] L2-normalised rows.
        labels: [N] int64; -1, or a label of its own, is an outlier.

    Returns:
        In -1..1; -1, the least, with fewer than two clusters: an encoder that tells nobody apart is never the best.
    """
    inside = in_company(labels)
    clusters, own = np.unique(labels[inside], return_inverse=True)
    if len(clusters) < 2:
        return -1.0
    dense = np.full(len(labels), -1)
    dense[inside] = own
    means, counts = class_means(features, to_device(dense, features.device), len(clusters))
    sums, centres = means * counts[:, None], F.normalize(means)
    total = features.new_zeros((), dtype=torch.float64)
    step = max(1, _BLOCK_ELEMENTS // len(clusters))
    rows, cluster_of = (to_device(x, features.device) for x in (np.flatnonzero(inside), own))
    for block, cluster in zip(rows.split(step), cluster_of.split(step), strict=True):
        x = features[block].float()
        with full_precision(x.device):
            nearest = (x @ centres.T).scatter_(1, cluster[:, None], -1.0).amax(1)
        others = sums[cluster] - x
        to_own, to_nearest = 1 - (x * F.normalize(others)).sum(1), 1 - nearest
        total += ((to_nearest - to_own) / torch.maximum(to_own, to_nearest).clamp(min=1e-12)).sum(dtype=torch.float64)
    return total.item() / len(labels)
