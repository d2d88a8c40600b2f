"""The DALI stream against Pillow and NumPy doing the same to the same files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from inputs import break_files, save_photos, smooth_images
from PIL import Image
from scipy import ndimage

from reid_fast.data.images import ImageStream, View, dali, undecodable
from reid_fast.data.images.augmentation import Augmentation, draw
from reid_fast.data.sets import ends_early
from reid_fast.errors import UserError

SIZE = (48, 24)
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def exact(folder):
    """Eleven lossless files of the very size that is asked for: nothing is resized."""
    paths = [folder / f"exact{i:02d}.png" for i in range(11)]
    for path, pixels in zip(paths, smooth_images(11, *SIZE), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture(scope="module")
def jpegs(folder):
    return save_photos(folder)


def resized(path, size=SIZE):
    image = Image.open(path).convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image)


def levels(images):
    """Normalised images back to grey levels, [n, H, W, 3]."""
    return 255 * (images.permute(0, 2, 3, 1).double().numpy() * STD + MEAN)


def augmented(pixels, aug, i, pad):
    """Grey, flip, pad, crop, blur, normalise, erase: one image, step by step, in float64."""
    if aug.grey:
        pixels = np.repeat(np.asarray(Image.fromarray(pixels).convert("L"))[..., None], 3, axis=2)
    if aug.flip[i]:
        pixels = pixels[:, ::-1]
    (top, left), (height, width) = aug.crop[i] + pad, pixels.shape[:2]
    padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)))
    pixels = padded[top : top + height, left : left + width].astype(float)
    if aug.blur[i]:
        pixels = ndimage.gaussian_filter(pixels, (aug.blur[i], aug.blur[i], 0), mode="mirror")
    pixels = (pixels / 255 - MEAN) / STD
    top, left, height, width = aug.erase[i]
    pixels[top : top + height, left : left + width] = (0.485, 0.456, 0.406)
    return pixels


def streamed(paths, views=(), *, indices=None, batch_size=4, size=SIZE, number=0):
    """All images through one pass; and for each view the parameters that were applied."""
    indices = np.arange(len(paths)) if indices is None else np.asarray(indices)
    augs = [draw(view, size, np.arange(len(indices)), seed=5, epoch=2, number=n) for n, view in enumerate(views)]
    stream = ImageStream(paths, size, views=views, batch_size=batch_size)
    passed = list(stream(indices, augs, batch_size))
    return [torch.cat(view) for view in zip(*passed, strict=True)], augs


def test_an_image_of_the_right_size_arrives_exactly(exact):
    (images,), _ = streamed(exact)
    expected = np.stack([(np.asarray(Image.open(path)) / 255 - MEAN) / STD for path in exact])
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), expected, rtol=0, atol=2e-6)


def test_resizing_is_pillows_bicubic(jpegs):
    (images,), _ = streamed(jpegs)
    for path, got in zip(jpegs, levels(images), strict=True):
        error = np.abs(got - resized(path))
        # Roundings differ; another filter, linear or without antialiasing, is off by 0.4 levels or more.
        assert error.mean() < 0.3, path.name
        assert error.max() < 3.5, path.name


@pytest.mark.parametrize("view", [View(pad=5, erase=1.0), View(pad=0, erase=0.0), View(pad=9, flip=1.0)])
def test_flip_crop_and_erasing_are_exact(exact, view):
    indices = np.tile(np.arange(11), 7)
    (images,), (aug,) = streamed(exact, (view,), indices=indices, batch_size=16)
    for i, index in enumerate(indices):
        expected = augmented(np.asarray(Image.open(exact[index])), aug, i, view.pad)
        np.testing.assert_allclose(images[i].permute(1, 2, 0), expected, rtol=0, atol=2e-6)


def test_a_crop_is_padded_with_black_before_normalising(exact):
    aug = replace(Augmentation.none(1), crop=np.array([[-3, 4]], np.int32))
    ((images,),) = list(ImageStream(exact, SIZE, views=(View(),), batch_size=1)(np.array([0]), [aug], 1))
    black = torch.tensor(-MEAN / STD).float()
    assert torch.allclose(images[0, :, :3].flatten(1).T, black)
    assert torch.allclose(images[0, :, :, -4:].flatten(1).T, black)
    pixels = np.asarray(Image.open(exact[0]))
    np.testing.assert_allclose(levels(images)[0, 3:, :-4], pixels[:-3, 4:], atol=1e-3)


def test_every_view_gets_its_own_parameters(exact):
    views = (View(pad=4), View(pad=4, grey=True), View(pad=4, erase=0.0))
    images, augs = streamed(exact, views)
    for view, got, aug in zip(views, images, augs, strict=True):
        for i, path in enumerate(exact):
            expected = augmented(np.asarray(Image.open(path)), aug, i, view.pad)
            error = np.abs(got[i].permute(1, 2, 0).numpy() - expected) * 255 * STD
            assert error.max() <= (1.01 if view.grey else 1e-3)


def test_grey_has_three_equal_channels_before_normalising(exact):
    (images,), _ = streamed(exact, (View(pad=0, erase=0.0, grey=True),))
    got = levels(images)
    np.testing.assert_allclose(got, np.repeat(got[..., :1], 3, axis=3), atol=1e-3)


def test_blur_is_a_gaussian_of_the_drawn_sigma(exact):
    view = View(pad=0, erase=0.0, blur=0.5)
    indices = np.tile(np.arange(11), 4)
    (images,), (aug,) = streamed(exact, (view,), indices=indices, batch_size=11)
    assert 5 < (aug.blur > 0).sum() < 39
    for i, index in enumerate(indices):
        expected = augmented(np.asarray(Image.open(exact[index])), aug, i, 0)
        error = np.abs(images[i].permute(1, 2, 0).numpy() - expected) * 255 * STD
        assert error.mean() < (0.6 if aug.blur[i] else 1e-3), aug.blur[i]
        assert error.max() < (3 if aug.blur[i] else 1e-2), aug.blur[i]


@pytest.mark.parametrize("batch_size", [1, 4, 11, 16])
def test_plain_images_come_in_the_order_asked_for(exact, batch_size):
    stream = ImageStream(exact, SIZE, batch_size=batch_size)
    order = np.array([7, 3, 3, 10, 0, 5, 1, 9, 2])
    parts = list(stream.plain(order, batch_size))
    full, rest = divmod(len(order), batch_size)
    assert [len(part) for part in parts] == [batch_size] * full + [rest] * bool(rest)
    expected = np.stack([np.asarray(Image.open(exact[i])) for i in order])
    np.testing.assert_allclose(levels(torch.cat(parts)), expected, atol=1e-3)


def test_no_images_are_no_batches(exact):
    assert list(ImageStream(exact, SIZE).plain(np.empty(0, np.int64), 4)) == []


def test_a_stream_serves_several_passes(exact):
    stream = ImageStream(exact, SIZE, batch_size=4)
    first = torch.cat(list(stream.plain(np.arange(11), 4)))
    backwards = torch.cat(list(stream.plain(np.arange(11)[::-1], 3)))
    assert torch.equal(first, backwards.flip(0))


def test_a_pass_that_was_given_up_leaves_nothing_behind(exact):
    stream = ImageStream(exact, SIZE, batch_size=2)
    expected = torch.cat(list(stream.plain(np.arange(11), 2)))
    for taken in (1, 2, 3):
        abandoned = stream.plain(np.arange(11)[::-1], 2)
        for _ in range(taken):
            next(abandoned)
        assert torch.equal(torch.cat(list(stream.plain(np.arange(11), 2))), expected)


@pytest.mark.parametrize("views", [(), (View(pad=2),)])
def test_tensors_are_float32_and_channels_last(exact, views):
    (images,), _ = streamed(exact[:4], views)
    assert images.dtype == torch.float32
    assert images.shape == (4, 3, *SIZE)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_tensors_do_not_change_while_later_batches_are_made(exact):
    indices = np.random.default_rng(0).integers(0, 11, 160)
    kept, copies = [], []
    for images in ImageStream(exact, SIZE, batch_size=4).plain(indices, 4):
        kept.append(images)
        copies.append(images.clone())
    assert len({images.data_ptr() for images in kept}) == 40
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.bmp", "RGB", {}),
        ("a.png", "L", {}),
        ("a.png", "RGBA", {}),
        ("a.png", "P", {}),
        ("a.jpg", "L", {}),
        ("a.jpg", "RGB", {"progressive": True}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.tiff", "RGB", {}),
    ],
)
def test_kinds_of_files_decode_as_pillow_decodes_them(tmp_path, name, mode, options):
    (pixels,) = smooth_images(1, *SIZE)
    path = tmp_path / name
    Image.fromarray(pixels).convert(mode).save(path, **options)
    (images,), _ = streamed([path])
    assert np.abs(levels(images)[0] - resized(path)).max() <= 2.01


@pytest.mark.parametrize("place", [0, 5, 10])
@pytest.mark.parametrize("kind", range(5))
def test_an_undecodable_image_is_named(jpegs, tmp_path, kind, place):
    paths = [*jpegs, *jpegs]
    paths[place] = break_files(tmp_path, jpegs[0])[kind]
    with pytest.raises(UserError) as caught:
        list(ImageStream(paths, SIZE, batch_size=4).plain(np.arange(12), 4))
    assert str(paths[place]) in str(caught.value)
    assert "--skip-bad-images" in str(caught.value)


def test_an_image_that_has_gone_is_named(jpegs, tmp_path):
    paths = [*jpegs, tmp_path / "gone.jpg"]
    with pytest.raises(UserError, match=r"gone\.jpg"):
        list(ImageStream(paths, SIZE, batch_size=4).plain(np.arange(7), 4))


def test_undecodable_finds_exactly_the_broken_files(jpegs, exact, tmp_path):
    broken = break_files(tmp_path, jpegs[0])
    reports = []
    broken.append(tmp_path / "gone.jpg")
    paths = [*jpegs, broken[0], *exact, *broken[1:], *jpegs]
    assert undecodable(paths, 2, lambda *done: reports.append(done)) == set(broken)
    assert reports == [(len(paths), len(paths))]


def test_undecodable_looks_at_every_file_of_a_long_list(exact, tmp_path):
    (tmp_path / "bad.png").write_bytes(exact[0].read_bytes()[:50])
    paths = [exact[i % 11] for i in range(299)] + [tmp_path / "bad.png"]
    reports = []
    assert undecodable(paths, 2, lambda *done: reports.append(done)) == {tmp_path / "bad.png"}
    assert reports == [(256, 300), (300, 300)]


def test_whole_files_are_all_decodable(jpegs, exact):
    assert undecodable([*jpegs, *exact], 1, lambda *_: None) == set()


@pytest.mark.parametrize(("device", "number"), [("cpu", None), ("cuda", 3), ("cuda:0", 0), ("cuda:2", 2)])
def test_cuda_without_a_number_is_the_current_device(jpegs, monkeypatch, device, number):
    built = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(dali, "build", lambda *args, gpu, **options: built.append(gpu))
    ImageStream(jpegs, SIZE, device=device)
    assert built == [number]


def test_a_failure_that_does_not_come_again_is_said(jpegs, monkeypatch):
    stream = ImageStream(jpegs, SIZE, batch_size=3, device=torch.device("cpu"), threads=1)

    def fails(_):
        raise RuntimeError("Input/output error\nwith a stack trace")

    monkeypatch.setattr(stream._pipeline, "run", fails)
    with pytest.raises(UserError, match=r"could not be decoded \(Input/output error\), though its images can now"):
        list(stream.plain(np.arange(len(jpegs)), 3))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_is_cut_short_is_seen_before_it_is_decoded(tmp_path, kind):
    path, pixels = tmp_path / "0.jpg", next(iter(smooth_images(1, 60, 30)))
    Image.fromarray(pixels).save(path, kind)
    whole = path.read_bytes()

    def decoded(content):
        path.write_bytes(content)
        stream = ImageStream([path], SIZE, batch_size=1, device=torch.device("cpu"), threads=1, norm=None)
        return next(stream.plain(np.arange(1), 1))

    image = decoded(whole)
    assert torch.equal(decoded(whole + bytes(500)), image)  # as some cameras fill up their files
    if kind != "WEBP":
        assert torch.equal(decoded(whole + b"what a program has appended"), image)
        for cut in (4, 300, len(whole) - 30):
            assert ends_early(np.frombuffer(whole[:cut], np.uint8))
