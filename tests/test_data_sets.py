"""Dataset: what it takes, its parts, its batches; the generated shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnlite import DataError
from nnlite.data import Cutout, Dataset, RandomCrop, RandomFlip, shapes


def numbered(n: int = 10, **options) -> Dataset:
    """Sample i holds the value i."""
    return Dataset(np.arange(n).reshape(n, 1), np.arange(n), **options)


def order(data: Dataset, batch_size: int, **options) -> list[int]:
    return [int(label) for _, t in data.batches(batch_size, **options) for label in t]


@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 2**33),
    shuffle=st.booleans(),
)
def test_batches_give_every_sample_once_and_keep_the_short_last(n, batch_size, epoch, seed, shuffle):
    batches = list(numbered(n).batches(batch_size, epoch=epoch, seed=seed, shuffle=shuffle))
    assert [len(x) for x, _ in batches] == [batch_size] * (n // batch_size) + ([n % batch_size] if n % batch_size else [])
    assert all((x[:, 0] == t).all() for x, t in batches)
    assert sorted(label for _, t in batches for label in t) == list(range(n))


@given(batch_size=st.integers(1, 9), start=st.integers(0, 12), shuffle=st.booleans())
def test_start_skips_the_first_batches(batch_size, start, shuffle):
    data = Dataset(np.arange(1, 25 * 48 + 1).reshape(25, 4, 4, 3), np.arange(25)).augmented(RandomFlip())
    whole = list(data.batches(batch_size, epoch=2, shuffle=shuffle))[start:]
    rest = list(data.batches(batch_size, epoch=2, shuffle=shuffle, start=start))
    assert len(rest) == len(whole)
    for (x, t), (x_rest, t_rest) in zip(whole, rest, strict=True):
        assert np.array_equal(x, x_rest) and np.array_equal(t, t_rest)


def test_the_order_follows_from_seed_and_epoch():
    data = numbered(100)
    orders = [order(data, 7, seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(o) for o in orders}) == 9 and list(range(100)) not in orders
    assert order(data, 7, seed=1, epoch=2) == order(data, 32, seed=1, epoch=2) == orders[5]
    assert order(data, 7, shuffle=False, seed=1, epoch=2) == list(range(100))


def test_weights_come_as_a_third():
    data = numbered(10, weights=np.arange(10) / 2)
    assert all((w == t / 2).all() for _, t, w in data.batches(3)) and len(list(data.batches(3))) == 4
    assert [w.tolist() for *_, w in data[4:6].batches(9, shuffle=False)] == [[2.0, 2.5]]


def test_augmentation_is_for_training_only_and_ignores_the_batch_size():
    data = shapes(40).train.augmented(RandomCrop(4), RandomFlip()).augmented(Cutout(8))
    assert len(data.augmentations) == 3
    for x, _ in data.batches(40, shuffle=False):
        assert np.array_equal(x, data.images)
    (whole, _), parts = next(data.batches(40, epoch=3)), list(data.batches(7, epoch=3))
    assert np.array_equal(np.concatenate([x for x, _ in parts]), whole)
    assert not np.array_equal(whole, next(shapes(40).train.batches(40, epoch=3))[0])


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": 4, "start": -1}])
def test_batches_refuse_at_once(arguments):
    with pytest.raises(ValueError, match=r"(batch_size|start) must be a whole number, at least"):
        numbered().batches(**arguments)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "float64", "bool", ">f4"])
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 2, 5)])
def test_any_real_dtype_and_shape(dtype, shape):
    data = Dataset(np.ones(shape, dtype), np.zeros((6, 2), np.float32))
    (x, t), *_ = data.batches(4)
    assert (x.dtype, x.shape, t.shape) == (np.dtype(dtype), (4, *shape[1:]), (4, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((3, 2)), np.zeros(4, int)), "one length, got 3, 4"),
        ((np.zeros((3, 2)), np.zeros(3), {"weights": np.zeros(2)}), "one length, got 3, 3, 2"),
        ((np.zeros((0, 2)), np.zeros(0, int)), "empty"),
        ((np.zeros((3, 2), complex), np.zeros(3)), "images must be real numbers, not complex128"),
        ((np.zeros((3, 2), object), np.zeros(3)), "images must be real numbers, not object"),
        ((np.zeros(3), ["a", "b", "c"]), r"labels must be real numbers, not <U1: np\.unique"),
        (([[1.0, 2.0], [3.0]], [0, 1]), "images cannot be made a NumPy array"),
        ((1.0, [0]), "images must be an array of samples"),
        ((np.zeros(3), np.zeros(3), {"weights": np.array([1, -1, 1])}), "not negative, got .3,., least -1"),
        ((np.zeros(3), np.zeros(3), {"weights": np.array([1, np.nan, 1])}), "not negative"),
        ((np.zeros(3), np.zeros(3), {"weights": np.ones((3, 1))}), r"weights must be \(N,\)"),
        ((np.zeros(3), [0, 1, 2], {"classes": ["a", "b"]}), r"labels must be in 0 \.\.\. 1, found 0 \.\.\. 2"),
        ((np.zeros(3), [0, 1, -1], {"classes": ["a", "b"]}), r"found -1 \.\.\. 1"),
        *(((np.zeros(3), [0, 1, 2], {"classes": names}), "a list of names") for names in ("abc", 3, {0: "a"}, {"a", "b"})),
    ],
)
def test_unusable_data(arguments, message):
    images, labels, options = (*arguments, {})[:3]
    with pytest.raises(DataError, match=message):
        Dataset(images, labels, **options)


def test_labels_of_weight_zero_may_be_anything():
    data = Dataset(np.zeros(3), [0, -1, 1], ["a", "b"], weights=[1, 0, 2])
    assert data.labels.tolist() == [0, -1, 1] and len(Dataset(np.zeros(1), [7], ["a"], weights=[0])) == 1


def test_parts():
    data = numbered(20, classes=[str(i) for i in range(20)], weights=np.ones(20)).augmented(RandomFlip())
    for part in (data[2:5], data[np.array([2, 3, 4])], data[(data.labels > 1) & (data.labels < 5)]):
        assert part.labels.tolist() == [2, 3, 4] and part.classes == data.classes
        assert part.weights.tolist() == [1, 1, 1] and part.augmentations == data.augmentations
    assert data.subset(None) is data and len(data.subset(7)) == 7 and len(data.subset(99)) == 20
    assert repr(data) == "Dataset(20 samples (1,) int64, labels int64)"
    for bad in (0, -1):
        with pytest.raises(ValueError, match="n must be a whole number, at least 1"):
            data.subset(bad)
    with pytest.raises(TypeError, match="slice"):
        data[3]


def test_split():
    data = numbered(20)
    kept, held = data.split(6, seed=1)
    assert len(held) == 6 and sorted([*kept.labels, *held.labels]) == list(range(20))
    assert data.split(6, seed=1)[1].labels.tolist() == held.labels.tolist() != data.split(6, seed=2)[1].labels.tolist()
    for n in (0, 20, 21):
        with pytest.raises(DataError, match="aside"):
            data.split(n)


def test_shapes():
    data = shapes(103, seed=4)
    assert data.name == "shapes" and len(data.classes) == 10 and data.train.classes == data.classes
    assert (len(data.train), len(data.test), len(shapes(3).test)) == (103, 20, 1)
    assert data.train.images.dtype == np.uint8 and data.train.images.shape[1:] == (32, 32, 3)
    assert data.train.labels.dtype == np.int64 and set(data.train.labels) == set(range(10))
    assert repr(data) == "Datasets('shapes', train: 103, test: 20, 10 classes)"


def test_shapes_follow_from_their_seed():
    first, again, other = shapes(50, seed=4), shapes(50, seed=4), shapes(50, seed=5)
    for part in ("train", "test"):
        a, b, c = (getattr(data, part) for data in (first, again, other))
        assert np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)
        assert not np.array_equal(a.images, c.images)
    assert not np.array_equal(first.train.images[:10], first.test.images)


def test_shapes_can_be_seen():
    """Every image has enough pixels far from its background: no shape is lost at the border or in the noise."""
    images = shapes(400).train.images.astype(int)
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    distance = abs(images - np.median(corners, axis=1)[:, None, None]).sum(axis=3)
    assert ((distance > 150).sum(axis=(1, 2)) > 25).all()


def test_no_shapes():
    with pytest.raises(ValueError, match="n must be a whole number, at least 1"):
        shapes(0)


def test_two_augmentations_of_a_kind_draw_by_themselves():
    data = shapes(40).train
    once, twice = (next(iter(data.augmented(*[Cutout(8)] * n).batches(40)))[0] for n in (1, 2))
    hidden = [(x == 0).all(axis=3).sum() for x in (once, twice)]
    assert hidden[1] > 1.5 * hidden[0]
