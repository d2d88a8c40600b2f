"""Settings that several methods read; a method's own stand in its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from reid_fast.config import Config
from reid_fast.marks import MOST, Count, Interval, Kept, MayChange, NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class PrototypeSettings(Config):
    """The memory of cluster prototypes."""

    temp: Positive = 0.05
    """temperature of the contrastive loss"""
    momentum: Kept = 0.1
    """share of the old prototype that an update of the memory keeps"""


@dataclass(frozen=True, kw_only=True)
class UpdateSettings(PrototypeSettings):
    """How prototypes are updated."""

    update: Literal["serial", "hard", "weighted", "mean"] = "serial"
    """momentum update of the memory: sample after sample, or once a cluster with its least similar member, its members
    weighted by dissimilarity, or their mean"""
    update_temp: Positive = 0.03
    """--update weighted: temperature of the weights by dissimilarity"""


@dataclass(frozen=True, kw_only=True)
class InstanceSettings(Config):
    """The memory of every image, and clusterings at several eps."""

    temp: Positive = 0.05
    """temperature of the contrastive loss"""
    momentum: Kept = 0.2
    """share of its old row that an image keeps"""
    eps_gap: NotNegative = 0.02
    """how far the tight and the loose eps lie from --eps"""
    refill: bool = False
    """fill the memory from the encoder in every epoch, not in the first alone: an encoder from scratch outruns the
    rows"""


@dataclass(frozen=True, kw_only=True)
class CameraSettings(Config):
    """The contrast of camera proxies."""

    camera_temp: Positive = 0.07
    """temperature of the contrast of camera proxies"""
    camera_weight: NotNegative = 0.5
    """weight of the inter-camera contrast"""
    negatives: Count = 50
    """hard negatives of the inter-camera contrast"""

    @property
    def needs_cameras(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class CommunitySettings(Config):
    """Clusterings in place of DBSCAN, for methods that need one clustering alone."""

    cluster: Literal["dbscan", "hdbscan", "infomap"] = "dbscan"
    """how images are clustered: dbscan and hdbscan by Jaccard distance, infomap by cosine similarity"""
    min_cluster: Annotated[int, Interval(2, MOST)] = 5
    """--cluster hdbscan and infomap: images of the smallest cluster"""
    min_similarity: Annotated[float, Interval(-1, 1)] = 0.5
    """--cluster infomap: least cosine similarity that links two images"""
    neighbours: Count = 15
    """--cluster infomap: nearest images, itself included, that may be linked"""


@dataclass(frozen=True, kw_only=True)
class SourceSettings(Config):
    """Domain adaptation: a labelled source to learn from too."""

    source: str | None = None
    """a labelled data set to learn from too, --batch-size images of each in a step, BatchNorm by domain"""
    source_dir: Annotated[Path | None, MayChange] = None
    """the source's folder, or one that holds it"""
    source_pattern: str | None = None
    """--source folder: as --pattern, with a group `pid`"""
    domain_bias: bool = False
    """train the biases of the neck, as SpCL's published code does when it doubles its BatchNorm"""
