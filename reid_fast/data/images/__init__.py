"""The images of a step: which ones, how they are augmented, decoded from files or held in memory."""

from reid_fast.data.images.batch import Batch

__all__ = ["Batch"]
