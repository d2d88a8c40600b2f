"""Cluster Contrast for unsupervised person re-identification (Dai et al., ACCV 2022, arXiv 2103.11568).

The base class is this method, and the engine's defaults are its settings: cluster prototypes rebuilt every epoch, one
contrast per image, momentum updates. With `--source` (SpCL + Cluster Contrast) the memory begins with a row per source
identity, kept over the epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from reid_fast.config import Overlay
from reid_fast.methods.base import PrototypeContrast
from reid_fast.methods.settings import CommunitySettings, SourceSettings, UpdateSettings


@dataclass(frozen=True, kw_only=True)
class CcConfig(UpdateSettings, CommunitySettings, SourceSettings):
    """The paper's settings are the engine's defaults."""


class ClusterContrast(PrototypeContrast):
    """`--update serial` is the published momentum update, `--update hard` the first version's."""

    config: CcConfig
    recipes: ClassVar[Mapping[str, Overlay]] = {
        **PrototypeContrast.recipes,
        "vit": {**PrototypeContrast.recipes["vit"], "update": "hard"},
    }
