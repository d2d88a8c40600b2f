"""A fused-kernel training engine for unsupervised person re-identification."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reid_fast import ops
    from reid_fast.clustering.dbscan import dbscan
    from reid_fast.clustering.jaccard import jaccard_distance, jaccard_graph
    from reid_fast.clustering.knn import knn
    from reid_fast.clustering.rerank import rerank
    from reid_fast.retrieval import load_encoder, search
    from reid_fast.train import train_with as train

# onnxruntime (1.29 on) sends what it is used for to its maker, unless this is set when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "__version__",
    "dbscan",
    "jaccard_distance",
    "jaccard_graph",
    "knn",
    "load_encoder",
    "ops",
    "rerank",
    "search",
    "train",
]

try:
    __version__ = version("reid-fast")
except PackageNotFoundError:  # sources on the path, not installed
    __version__ = "unknown"


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name where it is first used, so that `import reid_fast` costs nothing."""
        if name in ("ops", "train"):  # modules; the second can be called
            return import_module(f"reid_fast.{name}")
        if name in ("load_encoder", "search"):
            return getattr(import_module("reid_fast.retrieval"), name)
        if name in __all__:
            return getattr(import_module("reid_fast.clustering"), name)
        raise AttributeError(f"module 'reid_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
