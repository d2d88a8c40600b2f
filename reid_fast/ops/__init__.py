"""One op a file: the reference in plain PyTorch or NumPy, the registration, the docstring."""

from reid_fast.ops.cluster_nce import cluster_nce as cluster_nce
from reid_fast.ops.cluster_step import cluster_step as cluster_step
from reid_fast.ops.dbscan import dbscan as dbscan
from reid_fast.ops.jaccard import jaccard_distance as jaccard_distance
from reid_fast.ops.jaccard import jaccard_graph as jaccard_graph
from reid_fast.ops.knn import knn as knn
from reid_fast.ops.memory_update import memory_update as memory_update
