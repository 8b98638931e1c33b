"""Transforms of tiles against loops over tiles and pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnlite.backend.cpu.numpy import get_numpy_backend
from nnlite.backend.cpu.tiles import AddTiles, Axis, FromTiles, ToTiles

pytestmark = pytest.mark.usefixtures("numpy_kernels")

backend = get_numpy_backend()
rng = np.random.default_rng(0)


@st.composite
def axes(draw):
    m, before, behind = draw(st.integers(2, 4)), draw(st.integers(0, 2)), draw(st.integers(0, 2))
    size = draw(st.integers(max(1, 3 - before - behind), 20))
    return Axis(backend, m, before, size, size + before + behind - 2), size + before + behind - 2


def places(axis, size, pad, length):
    """(tile, place, pixel) of all that lies in the image."""
    for t in range(axis.count):
        for i in range(length):
            if 0 <= axis.m * t - pad + i < size:
                yield t, i, axis.m * t - pad + i


inner = st.sampled_from([1, 5])


@given(axes(), st.integers(1, 6), inner, st.booleans())
def test_to_tiles(drawn, k, inner, given_later):
    axis, _ = drawn
    T, x = rng.standard_normal((k, axis.m + 2)), rng.standard_normal((3, axis.size, inner))
    expected = np.zeros((k, 3, axis.count, inner))
    for t, i, pixel in places(axis, axis.size, axis.pad, axis.m + 2):
        expected[:, :, t] += T[:, i, None, None] * x[:, pixel]
    y, other = np.full(expected.shape, np.nan), np.full(expected.shape, np.nan)
    transform = ToTiles(axis, axis.inputs, T, None if given_later else x, y)
    transform(*[x] if given_later else [])
    np.testing.assert_allclose(y, expected, atol=1e-12)
    transform(x, other)
    np.testing.assert_array_equal(other, y)


@given(axes(), st.integers(1, 6), inner, st.booleans())
def test_from_tiles(drawn, k, inner, given_later):
    axis, outputs = drawn
    T, y = rng.standard_normal((axis.m, k)), rng.standard_normal((k, 3, axis.count, inner))
    expected, x = np.zeros((3, outputs, inner)), np.full((3, outputs, inner), np.nan)
    for t, i, pixel in places(axis, outputs, 0, axis.m):
        expected[:, pixel] = np.tensordot(T[i], y[:, :, t], 1)
    FromTiles(axis, axis.outputs, T, y, None if given_later else x)(*[x] if given_later else [])
    np.testing.assert_allclose(x, expected, atol=1e-12)


@given(axes(), st.integers(1, 6), inner, st.booleans())
def test_tiles_are_added_where_they_overlap(drawn, k, inner, given_later):
    axis, _ = drawn
    T, y = rng.standard_normal((axis.m + 2, k)), rng.standard_normal((k, 3, axis.count, inner))
    expected, x = np.zeros((3, axis.size, inner)), np.full((3, axis.size, inner), np.nan)
    for t, i, pixel in places(axis, axis.size, axis.pad, axis.m + 2):
        expected[:, pixel] += np.tensordot(T[i], y[:, :, t], 1)
    rest = np.full((2, 3, axis.count, inner), np.nan)
    AddTiles(axis, T, y, None if given_later else x, rest)(*[x] if given_later else [])
    np.testing.assert_allclose(x, expected, atol=1e-12)


@pytest.mark.parametrize(("size", "pad", "products"), [(32, 1, 2), (8, 1, 1), (30, 0, 1), (31, 1, 3)])
def test_both_borders_are_one_product(size, pad, products):
    axis = Axis(backend, 4, pad, size, size + 2 * pad - 2)
    assert len(axis.inputs) == products


@pytest.mark.parametrize(("size", "pad"), [(6, 0), (5, 0), (4, 1)])
def test_a_single_tile_is_added_in_one_product(size, pad):
    axis = Axis(backend, 4, pad, size, size + 2 * pad - 2)
    T, y, rest = np.ones((6, 6)), np.ones((6, 1, axis.count, 5)), np.ones((2, 1, axis.count, 5))
    transform = AddTiles(axis, T, y, None, rest)
    assert (axis.count, len(transform.own.products), transform.sums) == (1, 1, [])
    assert axis.covered >= axis.size
