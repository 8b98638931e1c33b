"""Functions and random values that are the same bits on every processor; those of C libraries, NumPy and LAPACK are not.

They use additions, multiplications, divisions and square roots, which all processors round alike, and `decimal`, whose exp and
ln are correctly rounded by its standard.
"""

import math
from collections.abc import Callable
from decimal import Context, Decimal, localcontext
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

_DECIMAL = Context(prec=25, traps=[])
_BLOCK = 1 << 16  # words at once, which stay in the cache
_LAYERS = 256
_BASE = "3.6541528853610087963519472518"  # where the tail begins: then 255 layers and the base have the same area


def cos_pi(x: float) -> float:
    """cos(pi x) for x >= 0, to 2 ulp: Taylor's series, that of the sine near 1/2."""
    x = min(x % 2, 2 - x % 2)
    if x > 0.5:
        return -cos_pi(1 - x)
    is_flat = x < 0.25
    y, series = math.pi * (x if is_flat else 0.5 - x), 1.0
    for k in range(15 if is_flat else 16, 0, -2):
        series = 1 - y * y * series / (k * (k + 1))
    return series if is_flat else y * series


def power(base: float, exponent: float) -> float:
    """base^exponent for base >= 0, to 1 ulp: exp(exponent ln base), with 25 digits."""
    if not base or not exponent:
        return float(not exponent)
    return float(_DECIMAL.exp(_DECIMAL.multiply(_DECIMAL.ln(Decimal(float(base))), Decimal(float(exponent)))))


def standard_normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float64) -> Any:
    """The values of `rng.standard_normal(shape, dtype)` from the same random bits, but equal everywhere, in every version.

    The ziggurat of 256 layers: Marsaglia and Tsang 2000. dtype: float64 or float32.
    """
    values: Any = np.empty(math.prod(shape), dtype)
    start = 0
    while start < len(values):
        drawn = _ziggurat(rng, min(len(values) - start, _BLOCK), values.dtype.type)
        values[start : start + len(drawn)] = drawn
        start += len(drawn)
    return values.reshape(shape)


def _ziggurat(rng: np.random.Generator, n: int, real: Any) -> Any:
    """The values that n random words give, at most n: a word in a hundred needs a second one."""
    bits, digits, spare = (64, 52, 11) if real is np.float64 else (32, 23, 8)
    edges, heights, inside = _layers(digits, real)
    words: Any = rng.integers(0, 1 << bits, n, dtype=f"uint{bits}")
    layer, place = (words & 2 * _LAYERS - 1).astype(np.intp), words >> 9 & (1 << digits) - 1  # layers of both sides
    x = edges[layer] * place.astype(real)

    def are_under(i: Any, u: Any) -> Any:
        """Whether points in the corners of their layers are below the curve."""
        height, wide = heights[layer[i]], x[i].astype(np.float64)
        return (heights[layer[i] - 1] - height) * u + height < _exp(-0.5 * wide * wide)

    def uniform(i: Any) -> Any:
        return (words[i] >> spare).astype(real) * real(0.5 ** (bits - spare))

    def second(i: int) -> Any:
        return uniform(i) if i < n else rng.random(dtype=real)

    corners, dropped, free = np.flatnonzero(place >= inside[layer]), np.zeros(n, bool), 0
    under = are_under(corners, uniform(np.minimum(corners + 1, n - 1)))
    for i, is_under in zip(corners.tolist(), under.tolist(), strict=True):
        if i < free:  # it has served as a second word
            continue
        if layer[i] % _LAYERS:
            free = i + 2
            dropped[i] = not (is_under if free <= n else are_under(i, second(i + 1)))
        else:
            beyond, free = _tail(second, i + 1, real)
            x[i] = -beyond if place[i] >> 8 & 1 else beyond
        dropped[i + 1 : free] = True
    return x[~dropped]


def _tail(second: Callable[[int], Any], i: int, real: Any) -> tuple[Any, int]:
    """A value beyond the base, from pairs of uniform numbers, and how many words were read by then."""
    while True:
        a, b = (real(-_DECIMAL.ln(Decimal(1 - float(second(j))))) for j in (i, i + 1))
        a, i = a * real(1 / float(_BASE)), i + 2
        if b + b > a * a:
            return real(float(_BASE)) + a, i


@cache
def _layers(digits: int, real: Any) -> tuple[Any, Any, Any]:
    """Of each layer: its edge / 2^digits, the curve's height there, and how many places are surely below the curve.

    The base is first, then the topmost; the layers of the right side are followed by those of the left.
    """
    with localcontext(_DECIMAL):
        x = mills = Decimal(_BASE)
        for k in range(400, 0, -1):
            mills = x + k / mills  # the area of the tail is its height / mills: a continued fraction
        edges, heights = [x + 1 / mills, x], [Decimal(1), (-x * x / 2).exp()]
        area = heights[1] * edges[0]
        while len(edges) < _LAYERS:
            heights.append(heights[-1] + area / edges[-1])
            edges.append((-2 * heights[-1].ln()).sqrt())
        inside = [round(b / a * (1 << digits)) for a, b in pairwise((*edges, Decimal(0)))]
        sides = [float(edge / (1 << digits)) for edge in edges]
    edge, height, places = (np.roll(column[::-1], 1) for column in (sides, [*map(float, heights)], inside))
    return (
        np.concatenate([edge, -edge]).astype(real),
        np.tile(height, 2).astype(real),
        np.tile(places, 2).astype(f"uint{8 * real().itemsize}"),
    )


def _exp(x: Any) -> Any:
    """exp(x) of float64 in [-8, 0], to 1e-14: Taylor's series of x / 64, squared six times."""
    series: Any = 1.0
    for k in range(9, 0, -1):
        series = 1 + x * series / (64 * k)
    for _ in range(6):
        series = series * series
    return series
