"""The store of decoded pictures against the stream that decodes them from files."""

import io
import threading

import numpy as np
import pytest
import torch
from inputs import break_files, save_photos, smooth_pictures
from PIL import Image
from rich.console import Console as Terminal

from reid_fast.console import Console
from reid_fast.data.images import store
from reid_fast.data.images.augmentation import View, draw
from reid_fast.data.images.dali import STD, ImageStream
from reid_fast.data.images.store import ImageStore, decoded
from reid_fast.errors import UserError

SIZES = [(48, 24), (33, 17), (7, 50), (64, 64)]
GIB = 2**30
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """JPEGs of several sizes, and one of noise."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = folder / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 35, 3), dtype=np.uint8)).save(noise)
    return [*save_photos(folder), noise]


@pytest.fixture
def console():
    console = Console()
    console._terminal = Terminal(file=io.StringIO())
    return console


def said(console):
    return console._terminal.file.getvalue()


def held(paths, size, device=CPU, limit=1.0):
    pixels = decoded(paths, size, limit, device=device, threads=1, console=Console())
    return ImageStore(paths, pixels)


def through(pictures, views, size, count=61, batch_size=9):
    """`count` pictures in any order and more than once, by view: [count, 3, H, W]."""
    indices = np.random.default_rng(1).integers(0, len(pictures.paths), count)

    def batches():
        for start in range(0, count, batch_size):
            rows = np.arange(count)[start : start + batch_size]
            yield (
                indices[rows],
                [draw(view, size, rows, seed=5, epoch=2, number=n) for n, view in enumerate(views)],
            )

    return [torch.cat(view) for view in zip(*pictures(batches()), strict=True)]


def both(paths, views, size):
    stream = ImageStream(paths, size, views=views, batch_size=9, threads=1)
    return through(stream, views, size), through(held(paths, size), views, size)


@pytest.mark.parametrize("size", SIZES)
def test_flip_crop_and_erasing_give_the_streams_bits(paths, size):
    views = (View(pad=5, erase=0.7), View(pad=0, flip=1.0, erase=0.0), View(erase=1.0, erase_across=True))
    for streamed, stored in zip(*both(paths, views, size), strict=True):
        assert torch.equal(stored, streamed)
        assert stored.dtype == torch.float32
        assert stored.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("view", "share"), [
    (View(pad=3, blur=0.7), 1e-4),
    (View(pad=3, grey=True), 3e-3),  # luminance is a multiple of 0.001: one in a thousand lies halfway
    (View(pad=3, blur=0.7, grey=True, erase=0.0), 3e-3),
])  # fmt: skip
def test_blur_and_grey_differ_by_a_level_where_rounding_does(paths, size, view, share):
    ((streamed,), (stored,)) = both(paths, (view,), size)
    off = (stored - streamed).abs().permute(0, 2, 3, 1) * torch.tensor(STD) * 255
    assert off.max() < 1.01
    assert (off > 0.01).float().mean() < share


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16])
@pytest.mark.parametrize("size", SIZES[:2])
def test_plain_pictures_are_the_streams(paths, size, batch_size):
    order = np.array([6, 3, 3, 0, 5, 1, 4, 2])[::-1]
    parts = list(held(paths, size).plain(order, batch_size))
    streamed = list(ImageStream(paths, size, batch_size=batch_size).plain(order, batch_size))
    assert [len(part) for part in parts] == [len(part) for part in streamed]
    assert all(torch.equal(a, b) for a, b in zip(parts, streamed, strict=True))


def test_more_files_than_are_decoded_at_once(tmp_path, console):
    paths = [tmp_path / f"{i}.png" for i in range(259)]
    pictures = list(smooth_pictures(len(paths), 9, 5))
    for path, pixels in zip(paths, pictures, strict=True):
        Image.fromarray(pixels).save(path)
    pixels = decoded(paths, (9, 5), 1, device=CPU, threads=2, console=console)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels, pictures)
    assert "every use" not in said(console)


def test_a_store_of_a_part_shares_the_pixels_of_the_whole(paths):
    pixels = decoded(paths, (8, 9), 1, device=CPU, threads=1, console=Console())
    part = ImageStore(paths[4:], pixels[4:])
    pixels[5] = 0
    (black,) = part.plain(np.array([1]), 1)
    assert black.flatten(2).amax(2).lt(0).all()
    (whole,) = ImageStore(paths, pixels).plain(np.array([6, 4]), 2)
    (same,) = part.plain(np.array([2, 0]), 2)
    assert torch.equal(whole, same)


def test_several_passes_and_one_that_is_given_up(paths):
    pictures = held(paths, (9, 8))
    first = torch.cat(list(pictures.plain(np.arange(7), 2)))
    abandoned = pictures.plain(np.arange(7)[::-1], 2)
    next(abandoned)
    assert torch.equal(torch.cat(list(pictures.plain(np.arange(7), 3))), first)
    abandoned.close()
    assert list(pictures.plain(np.empty(0, np.int64), 4)) == []


@pytest.mark.parametrize("kind", range(6))
def test_a_picture_that_cannot_be_used_is_named_as_by_the_stream(paths, tmp_path, kind):
    bad = [*break_files(tmp_path, paths[0]), tmp_path / "gone.jpg"][kind]
    listed = [*paths, bad, *paths]
    with pytest.raises(UserError) as streaming:
        list(ImageStream(listed, (9, 8), batch_size=4).plain(np.arange(15), 4))
    with pytest.raises(UserError) as storing:
        held(listed, (9, 8))
    assert str(storing.value) == str(streaming.value)
    assert str(bad) in str(storing.value)


@pytest.mark.parametrize(("limit", "fits"), [(7 * 9 * 8 * 3, True), (7 * 9 * 8 * 3 - 1, False), (0, False)])
def test_pictures_are_held_up_to_the_limit(paths, limit, fits, console):
    pixels = decoded(paths, (9, 8), limit / GIB, device=CPU, threads=1, console=console)
    assert (pixels is not None) == fits
    lines = said(console).splitlines()
    assert len(lines) == (not fits)
    assert fits or "pictures are decoded at every use: 7 of them take 0.00 GiB, more than --cache" in lines[0]


def test_half_of_the_memory_is_left(paths, console, monkeypatch):
    needed = 7 * 9 * 8 * 3 / GIB
    options = {"device": CPU, "threads": 1, "console": console}
    monkeypatch.setattr(store, "_memory", lambda device: 2 * needed)
    assert decoded(paths, (9, 8), 1, **options) is not None
    monkeypatch.setattr(store, "_memory", lambda device: 1.9 * needed)
    assert decoded(paths, (9, 8), 1, **options) is None
    assert "more than the 0.00 GiB that cpu can spare" in said(console)


def test_the_machine_tells_its_memory():
    assert 0.1 < store._memory(CPU) < 2**15


def test_the_next_batch_is_made_while_the_caller_has_this_one():
    asked = [threading.Event() for _ in range(4)]

    def batches():
        for event in asked:
            event.set()
            yield event

    served = ImageStore([], torch.empty(0))
    served._views = lambda event: event
    for i, event in enumerate(served((event,) for event in batches())):
        assert event is asked[i]
        assert i == 3 or asked[i + 1].wait(10)
        assert not any(later.is_set() for later in asked[i + 2 :])


def test_an_error_reaches_the_caller_and_no_thread_stays(paths):
    pictures = held(paths, (9, 8))
    threads = threading.active_count()

    def batches():
        yield np.arange(3), ()
        raise UserError("no more")

    served = pictures(batches())
    assert len(next(served)[0]) == 3
    with pytest.raises(UserError, match="no more"):
        next(served)
    given_up = pictures.plain(np.arange(7), 1)
    next(given_up)
    assert threading.active_count() == threads + 1
    given_up.close()
    del given_up
    assert threading.active_count() == threads


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(48, 24), (33, 17)])
def test_gpu_store_is_the_gpus_stream(paths, size):
    views = (View(pad=5, erase=0.7), View(pad=3, erase=0.0, blur=0.5))
    device = torch.device("cuda", 0)
    stored = through(held(paths, size, device), views, size)
    streamed = through(ImageStream(paths, size, views=views, batch_size=9, device=device), views, size)
    for mine, theirs in zip(stored, streamed, strict=True):
        assert mine.is_cuda
        off = (mine - theirs).abs().cpu().permute(0, 2, 3, 1) * torch.tensor(STD) * 255
        assert off.max() < 1.01
        assert (off > 0.01).float().mean() < 1e-3


@pytest.mark.gpu
def test_gpu_without_room_streams(paths, console, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 10**12))
    assert decoded(paths, (9, 8), 1, device=torch.device("cuda"), threads=1, console=console) is None
    assert "cuda can spare" in said(console)
