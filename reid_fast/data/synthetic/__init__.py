"""The synthetic set: drawn people before drawn cameras."""

from reid_fast.data.synthetic.command import main
from reid_fast.data.synthetic.draw import synthetic_folder

__all__ = ["main", "synthetic_folder"]
