"""Metrics agree with scikit-learn, over batches of any cut."""

import copy
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as sk

import nnlite as nn

FIGURES = ((nn.Precision, sk.precision_score), (nn.Recall, sk.recall_score), (nn.F1, sk.f1_score))


@st.composite
def classified(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    n, classes = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    z, t = rng.integers(0, 4, (n, classes)).astype(float), rng.integers(0, classes, n)  # few levels: ties
    return z, t, draw(st.integers(1, 10)), rng.uniform(0.1, 2, n)


def stream(metric, z, t, size, weight=None):
    metric.reset()
    for start in range(0, len(t), size):
        s = slice(start, start + size)
        metric.update(z[s], t[s], None if weight is None else weight[s])
    return metric.result()


@given(case=classified())
def test_accuracy_and_confusion(case):
    z, t, size, w = case
    p, classes = z.argmax(axis=1), range(z.shape[1])
    assert stream(nn.Accuracy(), z, t, size) == pytest.approx(sk.accuracy_score(t, p))
    assert stream(nn.Accuracy(), z, t, size, w) == pytest.approx(sk.accuracy_score(t, p, sample_weight=w))
    np.testing.assert_array_equal(stream(nn.ConfusionMatrix(), z, t, size), sk.confusion_matrix(t, p, labels=classes))
    one_hot = np.eye(z.shape[1])[t]
    assert stream(nn.Accuracy(), z, one_hot, size) == stream(nn.Accuracy(), z, t, size)


@given(case=classified(), average=st.sampled_from(["macro", "micro", None]))
def test_precision_recall_f1(case, average):
    z, t, size, w = case
    p, labels = z.argmax(axis=1), None if average == "macro" else range(z.shape[1])
    for mine, theirs in FIGURES:
        for weight in (None, w):
            expected = theirs(t, p, average=average, labels=labels, zero_division=0, sample_weight=weight)
            np.testing.assert_allclose(stream(mine(average), z, t, size, weight), expected, rtol=1e-12)


@given(seed=st.integers(0, 1000), k=st.integers(1, 4), size=st.integers(1, 9))
def test_top_k(seed, k, size):
    rng = np.random.default_rng(seed)
    z, t = rng.permuted(np.tile(np.arange(5.0), (20, 1)), axis=1), rng.integers(0, 5, 20)
    metric = nn.TopK(k)
    assert metric.name == f"top{k}_accuracy"
    assert stream(metric, z, t, size) == pytest.approx(sk.top_k_accuracy_score(t, z, k=k, labels=range(5)))


METRICS = [nn.Accuracy, partial(nn.TopK, 2), nn.ConfusionMatrix, nn.Precision, partial(nn.Recall, "micro"), nn.F1]


@pytest.mark.parametrize("make", METRICS)
@given(case=classified(), seed=st.integers(0, 99), bad=st.sampled_from([-100, 99, np.nan]), one_hot=st.booleans())
def test_weight_zero_means_not_there(make, case, seed, bad, one_hot):
    z, t, size, w = case
    there = np.random.default_rng(seed).random(len(t)) < 0.6
    there[0] = True
    expected = stream(make(), z[there], t[there], size, w[there])
    t = np.eye(z.shape[1])[t] if one_hot else t.astype(float) if bad is np.nan else t.copy()
    w[~there], t[~there], z[~there] = 0, bad, np.nan
    np.testing.assert_allclose(stream(make(), z, t, size, w), expected, rtol=1e-12)


@pytest.mark.parametrize("make", METRICS)
@given(case=classified(), index=st.sampled_from([-100, 1, 255]), weighted=st.booleans(), column=st.booleans())
def test_ignored_labels_are_left_out(make, case, index, weighted, column):
    z, t, size, w = case
    w = w if weighted else None
    t[::3], t[1::3] = index, 0
    there = t != index
    if not there.any():
        return
    expected = stream(make(), z[there], t[there], size, None if w is None else w[there])
    t = t[:, None] if column else t
    np.testing.assert_allclose(stream(make(ignore_index=index), z, t, size, w), expected, rtol=1e-12)


def test_more_places_than_classes_are_refused():
    """The first 5 of 3 classes hold every label: no figure of the model."""
    for z in (np.eye(3), np.ones((3, 1))):
        with pytest.raises(nn.DataError, match=r"top5_accuracy needs outputs \(N, C\) of at least 5 classes, got \(N, [13]\)"):
            nn.TopK(5).update(z, np.zeros(3, int))
    assert stream(nn.TopK(3), np.eye(3), np.arange(3), 3) == 1


def test_weights_of_another_length_are_refused():
    for metric in (nn.Accuracy(), nn.F1()):
        with pytest.raises(nn.DataError, match=r"sample_weight must have shape \(3,\), not \(2,\)"):
            metric.update(np.eye(3), np.arange(3), np.ones(2))


def test_two_classes_from_one_logit():
    z, t = np.array([[-1.0], [2.0], [0.5], [-0.5]]), np.array([0, 1, 0, 1])
    assert stream(nn.Accuracy(), z, t, 3) == stream(nn.Accuracy(), z[:, 0], t[:, None], 3) == 0.5
    assert stream(nn.ConfusionMatrix(), z, t, 2).tolist() == [[1, 1], [1, 1]]


@given(case=classified())
def test_two_classes_by_default_class_1(case):
    z, t, size, w = case
    z, t = z[:, :2], t % 2
    p = z.argmax(axis=1)
    for mine, theirs in FIGURES:
        for weight in (None, w):
            expected = theirs(t, p, zero_division=0, sample_weight=weight)
            for average in ("auto", "binary"):
                assert stream(mine(average), z, t, size, weight) == pytest.approx(expected)
            assert stream(mine(), z[:, 1] - z[:, 0], t, size, weight) == pytest.approx(expected)


@given(case=classified())
def test_of_more_classes_by_default_the_mean(case):
    z, t, size, _ = case
    assume(z.shape[1] > 2)
    for mine, _ in FIGURES:
        assert stream(mine(), z, t, size) == stream(mine("macro"), z, t, size)
        with pytest.raises(nn.DataError, match=f'average="binary" is of two classes, not of {z.shape[1]}'):
            stream(mine("binary"), z, t, size)


@st.composite
def several_labels(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    n, labels = draw(st.integers(1, 40)), draw(st.integers(2, 5))
    z, t = rng.integers(-2, 3, (n, labels)) / 1.0, rng.integers(0, 2, (n, labels))
    return z, draw(st.sampled_from([t, t == 1, t.astype("float32")])), draw(st.integers(1, 10)), rng.uniform(0.1, 2, n)


@given(case=several_labels(), average=st.sampled_from(["auto", "macro", "micro", None]))
def test_several_labels_a_sample(case, average):
    z, t, size, w = case
    p = z > 0
    for weight in (None, w):
        accuracy = stream(nn.Accuracy(multilabel=True), z, t, size, weight)
        assert accuracy == pytest.approx(sk.accuracy_score(t, p, sample_weight=weight))
        matrices = stream(nn.ConfusionMatrix(multilabel=True), z, t, size, weight)
        np.testing.assert_allclose(matrices, sk.multilabel_confusion_matrix(t, p, sample_weight=weight), atol=1e-12)
        for mine, theirs in FIGURES:
            options = {"average": "macro" if average == "auto" else average, "zero_division": 0, "sample_weight": weight}
            ours = stream(mine(average, multilabel=True), z, t, size, weight)
            np.testing.assert_allclose(ours, theirs(t, p, **options), rtol=1e-12)


METRICS = [
    nn.Accuracy(),
    nn.Accuracy(ignore_index=1),
    nn.TopK(2),
    nn.ConfusionMatrix(),
    nn.F1(),
    nn.Recall(None),
    nn.metrics.ROCAUC(),
    nn.metrics.AveragePrecision(ignore_index=0),
]
OF_SEVERAL = [nn.Accuracy, nn.ConfusionMatrix, nn.F1, nn.metrics.ROCAUC, nn.metrics.AveragePrecision]
OF_REALS = [nn.metrics.MAE(), nn.metrics.RMSE(), nn.metrics.R2()]


@pytest.mark.parametrize("metric", METRICS + OF_REALS + [kind(multilabel=True) for kind in OF_SEVERAL], ids=repr)
@given(
    positions=st.sampled_from([(1,), (3,), (2, 3), (2, 1, 2)]), classes=st.sampled_from([1, 2, 3]),
    form=st.sampled_from(["labels", "column", "probabilities"]), weighted=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_each_position_counts_as_a_sample(metric, positions, classes, form, weighted, seed):
    rng = np.random.default_rng(seed)
    assume(classes > 1 or not isinstance(metric, nn.TopK))
    shape, each = (7, *positions, classes), math.prod(positions)
    z, w = rng.standard_normal(shape), rng.integers(0, 2, 7) * rng.uniform(0.1, 2, 7)
    w[[0, -1]] = 1
    if getattr(metric, "multilabel", True):
        t = rng.integers(0, 2, shape)
    else:
        t = rng.integers(0, max(2, classes), shape[:-1])
        t.flat[[0, -1]] = 0, 1  # so that not all are ignored
        t = {"labels": t, "column": t[..., None], "probabilities": np.eye(max(2, classes))[t][..., -classes:]}[form]
    flat = t.reshape(-1, classes) if t.shape == shape and classes > 1 else t.reshape(-1)
    there = flat != getattr(metric, "ignore_index", None) if flat.ndim == 1 else slice(None)
    of_those_there = z.reshape(-1, classes)[there], flat[there], 5, np.repeat(w, each)[there] if weighted else None
    plain = copy.copy(metric)
    plain.ignore_index = None
    expected = stream(plain, *of_those_there)
    np.testing.assert_allclose(stream(metric, z, t, 3, w if weighted else None), expected, rtol=1e-9)


def test_outputs_of_more_classes_later():
    metric = nn.ConfusionMatrix()
    for classes in (2, 3):
        metric.update(np.eye(classes), np.arange(classes))
    assert metric.result().tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 1]]


def test_another_metric_goes_on_from_the_state():
    z, t = np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 1, 2])
    for metric in METRICS:
        metric.reset()
        first, second = copy.deepcopy(metric), copy.deepcopy(metric)
        first.update(z[:2], t[:2])
        second.load_state(copy.deepcopy(first.state()))
        for metric in (first, second):
            metric.update(z[2:], t[2:])
        assert np.array_equal(first.result(), second.result())


def test_several_labels_a_sample_are_refused():
    """The largest of several ones would be their first: a wrong figure, and nobody would notice."""
    z, many = np.eye(3), np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    for metric in (nn.Accuracy(), nn.TopK(2), nn.ConfusionMatrix(), nn.Precision(), nn.Recall(), nn.F1()):
        for bad in (many, many.astype(float), np.zeros((3, 3)), np.eye(3) * np.nan, np.array([[-1.0, 1, 1]] * 3)):
            with pytest.raises(nn.DataError, match="probabilities of the classes"):
                metric.update(z, bad)
        metric.update(z, np.array([[0.7, 0.2, 0.1]] * 3, "float16"))
    for kind in OF_SEVERAL:
        kind(multilabel=True).update(z, many)
        for bad in (many * 2, many - 0.5, many * np.nan, np.arange(3), many[:, :2]):
            with pytest.raises(nn.DataError):
                kind(multilabel=True).update(z, bad)


def test_report():
    text = nn.metrics.classification_report(np.array([[3, 1], [0, 4]]), ["cat", "dog"])
    assert "cat" in text and "0.750" in text and "macro mean" in text and len(text.splitlines()) == 4


def test_bad_input():
    z = np.zeros((3, 2))
    for t in ([0, 1], [0, 1, 2], [0, 1, -1], [0.5, 0, 1]):
        with pytest.raises(nn.DataError):
            nn.Accuracy().update(z, np.array(t))
    for metric in (nn.Accuracy(), nn.F1(), nn.ConfusionMatrix()):
        with pytest.raises(nn.DataError, match="no sample"):
            metric.result()
    both = [lambda kind=kind: kind(multilabel=True, ignore_index=1) for kind in OF_SEVERAL]
    for bad in (lambda: nn.F1("weighted"), lambda: nn.TopK(0), lambda: nn.F1("binary", multilabel=True), *both):
        with pytest.raises(ValueError):
            bad()


def test_a_report_averages_over_the_classes_that_occur():
    p, t = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    metrics = [nn.Precision(), nn.Recall(), nn.F1()]
    matrix = nn.ConfusionMatrix()
    for metric in (*metrics, matrix):
        metric.update(np.eye(10)[p], t)
    last = nn.metrics.classification_report(matrix.result(), [str(i) for i in range(10)]).splitlines()[-1]
    wanted = sk.precision_recall_fscore_support(t, p, average="macro", zero_division=0)[:3]
    assert [float(word) for word in last.split()[2:5]] == pytest.approx(wanted, abs=5e-4)
    assert [metric.result() for metric in metrics] == pytest.approx(wanted)


def test_a_confusion_matrix_that_was_handed_out_stays_as_it_is():
    metric = nn.ConfusionMatrix()
    metric.update(np.eye(3), np.arange(3))
    matrix = metric.result()
    metric.update(np.eye(3), np.arange(3))
    assert matrix.tolist() == np.eye(3).tolist()
