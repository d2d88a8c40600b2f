"""The parts that published code bases share, under their names and arguments, on this engine: docs/drop-in-parts.md."""

from reid_fast.compat.distance import compute_jaccard_distance
from reid_fast.compat.evaluator import Evaluator
from reid_fast.compat.memories import ClusterMemory, HybridMemory

__all__ = ["ClusterMemory", "Evaluator", "HybridMemory", "compute_jaccard_distance"]
