"""The store of decoded images against the stream that decodes them from files."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from inputs import break_files, save_photos, smooth_images
from on_device import CUDA, Device
from PIL import Image

from reid_fast.console import Console
from reid_fast.data.images import IMAGENET, ImageStream, View, store
from reid_fast.data.images.augmentation import draw
from reid_fast.data.images.image_files import Part
from reid_fast.data.images.store import ImageStore, ahead, decode
from reid_fast.data.images.store_file import open_store_file
from reid_fast.errors import UserError

SIZES = [(48, 24), (33, 17), (7, 50), (64, 64)]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """JPEGs of several sizes, and one of noise."""
    folder = tmp_path_factory.mktemp("images")
    noise = folder / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 35, 3), dtype=np.uint8)).save(noise)
    return [*save_photos(folder), noise]


def decoded(paths, size, **options):
    return decode(paths, size, **{"device": CPU, "threads": 1, "console": Console()} | options)


class FromHost(ImageStore):
    """What the host's memory serves to a CUDA device, passed on as the CPU's."""

    def __call__(self, indices, augmentations, batch_size):
        with Device() as device:
            made = list(super().__call__(indices, augmentations, batch_size))
        assert {(event.what, event.waits) for event in device.events} <= {("a copy", False)}
        return iter([tuple(view.plain for view in views) for views in made])


@pytest.fixture(params=["memory", "host", "file"])
def held(request, tmp_path, monkeypatch):
    """What holds the images of paths in a size."""

    def from_host(paths, size):
        monkeypatch.setattr(store, "pinned", pinned)
        return FromHost(paths, decoded(paths, size), CUDA)

    def from_file(paths, size):
        return open_store_file(tmp_path, paths, size, device=CPU, threads=1, console=Console())

    kinds = {"memory": in_memory, "host": from_host, "file": from_file}
    return kinds[request.param]


def in_memory(paths, size, device=CPU):
    return ImageStore(paths, decoded(paths, size, device=device))


def pinned(*shape):
    """Memory that the fake device takes for pinned; poisoned, for whatever is not written."""
    pixels = torch.full(shape, 77, dtype=torch.uint8)
    pixels.pinned = True
    return pixels


def through(files, views, size, count=61, batch_size=9):
    """`count` images in any order and more than once, by view: [count, 3, H, W]."""
    indices = np.random.default_rng(1).integers(0, len(files.paths), count)
    augs = [draw(view, size, np.arange(count), seed=5, epoch=2, number=n) for n, view in enumerate(views)]
    return [torch.cat(view) for view in zip(*files(indices, augs, batch_size), strict=True)]


def both(paths, views, size, held):
    stream = ImageStream(paths, size, views=views, batch_size=9, threads=1)
    return through(stream, views, size), through(held(paths, size), views, size)


@pytest.mark.parametrize("size", SIZES)
def test_flip_crop_and_erasing_give_the_streams_bits(paths, size, held):
    views = (View(pad=5, erase=0.7), View(pad=0, flip=1.0, erase=0.0), View(erase=1.0, erase_across=True))
    for streamed, stored in zip(*both(paths, views, size, held), strict=True):
        assert torch.equal(stored, streamed)
        assert stored.dtype == torch.float32
        assert stored.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("view", "share"),
    [
        (View(pad=3, blur=0.7), 1e-4),
        (View(pad=3, grey=True), 3e-3),  # luminance is a multiple of 0.001: one in a thousand lies halfway
        (View(pad=3, blur=0.7, grey=True, erase=0.0), 3e-3),
    ],
)
def test_blur_and_grey_differ_by_a_level_where_rounding_does(paths, size, view, share, held):
    ((streamed,), (stored,)) = both(paths, (view,), size, held)
    off = (stored - streamed).abs().permute(0, 2, 3, 1) * torch.tensor(IMAGENET.std) * 255
    assert off.max() < 1.01
    assert (off > 0.01).float().mean() < share


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16])
@pytest.mark.parametrize("size", SIZES[:2])
def test_plain_images_are_the_streams(paths, size, batch_size, held):
    order = np.array([6, 3, 3, 0, 5, 1, 4, 2])[::-1]
    parts = list(held(paths, size).plain(order, batch_size))
    streamed = list(ImageStream(paths, size, batch_size=batch_size).plain(order, batch_size))
    assert [len(part) for part in parts] == [len(part) for part in streamed]
    assert all(torch.equal(a, b) for a, b in zip(parts, streamed, strict=True))


def test_more_files_than_are_decoded_at_once(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(259)]
    images = list(smooth_images(len(paths), 9, 5))
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(pixels).save(path)
    pixels = decoded(paths, (9, 5), threads=2)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels, images)


@pytest.mark.parametrize(("begin", "end"), [(0, 3), (2, 7), (6, 7), (3, 3)])
def test_a_share_is_decoded_into_its_own_place(paths, begin, end):
    share = decoded(paths, (9, 8), begin=begin, end=end)
    assert share.shape == (7, 9, 8, 3)
    assert torch.equal(share[begin:end], decoded(paths, (9, 8))[begin:end])


def test_the_last_share_ends_with_the_files(paths):
    assert torch.equal(decoded(paths, (9, 8), begin=5)[5:], decoded(paths, (9, 8))[5:])


def test_a_share_names_the_image_that_is_broken_in_it(paths, tmp_path):
    listed = [*paths, break_files(tmp_path, paths[0])[0]]
    decoded(listed, (9, 8), end=7)
    with pytest.raises(UserError, match=r"empty\.jpg"):
        decoded(listed, (9, 8), begin=5)


def test_a_part_is_the_whole_counted_from_its_start(paths):
    whole, views = in_memory(paths, (8, 9)), [View(pad=2, blur=0.5)]
    part = Part(whole, 3, 6)
    assert part.paths == paths[3:6]
    (expected,) = whole.plain(np.array([5, 3, 4]), 3)
    (plain,) = part.plain(np.array([2, 0, 1]), 3)
    assert torch.equal(plain, expected)
    augmentations = [draw(view, (8, 9), np.arange(2), seed=1, epoch=0) for view in views]
    ((expected,),) = whole(np.array([4, 5]), augmentations, 2)
    ((augmented,),) = part(np.array([1, 2]), augmentations, 2)
    assert torch.equal(augmented, expected)


def test_a_part_copies_no_pixels(paths):
    pixels = decoded(paths, (8, 9))
    part = Part(ImageStore(paths, pixels), 4, 7)
    pixels[5] = 0
    (black,) = part.plain(np.array([1]), 1)
    assert black.flatten(2).amax(2).lt(0).all()


def test_several_passes_and_one_that_is_given_up(paths, held):
    files = held(paths, (9, 8))
    first = torch.cat(list(files.plain(np.arange(7), 2)))
    abandoned = files.plain(np.arange(7)[::-1], 2)
    next(abandoned)
    assert torch.equal(torch.cat(list(files.plain(np.arange(7), 3))), first)
    abandoned.close()
    assert list(files.plain(np.empty(0, np.int64), 4)) == []


@pytest.mark.parametrize("kind", range(6))
def test_an_image_that_cannot_be_used_is_named_as_by_the_stream(paths, tmp_path, kind, held):
    bad = [*break_files(tmp_path, paths[0]), tmp_path / "gone.jpg"][kind]
    listed = [*paths, bad, *paths]
    with pytest.raises(UserError) as streaming:
        list(ImageStream(listed, (9, 8), batch_size=4).plain(np.arange(15), 4))
    with pytest.raises(UserError) as storing:
        held(listed, (9, 8))
    assert str(storing.value) == str(streaming.value)
    assert str(bad) in str(storing.value)


def test_the_next_item_is_made_while_the_caller_has_this_one():
    asked = [threading.Event() for _ in range(4)]

    def items():
        for event in asked:
            event.set()
            yield event

    for i, event in enumerate(ahead(items())):
        assert event is asked[i]
        assert i == 3 or asked[i + 1].wait(10)
        assert not any(later.is_set() for later in asked[i + 2 :])


def test_an_error_reaches_the_caller():

    def items():
        yield 1
        raise UserError("no more")

    served = ahead(items())
    assert next(served) == 1
    with pytest.raises(UserError, match="no more"):
        next(served)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_pass_that_is_given_up_leaves_no_thread(paths, monkeypatch, device):
    monkeypatch.setattr(store, "pinned", pinned)
    files = ImageStore(paths, decoded(paths, (9, 8)), device)
    threads = threading.active_count()
    with Device():
        given_up = files.plain(np.arange(7), 1)
        next(given_up)
    assert threading.active_count() == threads + 1
    given_up.close()
    del given_up
    assert threading.active_count() == threads


def test_a_batch_from_the_host_is_gathered_while_the_caller_has_the_one_before(paths, monkeypatch):
    asked = [threading.Event() for _ in range(4)]
    waiting = iter(asked)
    monkeypatch.setattr(store, "pinned", lambda *shape: next(waiting).set() or pinned(*shape))
    with Device():
        for i, _ in enumerate(ImageStore(paths, decoded(paths, (9, 8)), CUDA).plain(np.arange(7), 2)):
            assert i == 3 or asked[i + 1].wait(10)
            assert not any(later.is_set() for later in asked[i + 2 :])


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(48, 24), (33, 17)])
def test_gpu_serves_from_the_host_what_it_serves_from_its_memory(paths, tmp_path, size):
    views = (View(pad=5, erase=0.7), View(pad=3, erase=0.0, blur=0.5))
    device = torch.device("cuda", 0)
    expected = through(in_memory(paths, size, device), views, size)
    host = ImageStore(paths, decoded(paths, size, device=device, memory=CPU), device)
    file = open_store_file(tmp_path, paths, size, device=device, threads=1, console=Console())
    for files in (host, file):
        assert all(map(torch.equal, through(files, views, size), expected))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(48, 24), (33, 17)])
def test_gpu_store_is_the_gpus_stream(paths, size):
    views = (View(pad=5, erase=0.7), View(pad=3, erase=0.0, blur=0.5))
    device = torch.device("cuda", 0)
    stored = through(in_memory(paths, size, device), views, size)
    streamed = through(ImageStream(paths, size, views=views, batch_size=9, device=device), views, size)
    for mine, theirs in zip(stored, streamed, strict=True):
        assert mine.is_cuda
        off = (mine - theirs).abs().cpu().permute(0, 2, 3, 1) * torch.tensor(IMAGENET.std) * 255
        assert off.max() < 1.01
        assert (off > 0.01).float().mean() < 1e-3


def test_the_next_item_is_made_by_one_thread_that_leaves_the_others_their_number():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        made = ahead(torch.get_num_threads() for _ in range(3))
        for seen in made:
            assert seen == 1
            assert torch.get_num_threads() == 3
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
