"""Augmentation parameters against a scalar re-statement, and their distributions at fixed seeds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reid_fast.data.images.augmentation import View, draw

SIZE = (256, 128)
FIELDS = ("flip", "crop", "blur", "erase")
ALL = View(blur=0.5)
MASK = 2**64 - 1


def drawn(view=ALL, n=20_000, size=SIZE, seed=1, epoch=0, number=0):
    return draw(view, size, np.arange(n), seed=seed, epoch=epoch, number=number)


def splitmix(z):
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return z ^ z >> 31


def one_image(view, size, position, seed, epoch, number):
    """(flip, crop, sigma, rectangle) of one image, one number after the other, in Python's integers."""
    key = 0
    for part in (seed, epoch, number, position):
        key = splitmix((key + part) & MASK)

    def uniform(use):
        return (splitmix((key + use) & MASK) >> 11) / 2**53

    def rectangle():
        if uniform(5) >= view.erase:
            return 0, 0, 0, 0
        for attempt in range(100):
            low, high = view.erase_area
            area = (low + (high - low) * uniform(8 + 2 * attempt)) * size[0] * size[1]
            low, high = view.erase_aspect
            aspect = low + (high - low) * uniform(9 + 2 * attempt)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < size[0] + view.erase_across and w < size[1] + view.erase_across:
                if h == 0:
                    break  # nothing to fill
                return int(uniform(6) * (size[0] - h + 1)), int(uniform(7) * (size[1] - w + 1)), h, w
        return 0, 0, 0, 0

    crop = [int(uniform(use) * (2 * view.pad + 1)) - view.pad for use in (1, 2)]
    low, high = view.blur_sigma
    sigma = low + (high - low) * uniform(4) if uniform(3) < view.blur else 0
    return uniform(0) < view.flip, crop, sigma, rectangle()


@pytest.mark.parametrize("size", [(256, 128), (64, 32), (224, 224), (17, 33), (3, 2)])
@pytest.mark.parametrize("across", [False, True])
def test_parameters_equal_the_scalar_restatement(size, across):
    view = View(flip=0.3, pad=3, erase=0.8, blur=0.4, erase_across=across)
    positions = np.r_[0:300, 10**6, 2**40]
    got = draw(view, size, positions, seed=7, epoch=3, number=1)
    for i, position in enumerate(positions.tolist()):
        flip, crop, sigma, rectangle = one_image(view, size, position, 7, 3, 1)
        assert got.flip[i] == flip
        assert got.crop[i].tolist() == crop
        assert got.blur[i] == np.float32(sigma)
        assert tuple(got.erase[i].tolist()) == rectangle


def test_a_rectangle_is_as_wide_as_the_image_where_that_is_allowed():
    full = [drawn(View(erase_across=across)).erase[:, 3].max() for across in (False, True)]
    assert full == [SIZE[1] - 1, SIZE[1]]


@settings(max_examples=50, deadline=None)
@given(positions=st.lists(st.integers(0, 199), min_size=1, max_size=50))
def test_an_image_does_not_depend_on_the_others(positions):
    whole, part = drawn(n=200), draw(ALL, SIZE, np.array(positions), seed=1, epoch=0)
    for field in FIELDS:
        assert np.array_equal(getattr(whole, field)[positions], getattr(part, field))


def test_no_images_are_no_parameters():
    nothing = drawn(n=0)
    assert [getattr(nothing, field).shape for field in FIELDS] == [(0,), (0, 2), (0,), (0, 4)]


@pytest.mark.parametrize("change", [{"flip": 0.1}, {"pad": 0}, {"erase": 0.0}, {"blur": 0.0}, {"grey": True}])
def test_what_else_is_drawn_does_not_matter(change):
    got, expected = drawn(View(**{"blur": 0.5} | change)), drawn()
    unchanged = [f for f in FIELDS if f not in change and not (f == "crop" and "pad" in change)]
    assert all(np.array_equal(getattr(got, field), getattr(expected, field)) for field in unchanged)
    assert got.grey == ("grey" in change)


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 1}, {"number": 1}, {"seed": 0, "epoch": 1}])
def test_other_seeds_epochs_and_views_draw_independently(change):
    n = 100_000
    one, other = drawn(n=n), drawn(n=n, **change)
    for a, b in (
        (one.flip, other.flip),
        (one.crop[:, 0], other.crop[:, 0]),
        (one.crop[:, 1], other.crop[:, 1]),
        (one.blur, other.blur),
        (one.erase[:, 2], other.erase[:, 2]),
    ):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / n**0.5


def test_the_parameters_of_an_image_and_of_its_neighbour_are_uncorrelated():
    n = 20_000
    got = drawn(View(erase=1.0, blur=1.0), n=n + 1)
    columns = np.column_stack([got.flip, got.crop, got.blur, got.erase[:, 2] * got.erase[:, 3]]).astype(float)
    correlation = np.corrcoef(np.hstack([columns[:-1], columns[1:]]).T)
    assert np.abs(correlation - np.eye(10)).max() < 4.5 / n**0.5


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_flip_blur_and_erasing_have_their_probabilities(probability):
    got = drawn(View(flip=probability, erase=probability, blur=probability))
    margin = 4 * (probability * (1 - probability) / 20_000) ** 0.5
    for happened in (got.flip, got.blur > 0, got.erase[:, 2] > 0):
        assert abs(happened.mean() - probability) <= margin


@pytest.mark.parametrize("pad", [0, 3, 10])
def test_the_crop_is_uniform_over_all_its_places(pad):
    crop = drawn(View(pad=pad)).crop
    assert crop.dtype == np.int32
    for column in crop.T:
        values, counts = np.unique(column, return_counts=True)
        assert values.tolist() == list(range(-pad, pad + 1))
        assert len(values) == 1 or stats.chisquare(counts).pvalue > 1e-3


def test_the_blur_is_uniform_over_its_range():
    sigma = drawn(View(blur=1.0)).blur
    assert sigma.dtype == np.float32
    assert stats.kstest(sigma, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


@pytest.mark.parametrize("size", [(256, 128), (224, 224), (64, 32)])
def test_rectangles_keep_to_their_ranges_and_inside_the_image(size):
    top, left, h, w = drawn(View(erase=1.0), size=size).erase.T.astype(float)
    assert (h > 0).all()
    assert ((top >= 0) & (left >= 0) & (top + h <= size[0]) & (left + w <= size[1])).all()
    assert ((h < size[0]) & (w < size[1])).all()
    # Rounding moves each side by at most half a pixel.
    pixels = size[0] * size[1]
    assert ((h + 0.5) * (w + 0.5) >= 0.02 * pixels).all()
    assert ((h - 0.5) * (w - 0.5) <= 0.4 * pixels).all()
    assert ((h + 0.5) / (w - 0.5) >= 0.3).all()
    assert ((h - 0.5) / (w + 0.5) <= 1 / 0.3).all()
    assert (h * w).max() > 0.35 * pixels
    assert (h * w).min() < 0.03 * pixels


def test_area_and_aspect_are_uniform_where_every_rectangle_fits():
    view = View(erase=1.0, erase_area=(0.05, 0.2), erase_aspect=(0.5, 2.0))
    h, w = drawn(view, size=(4000, 4000)).erase[:, 2:].T.astype(float)
    assert stats.kstest(h * w / 4000**2, stats.uniform(0.05, 0.15).cdf).pvalue > 1e-3
    assert stats.kstest(h / w, stats.uniform(0.5, 1.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("size", [(16, 16), (16, 40), (40, 16)])
def test_a_rectangle_as_high_or_as_wide_as_the_image_is_refused(size):
    def view(side):
        share = side * side / (size[0] * size[1])
        return View(erase=1.0, erase_area=(share, share), erase_aspect=(1.0, 1.0))

    assert not drawn(view(16), size=size).erase.any()
    assert (drawn(view(15), size=size).erase[:, 2:] == 15).all()


def test_rectangles_reach_every_place():
    share = 13 * 13 / (16 * 20)
    view = View(erase=1.0, erase_area=(share, share), erase_aspect=(1.0, 1.0))
    top, left, *_ = drawn(view, size=(16, 20)).erase.T
    for column, most in ((top, 3), (left, 7)):
        values, counts = np.unique(column, return_counts=True)
        assert values.tolist() == list(range(most + 1))
        assert stats.chisquare(counts).pvalue > 1e-3


def test_the_default_view_is_the_published_transform():
    assert View() == View(
        flip=0.5, pad=10, erase=0.5, erase_area=(0.02, 0.4), erase_aspect=(0.3, 1 / 0.3), blur=0.0, grey=False
    )
