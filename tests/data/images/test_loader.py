"""The loader's batches: from memory or from files, with a source and without, from the start or from a later step."""

import numpy as np
import pytest
import torch
from inputs import break_files, smooth_images
from PIL import Image

from reid_fast.console import Console
from reid_fast.data.images import NORMALISATIONS, View, held, open_loader
from reid_fast.data.images.augmentation import draw
from reid_fast.data.images.stream import ImageStream
from reid_fast.data.sets import ImageSet, TrainingSet
from reid_fast.errors import UserError
from reid_fast.ranks import Ranks, Split

SIZE = (23, 11)
VIEWS = (View(pad=3, erase=0.7), View(pad=0, erase=0.0))
LABELS = np.array([2, 0, -1, 1, 0, 2, 1])  # of the target
HELD, STREAMED, FILE = 1.0, 0.0, "file"  # GiB of memory that held images may take


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return image_set(tmp_path_factory.mktemp("target"), [9, 9, 8, 8, 9, 7, 7], [0, 1, 2, 0, 1, 2, -1])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return image_set(tmp_path_factory.mktemp("source"), [1, 0, 1, 0, 2], [3, 4, 3, 4, 3], seed=50)


def image_set(folder, pids, cams, seed=0):
    paths = tuple(folder / f"{i}.png" for i in range(len(pids)))
    for path, pixels in zip(paths, smooth_images(len(pids), 40, 20, seed), strict=True):
        Image.fromarray(pixels).save(path)
    return ImageSet(paths, np.array(pids), np.array(cams))


def opened(images, cache, batch_size=4, **more):
    options = {"views": VIEWS, "batch_size": batch_size, "seed": 5, "device": torch.device("cpu"), "threads": 1}
    where = {"cache": cache} if cache != FILE else {"cache": 0.0, "cache_dir": images.target.paths[0].parent}
    return open_loader(images, size=SIZE, **where, console=Console(), **options | more)


def plan_over(images, iters=5, batch_size=4):
    return np.random.default_rng(0).integers(0, len(images.images), (iters, batch_size))


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch.views, other.views, strict=True))
        assert all(
            torch.equal(getattr(batch, name), getattr(other, name)) for name in ("labels", "index", "cams", "keys")
        )
        assert (batch.epoch, batch.step) == (other.epoch, other.step)


@pytest.mark.parametrize("with_source", [False, True])
def test_held_and_streamed_images_give_equal_batches(target, source, with_source):
    images = TrainingSet(target, source if with_source else None)
    loaders = [opened(images, cache) for cache in (HELD, FILE, STREAMED)]
    assert [loader.held.tier for loader in loaders] == ["device", "file", "stream"]
    memory, file, streamed = (list(loader.batches(plan_over(images), LABELS, epoch=3)) for loader in loaders)
    assert len(streamed) == 5
    assert_equal(memory, streamed)
    assert_equal(file, streamed)


def test_ranks_of_a_machine_have_its_memory_together(target, monkeypatch):
    monkeypatch.setattr(held, "_memory", lambda device: 6 * 7 * 23 * 11 * 3 / 2**30)
    options = {"size": SIZE, "views": VIEWS, "batch_size": 4, "cache": 1, "seed": 5, "threads": 1, "console": Console()}
    for ranks, tier in ((3, "device"), (4, "stream")):
        opened = open_loader(TrainingSet(target), ranks=Ranks(local_size=ranks), device=torch.device("cpu"), **options)
        assert opened.held.tier == tier


@pytest.mark.parametrize("cache", [HELD, FILE, STREAMED])
def test_an_image_is_augmented_by_its_place_in_the_epoch(target, source, cache):
    images = TrainingSet(target, source)
    plan = plan_over(images)
    batches = list(opened(images, cache).batches(plan, LABELS, epoch=2))
    paths = [*source.paths, *target.paths]
    for number, view in enumerate(VIEWS):
        drawn = draw(view, SIZE, np.arange(plan.size), seed=5, epoch=2, number=number)
        ((expected,),) = ImageStream(paths, SIZE, views=[view], batch_size=plan.size)(plan.ravel(), [drawn], plan.size)
        assert torch.equal(torch.cat([batch.views[number] for batch in batches]), expected)


@pytest.mark.parametrize("cache", [HELD, FILE, STREAMED])
def test_what_is_known_of_the_images_comes_source_first(target, source, cache):
    images = TrainingSet(target, source)
    plan = plan_over(images)
    classes = np.array([1, 0, 1, 0, 2, 5, 3, -1, 4, 3, 5, 4])  # identities, then 3 + pseudo label
    cams = np.array([3, 4, 3, 4, 3, 0, 1, 2, 0, 1, 2, -1])
    for step, batch in enumerate(opened(images, cache).batches(plan, LABELS, epoch=1, steps_before=30)):
        assert batch.index.tolist() == plan[step].tolist()
        assert batch.labels.tolist() == classes[plan[step]].tolist()
        assert batch.cams.tolist() == cams[plan[step]].tolist()
        assert (batch.epoch, batch.step) == (1, 30 + step)


def test_without_a_source_labels_are_the_pseudo_labels(target):
    images = TrainingSet(target)
    for batch in opened(images, HELD).batches(plan_over(images), LABELS, epoch=0):
        assert batch.labels.tolist() == LABELS[batch.index].tolist()


@pytest.mark.parametrize("cache", [HELD, FILE, STREAMED])
@pytest.mark.parametrize("first_step", [0, 2, 4, 5])
def test_resumption_repeats_the_batches(target, source, cache, first_step):
    images = TrainingSet(target, source)
    loader, plan = opened(images, cache), plan_over(images)
    whole = list(loader.batches(plan, LABELS, epoch=3, steps_before=7))
    resumed = opened(images, cache).batches(plan, LABELS, epoch=3, first_step=first_step, steps_before=7)
    assert_equal(whole[first_step:], resumed)


def test_parameters_are_drawn_once_an_epoch_for_the_steps_that_are_left(target, source, monkeypatch):
    drawn = []

    def counted(view, size, positions, **options):
        drawn.append(positions.tolist())
        return draw(view, size, positions, **options)

    monkeypatch.setattr("reid_fast.data.images.loader.draw", counted)
    images = TrainingSet(target, source)
    list(opened(images, HELD).batches(plan_over(images), LABELS, epoch=3, first_step=2))
    assert drawn == len(VIEWS) * [list(range(8, 20))]


def test_keys_are_those_of_the_images_places_in_the_epoch_on_any_rank(target):
    images = TrainingSet(target)
    plan, loader = plan_over(images), opened(images, HELD)
    whole = torch.stack([batch.keys for batch in loader.batches(plan, LABELS, epoch=3)])
    assert whole.dtype == torch.int64
    assert ((whole >= 0) & (whole < 2**32)).all()
    assert len(whole.unique()) == plan.size
    assert not torch.equal(whole[0], next(iter(loader.batches(plan, LABELS, epoch=4))).keys)
    for rank, share in ((0, slice(0, 2)), (1, slice(2, 4))):
        split = Split(Ranks(rank, 2), 4, 2, 1, torch.device("cpu"))
        part = [batch.keys for batch in loader.batches(plan, LABELS, epoch=3, split=split)]
        assert torch.equal(torch.stack(part), whole[:, share])


@pytest.mark.parametrize("cache", [HELD, FILE, STREAMED])
def test_another_normalisation_reaches_the_pixels_and_leaves_erased_ones(target, cache):
    images = TrainingSet(target)
    plan = plan_over(images)
    of_imagenet, of_half = (
        torch.stack([batch.views[0] for batch in opened(images, cache, norm=norm).batches(plan, LABELS, epoch=2)])
        for norm in (NORMALISATIONS["imagenet"], NORMALISATIONS["half"])
    )
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    erased = (of_imagenet == mean).all(2, keepdim=True)  # the published code's fill is the raw mean
    assert 0.02 < erased.double().mean() < 0.5
    expected = torch.where(erased, mean, (of_imagenet * std + mean) * 2 - 1)
    torch.testing.assert_close(of_half, expected, rtol=0, atol=1e-5)
    plain = [
        next(opened(images, cache, norm=NORMALISATIONS[name]).target.plain(np.arange(4), 4))
        for name in ("imagenet", "half")
    ]
    torch.testing.assert_close(plain[1], (plain[0] * std + mean) * 2 - 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cache", [HELD, FILE, STREAMED])
def test_an_epoch_that_was_given_up_leaves_nothing_behind(target, cache):
    images = TrainingSet(target)
    loader, plan = opened(images, cache), plan_over(images)
    abandoned = loader.batches(plan[::-1].copy(), LABELS, epoch=3)
    next(abandoned)
    assert_equal(loader.batches(plan, LABELS, epoch=3), opened(images, cache).batches(plan, LABELS, epoch=3))


@pytest.mark.parametrize("cache", [HELD, FILE, STREAMED])
def test_features_are_extracted_from_each_domain_alone(target, source, cache):
    loader = opened(TrainingSet(target, source), cache)
    for files, images in ((loader.target, target), (loader.source, source)):
        assert files.paths == images.paths
        order = np.arange(len(images))[::-1]
        expected = ImageStream(images.paths, SIZE, batch_size=3).plain(order, 3)
        assert all(torch.equal(a, b) for a, b in zip(files.plain(order, 3), expected, strict=True))
    assert loader.paths == source.paths + target.paths


def test_without_a_source_there_is_none_to_extract(target):
    loader = opened(TrainingSet(target), HELD)
    assert loader.source is None
    assert loader.target.paths == loader.paths == target.paths


def with_a_broken_file(target, folder):
    """The target, its last image half a JPEG."""
    (pixels,) = smooth_images(1, 40, 20)
    Image.fromarray(pixels).save(folder / "whole.jpg")
    broken = next(path for path in break_files(folder, folder / "whole.jpg") if path.name == "half.jpg")
    return TrainingSet(ImageSet((*target.paths[:6], broken), target.pids, target.cams))


@pytest.mark.parametrize("cache", [HELD, FILE])
def test_a_broken_file_is_named_before_training_where_images_are_held(target, tmp_path, cache):
    images = with_a_broken_file(target, tmp_path)
    with pytest.raises(UserError, match=r"half\.jpg"):
        opened(images, cache)


def test_a_broken_file_is_named_in_its_step_where_images_are_streamed(target, tmp_path):
    images = with_a_broken_file(target, tmp_path)
    loader = opened(images, STREAMED)
    with pytest.raises(UserError, match=r"half\.jpg"):
        list(loader.batches(np.array([[0, 1], [5, 6]]), LABELS, epoch=0))


@pytest.mark.parametrize("cache", [HELD, FILE, STREAMED])
def test_nothing_is_said(target, cache, capsys):
    images = TrainingSet(target)
    list(opened(images, cache).batches(plan_over(images), LABELS, epoch=0))
    assert capsys.readouterr() == ("", "")


def test_images_too_small_to_be_blurred_are_refused(target):
    opened(TrainingSet(target), HELD, views=(View(blur=0.5, blur_sigma=(0.1, 3.3)),))  # a radius of 10 of 11 pixels
    with pytest.raises(UserError, match="--height and --width must be more than 11, not 23 and 11"):
        opened(TrainingSet(target), HELD, views=(View(blur=0.5, blur_sigma=(0.1, 3.5)),))
