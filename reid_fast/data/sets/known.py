"""The public data sets: their layouts, names, sizes and published counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from reid_fast.data.sets.layouts import FolderLayout, Layout, ListLayout, Naming

_UPRIGHT = (256, 128)  # people
_MARKET_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


@dataclass(frozen=True)
class Published:
    """The counts a split was published with."""

    identities: int
    images: int


@dataclass(frozen=True)
class SetSpec:
    """A public data set: where it may lie, how it may be laid out, how large it should be."""

    title: str
    folders: tuple[str, ...]  # common names of its folder in lower case, the preferred one first
    layouts: tuple[Layout, ...]  # the first that matches is read
    cameras: int
    published: Mapping[str, Published]  # by split: train, query, gallery
    size: tuple[int, int] = _UPRIGHT  # (H, W) in pixels, as the field resizes it


def _numbered(cameras: int) -> dict[int, int]:
    return {number: number - 1 for number in range(1, cameras + 1)}


def _market(example: str, cameras: Mapping[int, int], pids: range, unlike: str = "", **more: bool) -> FolderLayout:
    """Market-1501's layout; `unlike`: what, after the camera number, gives away another set."""
    pattern = re.compile(r"(?P<pid>-?\d+)_c(?P<cam>\d+)(?!\d" + unlike + ")")
    return FolderLayout("Market-style", _MARKET_FOLDERS, Naming(pattern, example, cameras, pids, **more))


ANY_MARKET = _market("0002_c1s1_000451_03.jpg", _numbered(9999), range(10**9), distractors=True)
_VERI = Naming(re.compile(r"(?P<pid>-?\d+)_c(?P<cam>\d+)(?!\d)"), "0002_c002_00030600_0.jpg", _numbered(20), range(777))
_MSMT = Naming(re.compile(r"\d+_\d+_(?P<cam>\d+)_"), "0000_000_01_0303morning_0015_0.jpg", _numbered(15), range(4101))

KNOWN: Mapping[str, SetSpec] = {
    "market1501": SetSpec(
        title="Market-1501",
        folders=("market1501", "market-1501-v15.09.15", "market-1501", "market"),
        layouts=(_market("0002_c1s1_000451_03.jpg", _numbered(6), range(1502), r"|_f\d", distractors=True),),
        cameras=6,
        published={
            "train": Published(751, 12936),
            "query": Published(750, 3368),
            "gallery": Published(751, 15913),
        },
    ),
    "dukemtmcreid": SetSpec(
        title="DukeMTMC-reID",
        folders=("dukemtmcreid", "dukemtmc-reid", "dukemtmc", "duke"),
        layouts=(_market("0001_c2_f0046182.jpg", _numbered(8), range(10000), r"|s\d"),),
        cameras=8,
        published={
            "train": Published(702, 16522),
            "query": Published(702, 2228),
            "gallery": Published(1110, 17661),
        },
    ),
    "msmt17": SetSpec(
        title="MSMT17",
        folders=("msmt17", "msmt17_v1", "msmt17_v2"),
        layouts=(
            ListLayout("MSMT17 V1 lists", ("train", "test"), _MSMT),
            ListLayout("MSMT17 V2 lists", ("mask_train_v2", "mask_test_v2"), _MSMT),
            _market("0000_c1_0000.jpg", _numbered(15), range(4101), r"|s\d|_f\d"),
        ),
        cameras=15,
        published={
            "train": Published(1041, 32621),
            "query": Published(3060, 11659),
            "gallery": Published(3060, 82161),
        },
    ),
    "personx": SetSpec(
        title="PersonX",
        folders=("personx",),
        layouts=(_market("0001_c3_0.jpg", {3: 0, 4: 1, 8: 2, 10: 3, 11: 4, 12: 5}, range(1267), r"|_f\d"),),
        cameras=6,
        published={
            "train": Published(410, 9840),
            "query": Published(856, 5136),
            "gallery": Published(856, 30816),
        },
    ),
    "veri776": SetSpec(
        title="VeRi-776",
        folders=("veri776", "veri-776", "veri"),
        layouts=(FolderLayout("VeRi-776", ("image_train", "image_query", "image_test"), _VERI),),
        cameras=20,
        published={
            "train": Published(576, 37778),
            "query": Published(200, 1678),
            "gallery": Published(200, 11579),
        },
        size=(224, 224),
    ),
}

# Every name that --dataset takes, and the (H, W) in pixels to which the field resizes its images.
SIZES: Mapping[str, tuple[int, int]] = {
    "synthetic": _UPRIGHT,
    **{name: spec.size for name, spec in KNOWN.items()},
    "folder": _UPRIGHT,
}
