"""Features against encoding one image after the other, decoded and resized by Pillow."""

import numpy as np
import pytest
import torch
from inputs import sampled
from PIL import Image

from reid_fast.data.images import IMAGENET, ImageStream
from reid_fast.data.sets import market_style
from reid_fast.errors import UserError
from reid_fast.labels.extract import extract
from reid_fast.models.encoder import Encoder

SIZE = (40, 20)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = Encoder("resnet18_half", bn_group=2)
    encoder(torch.randn(16, 3, *SIZE))  # other running averages than 0 and 1
    return encoder


@pytest.fixture(scope="module")
def paths(market_folder):
    return market_style("tiny", market_folder).train.paths[:17]


def one_by_one(encoder, paths):
    rows = []
    for path in paths:
        pixels = (np.asarray(Image.open(path)) / 255 - IMAGENET.mean) / IMAGENET.std
        with torch.no_grad():
            rows.append(encoder.eval()(torch.from_numpy(pixels).float().permute(2, 0, 1)[None]))
    return torch.cat(rows)


@pytest.mark.parametrize("batch_size", sampled([1, 5, 17, 64], 5, 64))
def test_features_equal_encoding_one_image_after_the_other(encoder, paths, batch_size):
    features = extract(encoder, ImageStream(paths, SIZE, batch_size=64), batch_size=batch_size)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    # JPEG decoders may differ by a grey level here and there.
    assert (features * one_by_one(encoder, paths)).sum(1).min() > 0.9999


@pytest.mark.parametrize("training", [False, True])
def test_extraction_leaves_the_encoder_as_it_was(encoder, paths, training):
    encoder.train(training)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    extract(encoder, ImageStream(paths, SIZE, batch_size=8), batch_size=8)
    assert encoder.training == encoder.neck.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_mixed_precision_gives_nearly_the_same_float32_features(encoder, paths):
    stream = ImageStream(paths, SIZE, batch_size=8)
    mixed = extract(encoder, stream, batch_size=8, amp=torch.bfloat16)
    exact = extract(encoder, stream, batch_size=8)
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)
    assert (mixed * exact).sum(1).min() > 0.99


def test_folded_or_not_the_features_are_the_same(encoder, paths):
    stream = ImageStream(paths, SIZE, batch_size=8)
    features, plain = extract(encoder, stream, batch_size=8), extract(encoder, stream, batch_size=8, fold=False)
    assert not torch.equal(features, plain)
    torch.testing.assert_close(features, plain, rtol=0, atol=1e-5)


def test_progress_counts_the_images(encoder, paths):
    reports = []
    stream = ImageStream(paths, SIZE, batch_size=7)
    extract(encoder, stream, batch_size=7, progress=lambda *done: reports.append(done))
    assert reports == [(7, 17), (14, 17), (17, 17)]


def test_a_feature_that_is_not_finite_names_its_image(encoder, paths):
    rows = iter([3, 1])
    kept = encoder.forward
    encoder.forward = lambda images: kept(images).index_fill(0, torch.tensor([next(rows)]), torch.nan)
    stream = ImageStream(paths[:12], SIZE, batch_size=6)
    with pytest.raises(UserError, match=rf"{paths[3].name} is not finite \(2 in all\)"):
        extract(encoder, stream, batch_size=6)
