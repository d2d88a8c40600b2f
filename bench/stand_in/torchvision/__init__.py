"""What Cluster Contrast's published code asks of torchvision, where it is missing: transforms, and no networks."""

from . import models, transforms

__all__ = ["models", "transforms"]
