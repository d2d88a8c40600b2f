"""Cluster Contrast for unsupervised person re-identification (Dai et al., ACCV 2022, arXiv 2103.11568).

The base class is this method: cluster prototypes rebuilt every epoch, one contrast per picture, momentum updates. With
`--source` (SpCL + Cluster Contrast) the memory begins with a row per source identity, kept over the epochs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from reid_fast.methods.base import Method


class ClusterContrast(Method):
    """`--update serial` is the published momentum update, `--update hard` the first version's."""

    adapts = True
    defaults: ClassVar[dict[str, Any]] = {
        "epochs": 50,
        "iters": 200,
        "batch_size": 256,
        "num_instances": 16,
        "bn_group": 64,
        "eps": 0.6,
        "momentum": 0.1,
        "temp": 0.05,
    }
