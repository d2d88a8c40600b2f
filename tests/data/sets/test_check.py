"""The check of image files by their first and last bytes."""

import time

import pytest
from inputs import JPEG, encoded, pack, write

from reid_fast.data.sets import Paths, check_images, load_set
from reid_fast.data.sets.in_threads import in_threads


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


def test_what_lies_beyond_the_first_bytes_is_followed(tmp_path):
    """As files, and between others in a shard."""
    note = b"\xff\xe1" + (60_000).to_bytes(2, "big") + bytes(59_998)
    padded = encoded("PNG")[:33] + b"\0\0\x23\x28tEXt" + bytes(9004) + encoded("PNG")[33:]
    contents = {
        "good.jpg": (JPEG[:2] + note + b"\xff\xff" + note + JPEG[2:], None),
        "lost.jpg": (JPEG[:2] + note + b"\0" + note + JPEG[2:], "a JPEG with a damaged header"),
        "long.jpg": (JPEG[:2] + note[:50_000], "a JPEG with a damaged header"),
        "late.jpg": (JPEG + bytes(5000), "truncated JPEG: no EOI marker at its end"),
        "good.png": (padded, None),
        "lost.png": (padded[:40] + padded[41:], "a PNG with damaged chunks"),
        "next.jpg": (JPEG, None),
    }
    files = {name: content for name, (content, _) in contents.items()}
    plain = Paths.of(write(tmp_path / "plain" / name, content) for name, content in files.items())
    pack(tmp_path / "0.tar", files)
    for paths in (plain, load_set("folder", tmp_path / "0.tar").train.paths):
        found = {paths[row].name: reason for row, reason in check_images(paths)}
        assert found == {name: reason for name, (_, reason) in contents.items() if reason}


def test_a_check_that_is_given_up_stops(tmp_path, monkeypatch):
    monkeypatch.setattr("reid_fast.data.sets.in_threads._CHUNK", 1)
    begun = []

    def task(some):
        begun.append(some)
        time.sleep(0.01)

    parts = in_threads(task, Paths.of(f"{i}.jpg" for i in range(1000)))
    next(parts)
    parts.close()
    assert len(begun) < 100


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
