"""The images of a step: which ones, how they are augmented, decoded from files or held."""

from reid_fast.data.images.augmentation import View
from reid_fast.data.images.held import Held
from reid_fast.data.images.image_files import ImageFiles
from reid_fast.data.images.loader import Batch, Loader, open_loader
from reid_fast.data.images.normalisation import IMAGENET, NORMALISATIONS, Normalisation
from reid_fast.data.images.open import open_files
from reid_fast.data.images.sampler import (
    Rule,
    class_uniform,
    epoch_plan,
    images_of_pass,
    more_cameras,
    other_cameras,
)
from reid_fast.data.images.stream import ImageStream, undecodable

__all__ = [
    "IMAGENET",
    "NORMALISATIONS",
    "Batch",
    "Held",
    "ImageFiles",
    "ImageStream",
    "Loader",
    "Normalisation",
    "Rule",
    "View",
    "class_uniform",
    "epoch_plan",
    "images_of_pass",
    "more_cameras",
    "open_files",
    "open_loader",
    "other_cameras",
    "undecodable",
]
