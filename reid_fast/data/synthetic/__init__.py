"""The synthetic set: drawn people before drawn cameras."""

from reid_fast.data.synthetic.command import main
from reid_fast.data.synthetic.draw import is_drawn, is_synthetic, synthetic_folder

__all__ = ["is_drawn", "is_synthetic", "main", "synthetic_folder"]
