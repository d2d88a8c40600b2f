"""Inputs of the clustering tests."""

from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[3] / "shared/golden/pseudo_labels_200ids.npz"


def planted(n, width, seed=0, per_cluster=12, noise=0.1):
    """Unit rows in loose clusters, with a share of rows that belong nowhere."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // per_cluster), width))
    rows = centres[rng.integers(len(centres), size=n)] + 0.7 * rng.normal(size=(n, width))
    stray = rng.random(n) < noise
    rows[stray] = rng.normal(size=(stray.sum(), width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def waves():
    """The clustering test computed by the published code: N = 60, d = 16, ten groups of six."""
    i, j = np.arange(60)[:, None], np.arange(16)
    rows = np.sin(1.3 * (i // 6 + 1) * (j + 1)) + 0.9 * np.cos(0.7 + 2.1 * i + 1.1 * j + 0.37 * i * j)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def golden():
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is not there")
    return dict(np.load(GOLDEN))
