"""A generated data set: ten shapes of random colour, place, size, angle and noise, for use offline."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import whole
from nnlite.backend.exact import cos_pi, standard_normal
from nnlite.data.dataset import Dataset, Datasets

Array = NDArray[Any]
SIZE = 32
_CHUNK = 1024  # images painted at once


def _radius(u: Array, v: Array) -> Array:
    return np.asarray(np.sqrt(u * u + v * v))


def _triangle(u: Array, v: Array) -> Array:
    """Corners on the unit circle, one at (1, 0)."""
    return np.asarray((u > -0.5) & (abs(v) * np.sqrt(np.float32(3)) < 1 - u))


def _star(u: Array, v: Array) -> Array:
    """Inside r = 0.62 + 0.38 cos(5 angle), with c = cos(angle): cos(5 angle) = 16 c^5 - 20 c^3 + 5 c."""
    r = _radius(u, v)
    c = u / np.maximum(r, np.float32(1e-9))
    return np.asarray(r < 0.62 + 0.38 * c * (5 + c * c * (16 * c * c - 20)))


def _arrow(u: Array, v: Array) -> Array:
    return np.asarray((abs(v) < 0.2) & (abs(u) < 0.9) | (u > 0.1) & (abs(v) < 0.9 - u))


# Each tells which points (u, v) belong to the shape, which is inside the unit circle.
_INSIDE: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: _radius(u, v) < 0.9,
    "ring": lambda u, v: abs(_radius(u, v) - 0.8) < 0.2,
    "triangle": _triangle,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.7,
    "frame": lambda u, v: abs(np.maximum(abs(u), abs(v)) - 0.56) < 0.15,
    "star": _star,
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.26) & (np.maximum(abs(u), abs(v)) < 0.95),
    "bars": lambda u, v: (abs(v) < 0.8) & (abs(abs(u) - 0.45) < 0.2),
    "crescent": lambda u, v: (_radius(u, v) < 1) & (_radius(u - np.float32(0.5), v) > 0.8),
    "arrow": _arrow,
}
CLASSES = tuple(_INSIDE)


def shapes(n: int = 20_000, seed: int = 0) -> Datasets:
    """n training and n // 5 (at least 1) test images (32, 32, 3) uint8 of ten classes; the same for the same n and seed,
    on every processor."""
    whole("n", n, 1)
    whole("seed", seed)
    train, test = (_draw(count, np.random.default_rng([seed, part])) for part, count in ((2, n), (3, max(1, n // 5))))
    return Datasets("shapes", train, test, CLASSES)


def _draw(n: int, rng: "np.random.Generator") -> Dataset:
    labels = rng.integers(0, len(CLASSES), n)
    images = np.empty((n, SIZE, SIZE, 3), np.uint8)
    for start in range(0, n, _CHUNK):
        images[start : start + _CHUNK] = _paint(labels[start : start + _CHUNK], rng)
    return Dataset(images, labels, CLASSES)


def _paint(labels: Array, rng: "np.random.Generator") -> Array:
    """(N,) -> (N, 32, 32, 3)"""
    n = len(labels)
    inside = _inside(labels, *_coordinates(n, rng))
    background, colour = _two_colours(n, rng)
    noise = standard_normal(rng, (n, SIZE, SIZE, 3), np.float32)
    noise *= _uniform(rng, 4, 20, n)[..., None]
    noise += background
    noise += inside[..., None] * (colour - background)
    return np.asarray(np.clip(noise, 0, 255, out=noise).astype(np.uint8))


def _coordinates(n: int, rng: "np.random.Generator") -> tuple[Array, Array]:
    """u and v (N, 32, 32): the pixels as seen from shapes of random place, size and angle, each wholly in its image."""
    radius, angle = _uniform(rng, 8, 14, n), _uniform(rng, 0, 2 * np.pi, n)
    turned = angle.astype(np.float64) / np.pi
    cos, sin = (np.vectorize(cos_pi)(turned + phase).astype(np.float32) for phase in (0, 1.5))
    room = SIZE / 2 - radius
    place = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    x = (place - room * _uniform(rng, -1, 1, n)) / radius  # (N, 1, 32)
    y = (place - room * _uniform(rng, -1, 1, n)).reshape(n, SIZE, 1) / radius
    return x * cos + y * sin, y * cos - x * sin


def _inside(labels: Array, u: Array, v: Array) -> Array:
    inside = np.empty(u.shape, bool)
    for label, contains in enumerate(_INSIDE.values()):
        rows = np.flatnonzero(labels == label)
        inside[rows] = contains(u[rows], v[rows])
    return inside


def _two_colours(n: int, rng: "np.random.Generator") -> tuple[Array, Array]:
    """(N, 1, 1, 3) each, of the background and of the shape: one darker than the other by 80 to 145 in every channel."""
    dark = _uniform(rng, 0, 110, n, 3)
    bright = dark + _uniform(rng, 80, 145, n, 3)
    inverted = rng.random((n, 1, 1, 1)) < 0.5
    return np.where(inverted, bright, dark), np.where(inverted, dark, bright)


def _uniform(rng: "np.random.Generator", low: float, high: float, n: int, *shape: int) -> Array:
    """(N, 1, 1, *shape) float32"""
    return (low + (high - low) * rng.random((n, 1, 1, *shape))).astype(np.float32)
