"""Augmentation: what it does to an image, and that its draw follows from (seed, epoch, place) alone."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnlite import DataError
from nnlite.data import AlternatingFlip, Cutout, Dataset, RandomCrop, RandomFlip, mirror, views
from nnlite.data.augment import draws

pytestmark = pytest.mark.usefixtures("both_kernels")

AUGMENTATIONS = [RandomCrop(4), RandomCrop(2, mode="reflect"), RandomFlip(), AlternatingFlip(), Cutout(5)]
every_augmentation = pytest.mark.parametrize("augment", AUGMENTATIONS, ids=["crop", "reflect", "flip", "alternating", "cutout"])
images_shape = st.tuples(st.integers(3, 9), st.integers(3, 9), st.integers(1, 4))


def pictures(n: int, shape: tuple[int, ...] = (12, 10, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (n, *shape), dtype=np.uint8)


@every_augmentation
@given(order=st.permutations(range(30)), cut=st.integers(1, 29), epoch=st.integers(0, 9), seed=st.integers(0, 2**40))
def test_a_draw_does_not_depend_on_the_batch(augment, order, cut, epoch, seed):
    images, index = pictures(30), np.array(order)
    whole = augment(images, np.arange(30), epoch, seed)
    parts = [augment(images[part], part, epoch, seed) for part in (index[:cut], index[cut:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole[index])


@every_augmentation
def test_other_seeds_epochs_and_places_draw_anew(augment):
    images, index = pictures(200), np.arange(200)
    results = [
        augment(images, index + shift, epoch, seed) for shift, epoch, seed in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (200, 0, 0))
    ]
    for first, second in itertools.combinations(results, 2):
        assert (first != second).any(axis=(1, 2, 3)).mean() > 0.3


@every_augmentation
@given(shape=images_shape, dtype=st.sampled_from([np.uint8, np.float32]))
def test_the_input_is_not_written_and_shape_and_dtype_stay(augment, shape, dtype):
    images = pictures(8, shape).astype(dtype)
    images.setflags(write=False)
    result = augment(images, np.arange(8), 0, 0)
    assert result.shape == images.shape and result.dtype == dtype
    assert not np.shares_memory(result, images) and result.flags.writeable and result.flags.c_contiguous


@every_augmentation
def test_strided_input(augment):
    images = pictures(20)[::2, :, ::-1]
    expected = augment(np.ascontiguousarray(images), np.arange(10), 1, 2)
    np.testing.assert_array_equal(augment(images, np.arange(10), 1, 2), expected)


def test_flip_mirrors_half_of_the_images():
    images = pictures(4000, (4, 5, 3))
    result = RandomFlip()(images, np.arange(4000), 0, 0)
    flipped = (result == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (flipped | (result == images).all(axis=(1, 2, 3))).all()
    assert abs(flipped.mean() - 0.5) < 0.04


def test_alternating_flips_show_every_image_in_both_ways():
    images, index = pictures(2000, (4, 5, 3)), np.arange(2000)
    epochs = [AlternatingFlip()(images, index, epoch, 3) for epoch in range(4)]
    flipped = [(result == images[:, :, ::-1]).all(axis=(1, 2, 3)) for result in epochs]
    assert abs(flipped[0].mean() - 0.5) < 0.05
    assert np.array_equal(flipped[1], ~flipped[0])
    assert np.array_equal(epochs[0], epochs[2]) and np.array_equal(epochs[1], epochs[3])


def test_mirror():
    images = pictures(5)
    np.testing.assert_array_equal(mirror(images), images[:, :, ::-1])
    chosen = mirror(images, [1, 3])
    np.testing.assert_array_equal(chosen[[1, 3]], images[[1, 3], :, ::-1])
    np.testing.assert_array_equal(chosen[[0, 2, 4]], images[[0, 2, 4]])


def test_views_for_test_time_averaging():
    images = pictures(3, (6, 5, 2))
    plain, mirrored = views()
    np.testing.assert_array_equal(plain(images), images)
    np.testing.assert_array_equal(mirrored(images), images[:, :, ::-1])
    moved = [view(images) for view in views(shift=1)]
    assert len(moved) == 6 and all(view.shape == images.shape for view in moved)
    np.testing.assert_array_equal(moved[2][:, 1:, 1:], images[:, :-1, :-1])  # the border is reflected:
    np.testing.assert_array_equal(moved[2][:, 0, 1:], images[:, 1, :-1])
    np.testing.assert_array_equal(moved[4][:, :-1, :-1], images[:, 1:, 1:])
    for i in (1, 3, 5):
        np.testing.assert_array_equal(moved[i], moved[i - 1][:, :, ::-1])


@pytest.mark.parametrize(("mode", "padded_by"), [("zeros", "constant"), ("reflect", "reflect")])
@given(shape=images_shape, padding=st.integers(1, 2))
def test_crop_is_a_window_of_the_padded_image(mode, padded_by, shape, padding):
    images, (h, w, _) = pictures(20, shape), shape
    result = RandomCrop(padding, mode=mode)(images, np.arange(20), 0, 0)
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=padded_by)
    places = list(itertools.product(range(2 * padding + 1), repeat=2))
    for image, source in zip(result, padded, strict=True):
        assert any(np.array_equal(image, source[top : top + h, left : left + w]) for top, left in places)


def test_crop_reaches_every_place_alike():
    image = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5, 1)  # its middle value tells the shift
    result = RandomCrop(2)(np.repeat(image, 5000, axis=0), np.arange(5000), 0, 0)
    counts = np.bincount(result[:, 2, 2, 0], minlength=26)[1:]
    assert counts.shape == (25,) and counts.min() > 140 and counts.max() < 265


def test_cutout_hides_a_square_and_nothing_else():
    images = pictures(300, (9, 7, 2))
    result = Cutout(3)(images, np.arange(300), 0, 0)
    areas = []
    for image, source in zip(result, images, strict=True):
        hidden = (image == 0).all(axis=2)
        np.testing.assert_array_equal(image[~hidden], source[~hidden])
        rows, columns = np.flatnonzero(hidden.any(axis=1)), np.flatnonzero(hidden.any(axis=0))
        assert hidden[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert len(rows) in (2, 3) and len(columns) in (2, 3)
        areas.append(hidden.sum())
    assert np.mean(areas) > 6.5


def test_draws_are_uniform_and_independent():
    index = np.arange(100_000)
    columns = [bits / 2**32 for kind in (1, 2) for epoch in (0, 1) for bits in draws(index, epoch, 0, kind)]
    columns += [columns[0][1:], columns[1][1:]]  # the next place
    for column in columns:
        assert abs(column.mean() - 0.5) < 0.005 and abs(column.var() - 1 / 12) < 0.002
    for first, second in itertools.combinations(columns, 2):
        n = min(len(first), len(second))
        assert abs(np.corrcoef(first[:n], second[:n])[0, 1]) < 0.015


def test_draws_are_the_same_for_ever():
    """A saved run goes on with the same draws on another machine."""
    assert [int(bits[0]) for bits in draws(np.array([7]), 3, 5, 1)] == [3_997_632_356, 1_720_950_625]


@pytest.mark.parametrize("make", [lambda: RandomCrop(0), lambda: RandomCrop(4, mode="edge"), lambda: Cutout(0)])
def test_settings_that_make_no_sense(make):
    with pytest.raises(ValueError, match="must be"):
        make()


@every_augmentation
@pytest.mark.parametrize("shape", [(4,), (4, 8), (4, 8, 8), (4, 2, 8, 8, 3)], ids=str)
def test_images_without_channels_are_refused(augment, shape):
    with pytest.raises(DataError, match=rf"\(N, H, W, C\), got {re.escape(str(shape))}"):
        augment(np.zeros(shape, np.uint8), np.arange(4), 0, 0)


@every_augmentation
@pytest.mark.parametrize("places", [0, 1, 5])
def test_each_image_needs_a_place(augment, places):
    with pytest.raises(DataError, match=f"4 images .* not {places}"):
        augment(pictures(4), np.arange(places), 0, 0)


@every_augmentation
@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (2, 8, 8, 0)], ids=str)
def test_without_images_or_channels_nothing_happens(augment, shape):
    assert augment(np.zeros(shape, np.uint8), np.arange(shape[0]), 0, 0).shape == shape


def test_sizes_beyond_all_bounds():
    with pytest.raises(DataError, match="too many to draw from"):
        RandomCrop(1 << 70)(pictures(2), np.arange(2), 0, 0)
    assert not RandomCrop(1 << 22)(pictures(2), np.arange(2), 0, 0).any()
    assert not Cutout(1 << 70)(pictures(2), np.arange(2), 0, 0).any()


class Twice(RandomFlip):
    """With a `__call__` of its own."""

    def __call__(self, images, index, epoch, seed):
        return images // 2


KINDS = [*AUGMENTATIONS, RandomCrop(3), Cutout(4), Twice(), lambda images, index, epoch, seed: images[:, ::-1] + np.uint8(1)]


@given(kinds=st.lists(st.sampled_from(KINDS), max_size=6), strided=st.booleans(), epoch=st.integers(0, 3))
def test_one_sweep_is_each_in_turn(kinds, strided, epoch):
    images, index = pictures(60, (9, 7, 3))[:: 2 if strided else 1], np.array([5, 0, 17, 4, 29, 8])
    expected = images[index]
    for i, kind in enumerate(kinds):
        seed = 3 + sum(type(other) is type(kind) for other in kinds[:i]) * (1 << 64)
        expected = kind(expected, index, epoch, seed)
    data = Dataset(images, np.arange(len(images)), augmentations=kinds)
    x, t = data.batch(index, epoch, 3, None)
    assert np.array_equal(x, expected) and np.array_equal(t, index) and not np.shares_memory(x, images)


def test_reflection_needs_an_image_larger_than_the_padding():
    with pytest.raises(DataError, match=r"\(4, 8, 3\) are too small .* 4 pixels"):
        RandomCrop(4, mode="reflect")(pictures(2, (4, 8, 3)), np.arange(2), 0, 0)
    with pytest.raises(DataError, match=r"too small"):
        views(4)[2](pictures(2, (4, 8, 3)))
