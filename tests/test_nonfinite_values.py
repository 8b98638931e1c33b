"""Infinity and NaN stay where they belong: what a mask, a pooling or a group leaves out is 0, whatever it was."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend import get_backend
from nnlite.backend.base import Backend
from nnlite.backend.masks import masked
from nnlite.data.augment import Pictures

bad_values = st.sampled_from([np.inf, -np.inf, np.nan])
pytestmark = [pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"), pytest.mark.usefixtures("both_kernels")]


@pytest.fixture(params=["auto", "direct", "winograd"])
def _algorithm(request):
    nn.set_conv_algorithm(request.param)
    yield
    nn.set_conv_algorithm("auto")


class Given(nn.Loss):
    """The targets are dJ/dz, whatever z is."""

    def per_sample(self, backend, z, t):
        return np.zeros(len(z)), len(z) * t


def run(model, x, delta):
    """What each channel and each filter gets, as the last axis: z, dx, the gradients by hand and of a sweep, inference."""
    z = model.forward(x, training=True).copy()
    dx = model.backward(delta)
    by_hand = [np.moveaxis(g.copy(), 0, -1) for g in model.named_grads().values()]
    model.loss_and_grad(x, delta, Given())
    swept = [np.moveaxis(g.copy(), 0, -1) for g in model.named_grads().values()]
    return [dx, z, model(x), *by_hand, *swept]


@st.composite
def grouped(draw):
    """A grouped convolution, the shape of its images, and its groups."""
    groups, inputs, outputs = draw(st.integers(2, 40)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    options = {"stride": draw(st.integers(1, 2)), "padding": draw(st.integers(0, 1)), "bias": draw(st.booleans())}
    conv = nn.Conv2D(groups * outputs, draw(st.sampled_from([1, 3, (2, 3)])), groups=groups, **options)
    return conv, (*draw(st.tuples(st.integers(5, 9), st.integers(5, 9))), groups * inputs), groups


def of_group(results, g, groups):
    """The part of each result that belongs to a group."""
    return [np.split(result, groups, axis=-1)[g] for result in results]


def equal(first, second):
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("_algorithm")
@given(grouped(), st.integers(1, 4), st.sampled_from(["input", "delta", "weight"]), st.data())
def test_groups_depend_on_themselves_alone(case, n, where, data):
    """With bad values in two groups, each group has the bits that it has where no other is bad."""
    conv, shape, groups = case
    model, rng = nn.Sequential(conv, input_shape=shape), np.random.default_rng(data.draw(st.integers(0, 99)))
    x, delta = (rng.standard_normal((n, *s)).astype("float32") for s in (shape, model.out_shape))
    parts = {
        "input": np.split(x, groups, axis=-1),
        "delta": np.split(delta, groups, axis=-1),
        "weight": np.split(conv.W, groups),
    }[where]
    expected = run(model, x, delta)
    alone, spoiled = {}, {}
    for g in data.draw(st.sets(st.integers(0, groups - 1), min_size=1, max_size=2)):
        place, bad = tuple(rng.integers(size) for size in parts[g].shape), data.draw(bad_values)
        good, parts[g][place] = parts[g][place], bad
        alone[g], spoiled[g] = run(model, x, delta), (place, bad)
        parts[g][place] = good
    for g, (place, bad) in spoiled.items():
        parts[g][place] = bad
    results = run(model, x, delta)
    for g in range(groups):
        assert equal(of_group(results, g, groups), of_group(alone.get(g, expected), g, groups))
    reached = {"delta": 0, "weight": 1}.get(where)  # dx or z; a stride may step over an input
    if reached is not None and conv.padding == 0:
        assert not any(np.isfinite(of_group(results, g, groups)[reached]).all() for g in spoiled)


def test_a_group_of_several_blocks_that_are_trained():
    """After a bad batch the next is as if it had never been."""
    conv = nn.Conv2D(128, 3, padding=1, groups=4)
    model, rng = nn.Sequential(conv, input_shape=(6, 6, 128)), np.random.default_rng(0)
    x, delta = (rng.standard_normal((2, 6, 6, 128)).astype("float32") for _ in range(2))
    expected = run(model, x, delta)
    spoiled = x.copy()
    spoiled[0, 0, 0, 5] = np.nan
    assert np.isnan(run(model, spoiled, delta)[1]).any()
    assert equal(run(model, x, delta), expected)


MASKS = {
    "ReLU": ([nn.ReLU()], (6, 6, 3)),
    "ReLU of vectors": ([nn.ReLU()], (7,)),
    "MaxPool2D": ([nn.MaxPool2D(2)], (6, 6, 3)),
    "MaxPool2D, overlapping": ([nn.MaxPool2D(3, 2)], (7, 7, 2)),
    "MaxPool2D, padded": ([nn.MaxPool2D(3, 1, padding=1)], (5, 6, 2)),
    "GlobalMaxPool1D": ([nn.GlobalMaxPool1D()], (6, 3)),
    "GlobalMaxPool2D": ([nn.GlobalMaxPool2D()], (6, 6, 3)),
    "Dropout": ([nn.Dropout(0.5)], (6, 6, 3)),
    "Conv2D and MaxPool2D": ([nn.Conv2D(1, 1, init="ones"), nn.MaxPool2D(2)], (6, 6, 1)),
    "Conv2D, ReLU and MaxPool2D": ([nn.Conv2D(1, 1, init="ones"), nn.ReLU(), nn.MaxPool2D((2, 3))], (6, 6, 1)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", MASKS)
@given(bad=bad_values, seed=st.integers(0, 99))
def test_a_delta_does_not_reach_what_was_left_out(case, dtype, bad, seed):
    layers, shape = MASKS[case]
    model = nn.Sequential(*(type(layer)(**layer.config()) for layer in layers), input_shape=shape, dtype=dtype)
    x = np.random.default_rng(seed).standard_normal((3, *shape))
    dx = []
    for value in (1.0, bad):
        z = model.forward(x, training=True, pass_id=1)
        dx.append(model.backward(np.full(z.shape, value)).copy())
    reached = dx[0] != 0
    assert reached.any() and not reached.all()
    assert not dx[1][~reached].any() and not np.isfinite(dx[1][reached]).any()


@pytest.mark.parametrize("shape", [(40,), (5, 5, 3)], ids=str)
@given(bad=bad_values)
def test_dropped_values_are_zero(shape, bad):
    model, x = nn.Sequential(nn.Dropout(0.5), input_shape=shape), np.ones((4, *shape), "float32")
    kept = model.forward(x, training=True, pass_id=1).copy() != 0
    x[...] = bad
    y = model.forward(x, training=True, pass_id=1)
    assert not y[~kept].any() and not np.isfinite(y[kept]).any() and kept.any() and not kept.all()
    plain = Backend()
    plain.xp = np
    mask = kept * np.float32(2)
    for backend in (get_backend("cpu"), plain):
        assert np.array_equal(backend.drop(x, mask, None), np.where(kept, x * 2, 0), equal_nan=True)
        assert np.array_equal(backend.drop(np.ones_like(x), mask, None), mask)


@given(st.sampled_from(["float32", "float64", "float16", "uint8", "int64"]), st.integers(0, 99))
def test_masks_keep_every_bit(dtype, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (5, 4, np.dtype(dtype).itemsize), "uint8").view(dtype)[..., 0]  # any bits, NaN among them
    kept = rng.random(values.shape) < 0.5
    result = masked(np, values, kept)
    assert result.dtype == values.dtype and result[kept].tobytes() == values[kept].tobytes() and not result[~kept].any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_cut_out_of_images_is_zero(value):
    images, index = np.full((8, 6, 6, 2), value, "float32"), np.arange(8)
    cut = nn.data.Cutout(4)(images, index, 0, 0)
    assert (cut == 0).any() and (np.isfinite(cut) == (cut == 0)).all() and not np.isfinite(images).any()
    pictures = Pictures(images)
    pictures.move(np.full(8, 4), np.zeros(8, int))
    shifted = pictures.array()
    assert (shifted == 0).any() and (np.isfinite(shifted) == (shifted == 0)).all()


def test_a_bad_pixel_spoils_no_other_image(monkeypatch):
    """A Winograd tile spreads it, but within its own image."""
    nn.set_conv_algorithm("winograd")
    try:
        model = nn.Sequential(nn.Conv2D(3, 3, padding=1), input_shape=(9, 9, 2))
    finally:
        nn.set_conv_algorithm("auto")
    x = np.random.default_rng(0).standard_normal((3, 9, 9, 2)).astype("float32")
    expected = model(x)
    x[1, 0, 0, 0] = np.nan
    z = model(x)
    assert np.array_equal(z[[0, 2]], expected[[0, 2]]) and np.array_equal(z[1, 8, 8], expected[1, 8, 8])
    assert np.isnan(z[1, :2, :2]).all()
