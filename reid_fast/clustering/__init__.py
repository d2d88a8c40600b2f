"""Features to labels: neighbours, the k-reciprocal Jaccard graph, DBSCAN and what can stand in for it; re-ranking.

The steps, and what holds about their result: docs/clustering.md.
"""

from reid_fast.clustering.communities import hdbscan, infomap, similarity_graph
from reid_fast.clustering.dbscan import dbscan
from reid_fast.clustering.jaccard import BELOW_ONE, jaccard_distance, jaccard_graph
from reid_fast.clustering.knn import knn
from reid_fast.clustering.knn_ivf import knn_ivf
from reid_fast.clustering.progress import reporting
from reid_fast.clustering.rerank import Reranking, rerank

__all__ = [
    "BELOW_ONE",
    "Reranking",
    "dbscan",
    "hdbscan",
    "infomap",
    "jaccard_distance",
    "jaccard_graph",
    "knn",
    "knn_ivf",
    "reporting",
    "rerank",
    "similarity_graph",
]
