"""Draw the synthetic data set and print its folder."""

from reid_fast.data.synthetic import main

__all__ = ["main"]
