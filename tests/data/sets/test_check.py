"""The check of image files by their first and last bytes."""

import pytest
from inputs import JPEG, encoded, write

from reid_fast.data.sets import Paths, check_images


def test_bad_images_are_found_and_named(tmp_path):
    png = encoded("PNG")
    good = [write(tmp_path / f"{i}.jpg") for i in range(5)]
    good += [write(tmp_path / "0.png", png), write(tmp_path / "trailer.jpg", JPEG + b"x" * 100)]
    good += [write(tmp_path / f"0.{kind}", encoded(kind.upper())) for kind in ("bmp", "webp")]
    good += [write(tmp_path / "0.tif", encoded("TIFF"))]
    bad = {
        write(tmp_path / "empty.jpg", b""): "empty file",
        write(tmp_path / "png.jpg", png): "a PNG named .jpg",
        write(tmp_path / "cut.jpg", JPEG[:-2]): "truncated JPEG",
        write(tmp_path / "cut.png", png[:-12]): "truncated PNG",
        write(tmp_path / "text.jpg", b"<html>"): "not an image",
        tmp_path / "gone.jpg": "unreadable: No such file",
    }
    found = check_images(Paths.of([*good, *bad]))
    assert [row for row, _ in found] == list(range(len(good), len(good) + len(bad)))
    for (_, reason), expected in zip(found, bad.values(), strict=True):
        assert reason.startswith(expected)


PNG = encoded("PNG")


@pytest.mark.parametrize(
    "content",
    [
        PNG[:40] + PNG[44:],  # shorter than its chunks say
        PNG[:20] + b"\0" * 4 + PNG[24:],  # a height of 0, against the header's checksum
        PNG[:8] + PNG[33:],
    ],
    ids=["cut", "header", "headless"],
)
def test_a_png_with_damaged_chunks_is_found(tmp_path, content):
    """DALI may crash on it."""
    path = write(tmp_path / "0.png", content)
    assert check_images(Paths.of([path])) == [(0, "a PNG with damaged chunks")]


def test_the_check_reports_its_progress(tmp_path, monkeypatch):
    monkeypatch.setattr("reid_fast.data.sets.in_threads._CHUNK", 2)
    seen = []
    check_images(Paths.of(write(tmp_path / f"{i}.jpg") for i in range(5)), progress=lambda *step: seen.append(step))
    assert seen == [(2, 5), (4, 5), (5, 5)]
