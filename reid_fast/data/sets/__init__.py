"""What lies in a folder of images: which layout it has, who is seen on each image, and by which camera."""

from reid_fast.data.sets.check import check_images
from reid_fast.data.sets.contents import equal_files, read_contents
from reid_fast.data.sets.counts import CountRow, count_rows, counts_table
from reid_fast.data.sets.files import is_image
from reid_fast.data.sets.known import SIZES
from reid_fast.data.sets.load import load_set, market_style, recognise
from reid_fast.data.sets.manifest import Manifest, Stamps
from reid_fast.data.sets.paths import Paths
from reid_fast.data.sets.pattern import identified
from reid_fast.data.sets.pictures import encoded, ends_early, picture, upright
from reid_fast.data.sets.places import as_path, is_readable, place_of, read_image
from reid_fast.data.sets.records import ImageSet, ReidSet, TrainingSet, Unparsed

__all__ = [
    "SIZES",
    "CountRow",
    "ImageSet",
    "Manifest",
    "Paths",
    "ReidSet",
    "Stamps",
    "TrainingSet",
    "Unparsed",
    "as_path",
    "check_images",
    "count_rows",
    "counts_table",
    "encoded",
    "ends_early",
    "equal_files",
    "identified",
    "is_image",
    "is_readable",
    "load_set",
    "market_style",
    "picture",
    "place_of",
    "read_contents",
    "read_image",
    "recognise",
    "upright",
]
