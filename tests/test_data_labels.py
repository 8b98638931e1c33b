"""Balanced class weights and stratified splits, beside scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedShuffleSplit, train_test_split
from sklearn.utils.class_weight import compute_class_weight

import nnlite as nn
from nnlite.data import Dataset, balanced_class_weight

members = st.lists(st.integers(2, 40), min_size=2, max_size=6)  # of each class


def numbered(labels) -> Dataset:
    """Sample i holds the value i."""
    return Dataset(np.arange(len(labels))[:, None], labels)


def shuffled(counts, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


# ---- weights


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_balanced_weights_are_those_of_scikit_learn(counts):
    labels = shuffled(counts)
    weights, classes = balanced_class_weight(labels), np.arange(len(counts))
    assert weights.dtype == np.float64
    np.testing.assert_array_equal(weights, compute_class_weight("balanced", classes=classes, y=labels))
    np.testing.assert_array_equal(balanced_class_weight(labels[:, None].tolist(), classes=len(counts)), weights)
    assert weights[labels].mean() == pytest.approx(1)
    assert np.bincount(labels, weights[labels]) == pytest.approx(len(labels) / len(counts))


def test_balanced_weights_for_the_loss():
    labels = np.array([0, 0, 0, 1])
    loss = nn.CrossEntropy(class_weight=balanced_class_weight(labels))
    _, delta = loss(np.zeros((4, 2)), labels)
    assert delta.sum(axis=0) == pytest.approx([0, 0]), "all outputs alike: one class pulls as much as the other"
    assert balanced_class_weight(labels > 0) == pytest.approx([2 / 3, 2])


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        ([0, 2, 2], None, "none of the 3 labels is 1"),
        ([0, 1], 4, "none of the 2 labels is 2"),
        ([0] * 10, 100, r"is 1, 2, 3, 4, 5, \.\.\."),
        ([0, 10**12], None, "none of the 2 labels is 1, 2"),
        ([0, 1, 2], 2, r"labels must be in 0 \.\.\. 1, found 0 \.\.\. 2"),
        ([-1, 0], None, r"found -1 \.\.\. 0"),
        ([0.0, 1.0], None, r"labels must be integers \(N,\), one a sample, not float64 \(2,\)"),
        (np.eye(3, dtype=int), None, r"not int64 \(3, 3\)"),
        ([], None, "must be integers"),
        (["a", "b"], None, "must be integers"),
    ],
)
def test_labels_that_cannot_be_balanced(labels, classes, words):
    with pytest.raises(nn.DataError, match=words):
        balanced_class_weight(labels, classes)


@pytest.mark.parametrize("classes", [0, -1, 2.0, True, "2", [0, 1]])
def test_classes_is_their_number(classes):
    with pytest.raises(ValueError, match="classes must be a whole number, at least 1, not"):
        balanced_class_weight([0, 1], classes)


# ---- splits


@given(n=st.integers(2, 60), share=st.one_of(st.sampled_from([0.1, 0.2, 0.25, 1 / 3, 0.5]), st.floats(0.001, 0.999)))
def test_a_share_is_as_many_samples_as_in_scikit_learn(n, share):
    data = numbered(np.zeros(n))
    try:
        _, wanted = train_test_split(np.arange(n), test_size=share)
    except ValueError:
        with pytest.raises(nn.DataError, match="aside"):
            data.split(share)
        return
    kept, held_out = data.split(share)
    assert len(held_out) == len(wanted) and sorted([*kept.images[:, 0], *held_out.images[:, 0]]) == list(range(n))
    assert np.array_equal(data.split(len(wanted))[1].images, held_out.images)


@given(counts=members, share=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_a_stratified_split_has_the_counts_of_scikit_learn(counts, share, seed):
    labels = shuffled(counts, seed)
    data = numbered(labels)
    try:
        ((_, wanted),) = StratifiedShuffleSplit(1, test_size=share, random_state=seed).split(labels, labels)
    except ValueError:
        with pytest.raises(nn.DataError, match="cannot"):
            data.split(share, stratify=True)
        return
    kept, held_out = data.split(share, seed=seed, stratify=True)
    n = len(held_out)
    assert n == len(wanted)
    share_of_each = np.array(counts) * n / len(labels)
    theirs, ours = (np.bincount(part, minlength=len(counts)) for part in (labels[wanted], held_out.labels))
    assert (abs(ours - share_of_each) < 1).all()
    rests = share_of_each % 1
    if len({round(rest, 9) for rest in rests}) == len(counts):  # of equal rests the seed decides
        assert np.array_equal(ours, theirs)
    assert sorted([*kept.images[:, 0], *held_out.images[:, 0]]) == list(range(len(labels)))


def test_a_split_keeps_the_order_and_follows_from_the_seed():
    data = numbered(shuffled([30, 20, 10]))
    for options in ({}, {"stratify": True}):
        splits = [data.split(0.2, seed=seed, **options) for seed in (0, 0, 1)]
        held_out = [part.images[:, 0].tolist() for _, part in splits]
        assert held_out[0] == held_out[1] != held_out[2]
        assert all(np.array_equal(np.sort(part.images[:, 0]), part.images[:, 0]) for split in splits for part in split)


def test_every_sample_is_held_out_as_often_as_another():
    """Also among classes whose shares round alike: 5 of 50 samples, of 10 classes of 5."""
    labels = np.repeat(np.arange(10), 5)
    counts = sum(
        np.bincount(numbered(labels).split(10, seed=seed, stratify=True)[1].images[:, 0], minlength=50) for seed in range(400)
    )
    assert abs(counts / 400 - 0.2).max() < 0.08
    rounded = [np.bincount(numbered(labels).split(15, seed=seed, stratify=True)[1].labels, minlength=10) for seed in range(400)]
    assert set(np.unique(rounded)) == {1, 2} and abs(np.mean(rounded, axis=0) - 1.5).max() < 0.1


def test_the_parts_have_all_that_the_data_set_has():
    labels = np.repeat([0, 1], 10)
    data = Dataset(np.arange(20)[:, None], labels, ["a", "b"], weights=np.arange(20.0), augmentations=[nn.data.RandomFlip()])
    for part in data.split(0.3, stratify=True):
        assert part.classes == data.classes and part.augmentations == data.augmentations
        assert np.array_equal(part.weights, part.images[:, 0])


@pytest.mark.parametrize("n", [0, 20, 21, -1, 0.0, 1.0, 1.5, -0.2, float("nan"), 0.999, True, "0.2", None, "x" * 1000])
def test_what_is_no_number_and_no_share_of_samples(n):
    with pytest.raises(nn.DataError, match=r"cannot set .* of 20 samples aside: give a smaller number, or a share") as caught:
        numbered(np.zeros(20)).split(n)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("labels", "n", "words"),
    [
        ([0, 0, 0, 1], 2, "a class needs 2 samples to be in both parts, class 1 has one"),
        ([0, 0, 1, 1, 2, 2], 2, "parts of 4 and 2 samples cannot both have each of 3 classes"),
        ([0, 0, 1, 1, 2, 2], 4, "parts of 2 and 4 samples cannot"),
        (np.linspace(0, 1, 10), 0.2, r"the labels must be integers \(N,\), one a sample, not float64 \(10,\)"),
        (np.eye(4, dtype=int), 2, "must be integers"),
    ],
)
def test_what_cannot_be_stratified(labels, n, words):
    with pytest.raises(nn.DataError, match=words):
        numbered(labels).split(n, stratify=True)


def test_stratify_goes_by_the_labels_of_the_data_set():
    with pytest.raises(ValueError, match=r"stratify, which takes the labels of this data set, must be True or False"):
        numbered(np.repeat([0, 1], 5)).split(0.2, stratify=np.repeat([0, 1], 5))
