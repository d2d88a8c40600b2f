"""A fused-kernel training engine for unsupervised person re-identification."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "knn": "reid_fast.clustering.knn",
    "jaccard_graph": "reid_fast.clustering.jaccard",
    "jaccard_distance": "reid_fast.clustering.jaccard",
    "dbscan": "reid_fast.clustering.dbscan",
}
__all__ = ["dbscan", "jaccard_distance", "jaccard_graph", "knn"]


def __getattr__(name: str) -> Any:
    """Import an op where it is first used, so that `import reid_fast` costs nothing."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'reid_fast' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
