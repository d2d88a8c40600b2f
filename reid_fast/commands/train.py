"""Train an encoder on images without labels."""

from reid_fast.train import main

__all__ = ["main"]
