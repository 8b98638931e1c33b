"""Updates in C against the formulas of `optim/`, on any length and at every vector width."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend import get_numpy_backend
from nnlite.optim.adam import adam
from nnlite.optim.rmsprop import rmsprop
from nnlite.optim.sgd import sgd

DTYPES = st.sampled_from(["float32", "float64"])
UPDATES = {  # the formula, its numbers, and how many vectors it has
    "adam": (adam, ((0.9, 0.99), 1e-8, 0.01, 0.999), 4),
    "rmsprop": (rmsprop, (0.9, 1e-8, 0.01), 3),
    "sgd": (sgd, (0.1, 0.9, False), 3),
    "sgd, nesterov": (sgd, (0.1, 0.9, True), 3),
    "sgd, plain": (sgd, (0.1, 0.0, False), 2),
}


def drawn(count, n, dtype):
    """Parameters, gradients, and a state that is not negative."""
    values = np.random.default_rng(0).standard_normal((count, n)).astype(dtype)
    values[2:] **= 2
    return list(values)


def update(backend, name, vectors):
    """The vectors after an update, by a kernel or by the formula."""
    (formula, numbers, _), vectors = UPDATES[name], copy.deepcopy(vectors)
    given = vectors if len(vectors) > 2 else [*vectors, None]
    kernel = getattr(backend, formula.__name__)
    if kernel is None:
        formula(backend, *given, *numbers)
    else:
        kernel(*given, *numbers)
    return vectors


@pytest.mark.parametrize("name", UPDATES)
@given(n=st.one_of(st.integers(0, 100), st.just(5000)), dtype=DTYPES)
def test_the_formulas(native, name, n, dtype):
    vectors = drawn(UPDATES[name][2], n, dtype)
    for x, y in zip(update(native, name, vectors), update(get_numpy_backend(), name, vectors), strict=True):
        np.testing.assert_allclose(x, y, rtol=8 * np.finfo(dtype).eps, atol=8 * np.finfo(dtype).eps)


@given(n=st.integers(1, 50), start=st.integers(0, 20), dtype=DTYPES)
def test_parts_of_vectors_and_only_these(native, n, start, dtype):
    """Blocks of a flat vector give the bits of the whole; nothing beside them is written."""
    whole = drawn(4, 80, dtype)
    expected, parts = update(native, "adam", whole), copy.deepcopy(whole)
    native.adam(*(v[start : start + n] for v in parts), *UPDATES["adam"][1])
    for part, before, after in zip(parts, whole, expected, strict=True):
        assert np.array_equal(part[start : start + n], after[start : start + n])
        assert np.array_equal(np.delete(part, np.s_[start : start + n]), np.delete(before, np.s_[start : start + n]))


@given(n=st.integers(0, 70), a=DTYPES, b=DTYPES)
def test_lerp(native, n, a, b):
    x, y = drawn(1, n, a)[0], drawn(2, n, b)[1]
    expected = x + 0.3 * (y - x)
    native.lerp(x, y, 0.3)
    assert x.dtype == a
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)


def test_vectors_that_do_not_match_are_refused(native):
    p, g = np.ones(8, "float32"), np.ones(8, "float32")
    for other in (g[:7], g.astype("float64"), np.ones(16, "float32")[::2], g.astype("int32")):
        with pytest.raises(ValueError, match="sgd takes contiguous vectors of one size and dtype"):
            native.sgd(p, other, None, 0.1, 0.0, False)


def test_the_same_bits_at_every_width(same_bits, native):
    def work():
        for dtype in ("float32", "float64"):
            for name, (*_, count) in UPDATES.items():
                yield from update(native, name, drawn(count, 133, dtype))
            a, b = drawn(2, 133, dtype)
            native.lerp(a, b, 0.3)
            yield a

    assert same_bits(work, "optim")


@pytest.mark.parametrize("optimiser", [nn.Adam(0.01), nn.AdamW(0.01), nn.RMSProp(), nn.SGD(momentum=0.9), nn.Muon()], ids=repr)
def test_optimisers_train_as_with_numpys(native, optimiser):
    results = []
    for name in ("native", "numpy"):
        nn.set_kernels(name)
        try:
            model, own = nn.Sequential(nn.Dense(20, bias=False), input_shape=(30,)), copy.deepcopy(optimiser)
        finally:
            nn.set_kernels("numpy")
        for seed in range(5):
            model.grads[...] = np.random.default_rng(seed).standard_normal(600)
            own.step(model)
        results.append(model.params)
    np.testing.assert_allclose(*results, atol=1e-5)
    assert abs(results[0] - nn.Sequential(nn.Dense(20, bias=False), input_shape=(30,)).params).max() > 1e-3
