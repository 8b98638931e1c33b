"""Augmentation of image batches (N, H, W, C). The draw for a sample depends only on (seed, epoch, its place in the data set).

Each kind is called as `augmentation(images, index, epoch, seed)`, index: (N,) places in the data set; it returns new images
of the same shape and dtype, and raises DataError for a batch that is not (N, H, W, C).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import choice, whole
from nnlite.backend import Backend, backend_of
from nnlite.errors import DataError

Array = NDArray[Any]
Augmentation = Callable[[Array, Array, int, int], Array]


def draws(index: Array, epoch: int, seed: int, kind: int) -> tuple[Array, Array]:
    """Two uint64 (N,), each of 32 random bits: SplitMix64 (Steele, Lea and Flood 2014) of a key and a place."""
    z = (index.astype(np.uint64) ^ _key(seed, epoch, kind)) + 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z ^= z >> 31
    return z >> 32, z & 0xFFFFFFFF


class RandomFlip:
    """Mirror left and right, with probability 1/2."""

    def __call__(self, images: Array, index: Array, epoch: int, seed: int) -> Array:
        """Mirror some of the images (N, H, W, C)."""
        return mirror(images, np.flatnonzero(_below(2, draws(index, epoch, seed, kind=1)[0])))


class AlternatingFlip:
    """Mirror left and right: half of the images in the first epoch, drawn at random, the other half in the next, and so on.

    Two epochs thus show every image both ways. Source: Jordan 2024, 94% on CIFAR-10 in 3.29 seconds, section 3.6.
    """

    def __call__(self, images: Array, index: Array, epoch: int, seed: int) -> Array:
        """Mirror one half of the images (N, H, W, C)."""
        first = _below(2, draws(index, 0, seed, kind=4)[0])
        return mirror(images, np.flatnonzero(first ^ (epoch & 1)))


class RandomCrop:
    """Pad by `padding` pixels on each side, then cut the old size out at a random place.

    mode: what the padding holds: "zeros", or "reflect", the image mirrored at its border pixels.
    Raises ValueError for another mode and a padding below 1.
    """

    def __init__(self, padding: int = 4, *, mode: Literal["zeros", "reflect"] = "zeros") -> None:
        self.padding, self.mode = whole("padding", padding, 1), choice("mode", mode, "zeros", "reflect")

    def __call__(self, images: Array, index: Array, epoch: int, seed: int) -> Array:
        """Shift each of the images (N, H, W, C) by at most `padding` pixels."""
        top, left = (_below(2 * int(self.padding) + 1, bits) for bits in draws(index, epoch, seed, kind=2))
        backend = backend_of(images)
        if backend.has_own_memory:
            return self._gather(backend, images, top, left)
        rows, channels = self._padded(images), images.shape[3]
        window = (images.shape[1], images.shape[2] * channels)
        windows = np.lib.stride_tricks.sliding_window_view(rows, window, axis=(1, 2))  # (N, top, left, H, W C), a view
        return np.asarray(windows[np.arange(len(rows)), top, left * channels]).reshape(images.shape)

    def _gather(self, backend: Backend, images: Array, top: Array, left: Array) -> Array:
        """The same, pixel by pixel, which is fastest on a device."""
        (n, height, width, _), p = images.shape, int(self.padding)
        self._check_size(images)
        y, x = top[:, None] + np.arange(height) - p, left[:, None] + np.arange(width) - p
        inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
        y, x = (n_pixels - 1 - abs(n_pixels - 1 - abs(v)) for v, n_pixels in ((y, height), (x, width)))
        if self.mode == "zeros":
            y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
        places = (np.arange(n)[:, None, None], y[:, :, None], x[:, None, :])
        cut: Array = images[tuple(backend.asarray(place) for place in places)]
        if self.mode == "zeros":
            cut[backend.asarray(~inside)] = 0
        return cut

    def _check_size(self, images: Array) -> None:
        if self.mode == "reflect" and self.padding >= min(images.shape[1:3]):
            raise DataError(f"images {images.shape[1:]} are too small to be reflected over {self.padding} pixels")

    def _padded(self, images: Array) -> Array:
        """(N, H + 2 p, (W + 2 p) C)"""
        rows, p, side = _as_rows(images), int(self.padding), int(self.padding) * images.shape[3]
        n, h, length = rows.shape
        padded = np.zeros((n, h + 2 * p, length + 2 * side), images.dtype)
        padded[:, p:-p, side:-side] = rows
        if self.mode == "reflect":
            self._check_size(images)
            values = np.pad(np.arange(length).reshape(images.shape[2:]), ((p, p), (0, 0)), mode="reflect").ravel()
            padded[:, p:-p, :side] = np.take(rows, values[:side], axis=2)
            padded[:, p:-p, -side:] = np.take(rows, values[-side:], axis=2)
            padded[:, :p] = padded[:, 2 * p : p : -1]
            padded[:, -p:] = padded[:, h + p - 2 : h - 2 : -1]
        return padded


class Cutout:
    """Set a square of `size` pixels to zero, its centre anywhere in the image.  Source: DeVries and Taylor 2017, section 3."""

    def __init__(self, size: int = 8) -> None:
        self.size = whole("size", size, 1)

    def __call__(self, images: Array, index: Array, epoch: int, seed: int) -> Array:
        """Blank a square of each of the images (N, H, W, C)."""
        rows, (height, width, channels) = _as_rows(images), images.shape[1:]
        vertical, horizontal = draws(index, epoch, seed, kind=3)
        hidden_columns = np.repeat(self._hidden(width, horizontal), channels, axis=1)
        blank = rows.copy()
        blank[backend_of(images).asarray(self._hidden(height, vertical)[:, :, None] & hidden_columns[:, None, :])] = 0
        return blank.reshape(images.shape)

    def _hidden(self, length: int, bits: Array) -> NDArray[np.bool_]:
        size, place = int(self.size), np.arange(length)
        first = _below(length, bits)[:, None] - size // 2
        return np.asarray((place >= first) & (place < first + size))


def mirror(images: Array, chosen: Any = slice(None)) -> Array:
    """New images (N, H, W, C), the chosen ones mirrored left and right (default: all)."""
    backend, rows = backend_of(images), _as_rows(images).copy()
    values = np.arange(rows.shape[2]).reshape(images.shape[2:])  # (W, C): the position of each value in its image row
    mirrored = backend.asarray(values[::-1].ravel())
    chosen = chosen if isinstance(chosen, slice) else backend.asarray(chosen)
    rows[chosen] = backend.xp.take(rows[chosen], mirrored, axis=2)
    return rows.reshape(images.shape)


def views(shift: int = 0) -> list[Callable[[Array], Array]]:
    """For `Trainer.predict(x, augment=nn.data.views())`: the images as they are and mirrored left and right.

    shift: with both, also moved by `shift` pixels up and left, and down and right, reflected at the border (six views).
    """
    shift = int(whole("shift", shift))
    places = [0] if not shift else [0, -shift, shift]
    return [_View(place, mirrored) for place in places for mirrored in (False, True)]


class _View:
    """Images moved along the diagonal, and mirrored."""

    def __init__(self, shift: int, mirrored: bool) -> None:
        self.shift, self.mirrored = shift, mirrored

    def __call__(self, images: Array) -> Array:
        xp, size, (_, height, width, _) = backend_of(images).xp, abs(self.shift), images.shape
        if size:
            padded = xp.pad(images, ((0, 0), (size, size), (size, size), (0, 0)), mode="reflect")
            images = padded[:, size + self.shift :, size + self.shift :][:, :height, :width]
        return mirror(xp.ascontiguousarray(images)) if self.mirrored else images


@lru_cache(maxsize=64)
def _key(seed: int, epoch: int, kind: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, kind]).generate_state(1, np.uint64)[0])


def _below(n: int, bits: Array) -> NDArray[np.int64]:
    """Uniform integers 0 ... n - 1 from 32 random bits, n much smaller than 2^32."""
    return (bits * n >> 32).astype(np.int64)


def _as_rows(images: Array) -> Array:
    """(N, H, W, C) -> (N, H, W C): whole rows of an image are copied much faster than pixels of three bytes."""
    if images.ndim != 4:
        raise DataError(f"augmentation needs images (N, H, W, C), got {images.shape}")
    return images.reshape(images.shape[0], images.shape[1], -1)
