"""Data sets, sampling, augmentation parameters and image decoding."""
