"""One op a file: the reference in plain PyTorch, the registration, the docstring."""

from reid_fast.ops.augment import augment
from reid_fast.ops.bias_relu import bias_relu
from reid_fast.ops.camera_nce import camera_nce, camera_weights
from reid_fast.ops.cluster_attention import cluster_attention, received_attention
from reid_fast.ops.cluster_nce import cluster_nce
from reid_fast.ops.cluster_step import cluster_step
from reid_fast.ops.grouped_bn import grouped_bn
from reid_fast.ops.hybrid_nce import ClassMeans, class_means, hybrid_nce, hybrid_update
from reid_fast.ops.memory_update import memory_update
from reid_fast.ops.soft_nce import hard_nce, soft_nce

__all__ = [
    "ClassMeans",
    "augment",
    "bias_relu",
    "camera_nce",
    "camera_weights",
    "class_means",
    "cluster_attention",
    "cluster_nce",
    "cluster_step",
    "grouped_bn",
    "hard_nce",
    "hybrid_nce",
    "hybrid_update",
    "memory_update",
    "received_attention",
    "soft_nce",
]
