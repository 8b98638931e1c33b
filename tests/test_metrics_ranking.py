"""Areas under curves agree with scikit-learn, over batches of any cut."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from test_metrics import stream

import nnlite as nn

ROCAUC, AveragePrecision = nn.metrics.ROCAUC, nn.metrics.AveragePrecision


@st.composite
def scored(draw, outputs):
    """Scores of few levels, so that there are ties, and labels of which each class has some."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    n = draw(st.integers(max(4, outputs), 40))
    z = draw(st.sampled_from([rng.integers(-2, 3, (n, outputs)) / 1.0, rng.standard_normal((n, outputs))]))
    t = rng.permutation(np.arange(n) % max(2, outputs))
    return z, t, draw(st.integers(1, 10)), draw(st.sampled_from([None, rng.uniform(0.1, 2, n)]))


@given(case=scored(1))
def test_two_classes_from_one_logit(case):
    z, t, size, w = case
    for shaped in (z, z[:, 0]):
        assert stream(ROCAUC(), shaped, t, size, w) == pytest.approx(sk.roc_auc_score(t, z[:, 0], sample_weight=w))
        expected = sk.average_precision_score(t, z[:, 0], sample_weight=w)
        assert stream(AveragePrecision(), shaped, t, size, w) == pytest.approx(expected)


@given(case=scored(2))
def test_two_classes_from_two_logits(case):
    z, t, size, w = case
    y = nn.softmax(z)[:, 1]
    assert stream(ROCAUC(), z, t, size, w) == pytest.approx(sk.roc_auc_score(t, y, sample_weight=w))
    assert stream(AveragePrecision(), z, t, size, w) == pytest.approx(sk.average_precision_score(t, y, sample_weight=w))


@given(case=scored(4))
def test_each_class_against_the_rest(case):
    z, t, size, w = case
    y = nn.softmax(z)
    expected = sk.roc_auc_score(t, y, multi_class="ovr", sample_weight=w), sk.average_precision_score(t, y, sample_weight=w)
    for form in (t, t[:, None], np.eye(4)[t]):
        for mine, value in zip((ROCAUC, AveragePrecision), expected, strict=True):
            assert stream(mine(), z, form, size, w) == pytest.approx(value)


@given(case=scored(3), seed=st.integers(0, 1000))
def test_each_label(case, seed):
    z, _, size, w = case
    t = np.random.default_rng(seed).permuted(np.tile([[0], [1]], (len(z), 3))[: len(z)], axis=0)
    for mine, theirs in ((ROCAUC, sk.roc_auc_score), (AveragePrecision, sk.average_precision_score)):
        assert stream(mine(multilabel=True), z, t, size, w) == pytest.approx(theirs(t, z, sample_weight=w))


def test_confident_outputs_are_no_ties():
    """In float32 the probabilities of all of them are 1."""
    z, t = np.arange(20, 28, dtype="float32"), np.arange(8) > 3
    for outputs in (z, np.stack([0 * z, z], axis=1)):
        assert stream(ROCAUC(), outputs, t, 3) == stream(AveragePrecision(), outputs, t, 3) == 1


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_a_class_without_samples(classes):
    """As scikit-learn: there is no area, and precision is 0 without positive samples. Silently: some may come later."""
    z = np.random.default_rng(0).standard_normal((5, classes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for label in (0, 1):
            assert math.isnan(stream(ROCAUC(), z, np.full(5, label), 2))
        expected = 0 if classes < 3 else 1 / 3
        assert stream(AveragePrecision(), z, np.zeros(5, int), 2) == pytest.approx(expected)
        assert math.isnan(stream(ROCAUC(multilabel=True), z, np.ones((5, classes)), 2))
        assert stream(AveragePrecision(multilabel=True), z, np.zeros((5, classes)), 2) == 0


def test_outputs_that_are_nan_have_no_rank():
    for mine in (ROCAUC(), AveragePrecision()):
        assert math.isnan(stream(mine, np.array([0.1, np.nan, 0.3]), np.array([0, 1, 1]), 2))


def test_no_samples():
    for mine in (ROCAUC(), AveragePrecision(ignore_index=1)):
        with pytest.raises(nn.DataError, match="no sample"):
            mine.result()
        mine.update(np.ones(3), np.ones(3, int), np.zeros(3))
        with pytest.raises(nn.DataError, match="no sample"):
            mine.result()


def test_outputs_that_are_written_to_later_were_copied():
    z, metric = np.zeros(4), ROCAUC()
    for values, t in (([1, 2, 3, 4], [0, 0, 1, 1]), ([9, 8, 7, 6], [1, 1, 0, 0])):
        z[...] = values
        metric.update(z, np.array(t))
    assert metric.result() == sk.roc_auc_score([0, 0, 1, 1, 1, 1, 0, 0], [1, 2, 3, 4, 9, 8, 7, 6])


@pytest.mark.parametrize("mine", [ROCAUC, AveragePrecision])
def test_memory_is_that_of_outputs_labels_and_weights(mine):
    metric = mine()
    for _ in range(10):
        metric.update(np.zeros((100, 1), "float32"), np.zeros(100, "uint8"))
    for kept in (metric.kept, metric.state()["kept"]):
        assert sum(array.nbytes for arrays in kept for array in arrays) == 1000 * (4 + 8 + 8)
    assert [len(arrays) for arrays in metric.kept] == [1, 1, 1], "a checkpoint has three arrays of it"
