"""The synthetic set: drawn people before drawn cameras."""

from reid_fast.data.synthetic.command import main
from reid_fast.data.synthetic.draw import is_drawn, synthetic_folder

__all__ = ["is_drawn", "main", "synthetic_folder"]
