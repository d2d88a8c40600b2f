"""Which images share their label."""

from __future__ import annotations

import numpy as np


def in_company(labels: np.ndarray) -> np.ndarray:
    """[N] bool: whether an image shares its label; methods without outliers give each a class of its own."""
    counts = np.bincount(labels[labels >= 0], minlength=labels.max() + 1)
    return (labels >= 0) & (counts[labels] > 1) if len(counts) else labels >= 0
