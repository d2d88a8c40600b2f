"""Encoders that this project has exported, and backbones that were saved by themselves."""

from __future__ import annotations

from reid_fast.models.checkpoints.layout import BACKBONE, NECK, POOL, Layout

LAYOUTS = (
    Layout(
        name="encoder of reid-fast",
        mark=r"backbone\.",
        used={BACKBONE: BACKBONE, NECK: NECK, POOL: POOL},
    ),
)
# Where nothing else matches: the architecture knows its own names.
BARE = Layout(name="backbone", mark="", used={"": BACKBONE})
