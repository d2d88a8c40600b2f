"""Score an encoder on a data set: mAP, CMC, mINP."""

from reid_fast.evaluate import main

__all__ = ["main"]
