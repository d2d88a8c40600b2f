"""One op a file: the reference in plain PyTorch or NumPy, the registration, the docstring."""

from reid_fast.ops.augment import augment as augment
from reid_fast.ops.camera_nce import camera_nce as camera_nce
from reid_fast.ops.camera_nce import camera_weights as camera_weights
from reid_fast.ops.cluster_attention import cluster_attention as cluster_attention
from reid_fast.ops.cluster_attention import received_attention as received_attention
from reid_fast.ops.cluster_nce import cluster_nce as cluster_nce
from reid_fast.ops.cluster_step import cluster_step as cluster_step
from reid_fast.ops.dbscan import dbscan as dbscan
from reid_fast.ops.ema_update import ema_update as ema_update
from reid_fast.ops.hybrid_nce import ClassMeans as ClassMeans
from reid_fast.ops.hybrid_nce import class_means as class_means
from reid_fast.ops.hybrid_nce import hybrid_nce as hybrid_nce
from reid_fast.ops.hybrid_nce import hybrid_update as hybrid_update
from reid_fast.ops.jaccard import jaccard_distance as jaccard_distance
from reid_fast.ops.jaccard import jaccard_graph as jaccard_graph
from reid_fast.ops.knn import knn as knn
from reid_fast.ops.knn_ivf import knn_ivf as knn_ivf
from reid_fast.ops.memory_update import memory_update as memory_update
from reid_fast.ops.soft_nce import hard_nce as hard_nce
from reid_fast.ops.soft_nce import soft_nce as soft_nce
