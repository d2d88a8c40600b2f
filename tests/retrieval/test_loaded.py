"""A loaded encoder against `evaluate`'s own path, and against one image after the other through Pillow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import break_files, pack, save_photos
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import reid_fast
from reid_fast.data.images import ImageStream
from reid_fast.data.sets import picture
from reid_fast.errors import UserError
from reid_fast.evaluate import load_encoder as load_module
from reid_fast.labels.extract import extract
from reid_fast.models.encoder import Encoder

SIZE = (48, 24)


@pytest.fixture(scope="module")
def encoder(trained: Path):
    return reid_fast.load_encoder(trained, device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Six sizes, one of them the encoder's."""
    return save_photos(tmp_path_factory.mktemp("photos"))


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def one_by_one(trained: Path, paths: list[Path]) -> Tensor:
    """Decoded and resized by Pillow, normalised by NumPy, encoded with all its BatchNorms."""
    module, description = load_module(trained)
    rows = []
    for path in paths:
        image = Image.open(path).convert("RGB").resize(SIZE[::-1], Image.Resampling.BICUBIC)
        values = (np.asarray(image) / 255 - description["mean"]) / description["std"]
        with torch.no_grad():
            rows.append(module(torch.from_numpy(values).float().permute(2, 0, 1)[None]))
    return torch.cat(rows)


def alike(features: Tensor, expected: Tensor) -> float:
    return float((features * expected).sum(1).min())


def test_what_it_says_of_itself(encoder) -> None:
    assert (encoder.size, encoder.width, encoder.device.type) == (SIZE, 256, "cpu")
    assert encoder.mean == (0.485, 0.456, 0.406)
    assert encoder.std == (0.229, 0.224, 0.225)


def test_files_have_the_features_of_evaluate_to_the_bit(encoder, trained: Path, photos: list[Path]) -> None:
    features = encoder(photos)
    module, _ = load_module(trained)
    assert torch.equal(features, extract(module, ImageStream(photos, SIZE, batch_size=4), batch_size=4))
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    assert alike(features, one_by_one(trained, photos)) > 0.999


def test_pixels_have_nearly_the_features_of_their_files(encoder, photos: list[Path]) -> None:
    files = encoder(photos)
    arrays = [pixels(path) for path in photos]
    assert alike(encoder(arrays), files) > 0.9999
    assert torch.equal(encoder(arrays), encoder([torch.from_numpy(array) for array in arrays]))
    assert torch.equal(encoder(arrays), encoder([Image.fromarray(array) for array in arrays]))


def test_kinds_may_be_mixed_in_any_order(encoder, photos: list[Path]) -> None:
    mixed = [photos[0], pixels(photos[1]), str(photos[2]), Image.open(photos[3]), torch.from_numpy(pixels(photos[4]))]
    assert alike(encoder(mixed), encoder(photos[:5])) > 0.9999
    assert alike(encoder(iter(mixed)), encoder(photos[:5])) > 0.9999


def test_one_image_is_a_batch_of_one(encoder, photos: list[Path]) -> None:
    array = pixels(photos[0])
    for image in (photos[0], str(photos[0]), array, Image.open(photos[0]), torch.from_numpy(array)):
        assert encoder(image).shape == (1, 256)
    stack = np.stack([array, array[::-1], array])
    features = encoder(stack)
    assert features.shape == (3, 256)
    torch.testing.assert_close(features[[0, 2]], encoder(array).expand(2, -1))
    assert alike(features[1:2], encoder(array)) < 0.9999
    assert torch.equal(encoder(Image.open(photos[0]).convert("RGBA")), encoder(array))
    assert encoder([]).shape == (0, 256)


def test_normalised_images_go_through_as_they_are(encoder, trained: Path) -> None:
    images = torch.randn(7, 3, *SIZE)
    module, _ = load_module(trained)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), module(images), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder(images.double()), encoder(images))


def test_images_are_taken_from_wherever_they_lie(encoder, photos: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path\n" + "".join(f"{path}\n" for path in photos[:2]))
    pack(tmp_path / "shard.tar", {"a.jpg": photos[2].read_bytes()})
    found = encoder.embed([photos[5], table, tmp_path / "shard.tar", photos[0].parent, photos[1]])
    assert [path.name for path in found.paths] == [
        "photo5.jpg",
        *(f"photo{number}.jpg" for number in (0, 1)),
        "a.jpg",
        *(f"photo{number}.jpg" for number in range(6)),
        "photo1.jpg",
    ]
    expected = encoder(photos)[[5, 0, 1, 2, 0, 1, 2, 3, 4, 5, 1]]
    torch.testing.assert_close(found.features, expected)  # batches of other images: other last bits


def test_unreadable_images_are_named_or_left_out(encoder, photos: list[Path], tmp_path: Path) -> None:
    for path in photos:
        shutil.copy(path, tmp_path)
    broken = break_files(tmp_path, photos[0])
    with pytest.raises(UserError, match=r"empty\.jpg is unusable"):
        encoder.embed([tmp_path])
    found = encoder.embed([tmp_path], skip_bad_images=True)
    assert set(found.left_out) == set(broken)
    torch.testing.assert_close(found.features, encoder(photos))
    with pytest.raises(UserError, match="all 5 images are unreadable"):
        encoder.embed(broken, skip_bad_images=True)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.zeros((8, 4, 3), np.float32), "image 0 is [8, 4, 3] float32: pixels must be [H, W, 3] uint8"),
        ([np.zeros((8, 4, 3), np.uint8), np.zeros((8, 4), np.uint8)], "image 1 is [8, 4] uint8"),
        (np.zeros((2, 3, 8, 4), np.uint8), "image 0 is [3, 8, 4] uint8"),
        (np.zeros((0, 4, 3), np.uint8), "image 0 is [0, 4, 3] uint8"),
        ([None], "image 0 is a NoneType"),
        (torch.zeros(2, 3, 24, 48), "normalised images must be [N, 3, 48, 24], not [2, 3, 24, 48]"),
        (torch.zeros(3, 48, 24), "not [3, 48, 24]"),
        (torch.full((1, 3, *SIZE), torch.nan), "the feature of image 0 is not finite"),
        ("nowhere/photo.jpg", "there is no image nowhere/photo.jpg"),
        ("notes.md", "notes.md is no image file"),
    ],
)
def test_what_is_no_image_is_named(encoder, images, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        encoder(images)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("sources", "sentence"),
    [([], "no images are named"), (["nowhere"], "there is no nowhere"), ([__file__], "choose one of them")],
)
def test_sources_that_hold_no_images(encoder, sources: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        encoder.embed(sources)


def test_where_an_encoder_may_be(trained: Path, tmp_path: Path, photos: list[Path]) -> None:
    by_file = reid_fast.load_encoder(str(trained / "model.safetensors"), device="cpu")
    assert torch.equal(by_file(photos), reid_fast.load_encoder(trained, device="cpu")(photos))
    for path, sentence in {
        tmp_path / "nowhere": "there is no run folder",
        tmp_path: "holds no finished epoch",
    }.items():
        with pytest.raises(UserError, match=sentence):
            reid_fast.load_encoder(path)
    shutil.copytree(trained, tmp_path / "old")
    description = json.loads((trained / "model.json").read_text())
    (tmp_path / "old/model.json").write_text(json.dumps({k: v for k, v in description.items() if k != "std"}))
    with pytest.raises(UserError, match="lacks std"):
        reid_fast.load_encoder(tmp_path / "old")


def test_a_fingerprint_is_of_weights_and_description(trained: Path, other_trained: Path, tmp_path: Path) -> None:
    prints = {folder: reid_fast.load_encoder(folder, device="cpu").fingerprint for folder in (trained, other_trained)}
    assert prints[trained] != prints[other_trained]
    assert reid_fast.load_encoder(trained, device="cpu", batch_size=3).fingerprint == prints[trained]
    shutil.copytree(trained, tmp_path / "copy")
    assert reid_fast.load_encoder(tmp_path / "copy", device="cpu").fingerprint == prints[trained]
    description = json.loads((trained / "model.json").read_text()) | {"height": 64}
    (tmp_path / "copy/model.json").write_text(json.dumps(description))
    assert reid_fast.load_encoder(tmp_path / "copy", device="cpu").fingerprint not in prints.values()


@pytest.mark.parametrize("pooling", ["avg", "gem"])
def test_weights_alone_tell_their_architecture(pooling: str, photos: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Encoder("resnet18_half", pooling)
    module(torch.randn(16, 3, *SIZE))
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    torch.save(
        {f"backbone.{name}": tensor for name, tensor in module.backbone.state_dict().items()}, tmp_path / "b.pth"
    )
    whole = reid_fast.load_encoder(tmp_path / "weights.safetensors", device="cpu", size=SIZE)
    images = torch.randn(5, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(whole(images), module.eval()(images), atol=1e-5, rtol=1e-4)
        backbone = reid_fast.load_encoder(tmp_path / "b.pth", device="cpu", size=SIZE)
        pooled = F.normalize(module.backbone(images).mean((2, 3)))
    torch.testing.assert_close(backbone(images), pooled, atol=1e-5, rtol=1e-4)
    assert reid_fast.load_encoder(tmp_path / "b.pth", device="cpu").size == (256, 128)
    half = reid_fast.load_encoder(tmp_path / "b.pth", device="cpu", size=SIZE, image_norm="half")
    pixels = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8)
    normalised = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    torch.testing.assert_close(half(pixels), half(normalised), atol=1e-5, rtol=1e-4)


def test_weights_of_no_known_encoder_are_refused(trained: Path, tmp_path: Path) -> None:
    save_file({"backbone.conv1.weight": torch.zeros(2, 3, 5, 5)}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=r"odd\.safetensors has the tensors of no known encoder"):
        reid_fast.load_encoder(tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="knows the size and the normalisation of its images"):
        reid_fast.load_encoder(trained, size=SIZE)
    with pytest.raises(UserError, match=r"imagenet, half"):
        reid_fast.load_encoder(tmp_path / "odd.safetensors", image_norm="zero")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_stands_upright_everywhere(encoder, photos, tmp_path, orientation) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(photos[3]).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    of_file = encoder(tmp_path / "turned.jpg")
    assert alike(encoder(Image.open(tmp_path / "turned.jpg")), of_file) > 0.9999
    assert alike(encoder(np.array(picture(tmp_path / "turned.jpg"))), of_file) > 0.9999
    if orientation > 1:
        assert alike(encoder(Image.open(photos[3])), of_file) < 0.9999


def test_images_in_a_tar_file_can_be_given_back(encoder, photos, tmp_path) -> None:
    pack(tmp_path / "shard.tar", {path.name: path.read_bytes() for path in photos})
    found = encoder.embed([tmp_path / "shard.tar"])
    assert len(found.paths) == 6
    torch.testing.assert_close(encoder(found.paths[2]), found.features[2:3])
    torch.testing.assert_close(encoder(list(found.paths)), found.features)
    lists = reid_fast.search(encoder, found.paths[1], found, k=6)
    assert 1 not in lists.index[0].tolist()
