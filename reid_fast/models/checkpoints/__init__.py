"""Checkpoints of the field: one table of names for each family of layouts, and what reads files by them."""

from reid_fast.models.checkpoints.architecture import architecture_of
from reid_fast.models.checkpoints.checkpoint import POSITIONS, Checkpoint, read_checkpoint
from reid_fast.models.checkpoints.positions import grid_of, resized

__all__ = ["POSITIONS", "Checkpoint", "architecture_of", "grid_of", "read_checkpoint", "resized"]
