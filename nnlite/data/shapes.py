"""A generated data set: ten shapes of random colour, place, size, angle and noise, so that everything runs offline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from nnlite.data.dataset import Dataset, Datasets
from nnlite.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


SIZE = 32
_CHUNK = 2048


def _polygon(sides: int) -> Callable[[Array, Array], Array]:
    """A regular polygon whose corners touch the unit circle."""
    half = np.pi / sides
    return lambda u, v: np.hypot(u, v) * np.cos((np.arctan2(v, u) % (2 * half)) - half) < np.cos(half)


def _ring(u: Array, v: Array) -> Array:
    return abs(np.hypot(u, v) - 0.8) < 0.2


# Each tells which points (u, v) belong to the shape, of radius 1 around the origin.
_INSIDE: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: np.hypot(u, v) < 0.9,
    "ring": _ring,
    "triangle": _polygon(3),
    "square": _polygon(4),
    "pentagon": lambda u, v: _polygon(5)(u, v) & ~_polygon(5)(u / 0.65, v / 0.65),
    "star": lambda u, v: np.hypot(u, v) < 0.62 + 0.38 * np.cos(5 * np.arctan2(v, u)),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.26) & (np.maximum(abs(u), abs(v)) < 1),
    "bars": lambda u, v: (abs(v) < 0.9) & (abs(abs(u) - 0.5) < 0.22),
    "crescent": lambda u, v: (np.hypot(u, v) < 1) & (np.hypot(u - 0.5, v) > 0.8),
    "arrow": lambda u, v: ((abs(v) < 0.2) & (abs(u) < 0.9)) | ((u > 0.1) & (abs(v) < 0.9 - u) & (u < 0.9)),
}
CLASSES = tuple(_INSIDE)


def shapes(n: int = 20_000, seed: int = 0) -> Datasets:
    """n training and n // 5 (at least 1) test images (32, 32, 3) uint8 of ten classes; the same for the same n and seed."""
    if n < 1:
        raise DataError(f"n must be at least 1, not {n}")
    rng = np.random.default_rng(seed)
    return Datasets("shapes", _draw(n, rng), _draw(max(1, n // 5), rng), CLASSES)


def _draw(n: int, rng: np.random.Generator) -> Dataset:
    labels = rng.integers(0, len(CLASSES), n)
    images = np.empty((n, SIZE, SIZE, 3), np.uint8)
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part] = _paint(labels[part], rng)
    return Dataset(images, labels)


def _paint(labels: Array, rng: np.random.Generator) -> Array:
    n = len(labels)
    radius = rng.uniform(6, 13, (n, 1, 1))
    centre = rng.uniform(-1, 1, (2, n, 1, 1)) * (SIZE / 2 - radius)
    angle = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    dx, dy = (x - centre[0]) / radius, (y - centre[1]) / radius
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    inside = np.empty((n, SIZE, SIZE), bool)
    for label, contains in enumerate(_INSIDE.values()):
        of_class = labels == label
        inside[of_class] = contains(u[of_class], v[of_class])
    back, front = _two_colours(n, rng)
    image = np.where(inside[..., None], front, back) + rng.normal(0, rng.uniform(4, 20, (n, 1, 1, 1)), (n, SIZE, SIZE, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def _two_colours(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Background and shape, at least 90 apart in one channel."""
    back = rng.uniform(0, 255, (n, 1, 1, 3))
    front = rng.uniform(0, 255, (n, 1, 1, 3))
    channel = rng.integers(0, 3, n)
    rows = np.arange(n)
    apart = rng.uniform(90, 165, n)
    front[rows, 0, 0, channel] = (back[rows, 0, 0, channel] + apart) % 256
    wrapped = abs(front[rows, 0, 0, channel] - back[rows, 0, 0, channel]) < 90
    front[rows[wrapped], 0, 0, channel[wrapped]] = (back[rows[wrapped], 0, 0, channel[wrapped]] + 128) % 256
    return back, front
