"""The synthetic set: drawn people before drawn cameras."""

from reid_fast.data.synthetic.draw import synthetic_folder

__all__ = ["synthetic_folder"]
