"""Images that are none, or odd ones: refused by name, or the same on every way in; a process survives them all."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from inputs import write
from PIL import Image
from spoilt import as_file, jpeg, person, png, spoilt, turned

from reid_fast.data.images import ImageStream
from reid_fast.data.sets import Paths, check_images, picture

FOLDER = Path(__file__).parent
SEEDS = st.integers(0, 2**63)
WHOLE = {
    "baseline.jpg": as_file(person(), "JPEG"),
    "progressive.jpg": as_file(person(), "JPEG", progressive=True),
    "restarts.jpg": as_file(person(), "JPEG", subsampling=0, restart_marker_blocks=1),
    "cmyk.jpg": as_file(person().convert("CMYK"), "JPEG"),
    "grey.jpg": as_file(person().convert("L"), "JPEG"),
    "icc.jpg": as_file(person(), "JPEG", icc_profile=b"no profile"),
    "garbled_exif.jpg": as_file(person(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "rgb.png": as_file(person(), "PNG"),
    "alpha.png": as_file(person().convert("RGBA"), "PNG"),
    "grey_alpha.png": as_file(person().convert("LA"), "PNG"),
    "palette.png": as_file(person().convert("P"), "PNG", transparency=0),
    "bits.png": as_file(person().convert("1"), "PNG"),
    "grey16.png": as_file(Image.fromarray(np.asarray(person(), np.uint16)[..., 0] * 257), "PNG"),
    "rgb.bmp": as_file(person(), "BMP"),
    "rgb.webp": as_file(person(), "WEBP", lossless=True),
    "rgb.tif": as_file(person(), "TIFF"),
    "deflated.tif": as_file(person(), "TIFF", compression="tiff_deflate"),
}
MARKERS = (b"\xff\xd9", b"\xff\xda", b"\xff\xc4", b"\xff\xe1\xff\xff", b"IEND", b"IDAT", b"\0\0\0\0IHDR")


def drawn(seed: int) -> tuple[str, bytes]:
    """A file spoilt, and how its name ends."""
    chance = random.Random(seed)
    name = chance.choice(list(WHOLE))
    return Path(name).suffix, spoilt(WHOLE[name], chance, MARKERS)


def test_of_spoilt_bytes_the_check_says_what_is_wrong(attack, tmp_path: Path) -> None:
    def check(seed: int) -> None:
        suffix, content = drawn(seed)
        path = write(tmp_path / f"0{suffix}", content)
        found = check_images(Paths.of([path]))
        assert all(row == 0 and reason for row, reason in found)
        if not found and suffix in (".jpg", ".png"):  # of a bomb, Pillow has an error of its own
            with warnings.catch_warnings(action="ignore"), suppress(OSError, SyntaxError, ValueError):
                Image.open(io.BytesIO(content)).close()

    attack(check, 300, seed=SEEDS)


def test_no_spoilt_image_takes_the_process_with_it(request, tmp_path: Path) -> None:
    """Of `--attack N`, N / 100 images: each is decoded on every way."""
    asked = request.config.getoption("attack", 0)
    first = random.SystemRandom().randrange(2**32) if asked else 0
    count, lost = asked // 100 or 16, []
    print(f"images {first} to {first + count - 1}")
    for seed in range(first, first + count):
        suffix, content = drawn(seed)
        write(tmp_path / "images" / f"{seed:012d}{suffix}", content)
    command = [sys.executable, FOLDER / "decode_each.py", tmp_path / "images"]
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}
    while any((tmp_path / "images").iterdir()):
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 + count)
        *done, last = ended.stdout.splitlines()
        if ended.returncode:
            lost.append((last, ended.returncode, ended.stderr[-2000:]))
        for line in (*done, last):
            (tmp_path / "images" / line.split()[0]).unlink()
    assert not lost


def test_every_kind_is_decoded_and_shown_alike(tmp_path: Path) -> None:
    """By DALI and by Pillow, the right side up."""
    for orientation in range(10):
        for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")):
            write(tmp_path / f"turned{orientation}.{suffix}", as_file(person(), kind, exif=turned(orientation)))
    for name, content in WHOLE.items():
        write(tmp_path / name, content)
    paths = Paths.of(sorted(tmp_path.iterdir()))
    assert check_images(paths) == []
    expected = [np.asarray(picture(path)) for path in paths]
    for size in ((40, 24), (24, 40)):
        rows = np.array([row for row, pixels in enumerate(expected) if pixels.shape[:2] == size])
        (found,) = ImageStream(paths, size, threads=1, norm=None).plain(rows, len(rows))
        for row, pixels in zip(rows, found.permute(0, 2, 3, 1).numpy(), strict=True):
            assert np.array_equal(pixels, expected[row]), paths[row].name
    lying = [path.name for path, pixels in zip(paths, expected, strict=True) if pixels.shape[:2] == (24, 40)]
    assert lying == sorted(f"turned{i}.{end}" for i in (5, 6, 7, 8) for end in ("jpg", "png", "webp", "tif"))


@pytest.mark.parametrize("size", [(1, 1), (30_000, 1), (1, 30_000), (2, 65_500)])
def test_extreme_sides_are_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write(tmp_path / "0.jpg", as_file(person().resize(size[::-1]), "JPEG"))
    assert check_images(Paths.of([path])) == []
    (pixels,) = ImageStream([path], (8, 8), threads=1, norm=None).plain(np.array([0]), 1)
    assert abs(pixels.float().mean() - np.asarray(picture(path)).mean()) < 12


REFUSED = {
    "gif.jpg": (as_file(person(), "GIF"), "not an image"),
    "jpeg2000.jpg": (as_file(person(), "JPEG2000"), "not an image"),
    "png.jpg": (WHOLE["rgb.png"], "a PNG named .jpg"),
    "webp.jpg": (WHOLE["rgb.webp"], "a WebP named .jpg"),
    "bmp.png": (WHOLE["rgb.bmp"], "a BMP named .png"),
    "tiff.jpeg": (WHOLE["rgb.tif"], "a TIFF named .jpeg"),
    "page.jpg": (b"<!DOCTYPE html><h1>404</h1>", "not an image"),
    "empty.png": (b"", "empty file"),
    "zeros.jpg": (bytes(5000), "not an image"),
    "bomb.jpg": (jpeg(65_500, 65_500), "4,290,250,000 pixels, more than 178,956,970"),
    "bomb.png": (png(60_000, 60_000, bytes(999)), "3,600,000,000 pixels, more than 178,956,970"),
    "flat.jpg": (jpeg(0, 24), "a JPEG with a damaged header"),
    "flat.png": (png(0, 24, b""), "a PNG with damaged chunks"),
}


def test_what_only_claims_to_be_an_image_is_refused(tmp_path: Path) -> None:
    paths = Paths.of(write(tmp_path / name, content) for name, (content, _) in REFUSED.items())
    assert check_images(paths) == [(row, reason) for row, (_, reason) in enumerate(REFUSED.values())]


def test_a_name_without_an_images_suffix_claims_nothing(tmp_path: Path) -> None:
    """As tables have them."""
    names = ("000017", "x.jfif", "crops.v2", "x.jpg~")
    assert check_images(Paths.of(write(tmp_path / name, WHOLE["baseline.jpg"]) for name in names)) == []
