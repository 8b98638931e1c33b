"""Augmentation of image batches (N, H, W, C). The draw of a sample depends on (seed, epoch, its place in the data set) alone.

Each kind is called as `augmentation(images, index, epoch, seed)`, index: (N,) places in the data set; it returns new images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Augmentation = Callable[[Array, Array, int, int], Array]


_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
_MASK = 0xFFFFFFFFFFFFFFFF


def draws(index: Array, epoch: int, seed: int, stream: int) -> NDArray[np.uint64]:
    """64 random bits for each place in the data set: SplitMix64 (Steele, Lea and Flood 2014) of a key and the place."""
    key = 0
    for part in (seed, epoch, stream):
        key = (key ^ part) * _GOLDEN & _MASK
        key ^= key >> 29
    z = index.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def _below(bits: NDArray[np.uint64], n: int) -> NDArray[np.int64]:
    """Uniform integers 0 ... n - 1, for n below 2^16, from the high bits."""
    return ((bits >> np.uint64(40)) * np.uint64(n) >> np.uint64(24)).astype(np.int64)


class RandomFlip:
    """Mirror left and right, with probability 1/2."""

    def __call__(self, images: Array, index: Array, epoch: int, seed: int) -> Array:
        flipped = _below(draws(index, epoch, seed, stream=1), 2) == 1
        images = images.copy()
        images[flipped] = images[flipped, :, ::-1]
        return images


class RandomCrop:
    """Pad by `padding` pixels on each side, then cut the old size out at a random place.

    mode: what the padding holds: "zeros", or "reflect", the image mirrored at its border pixels.
    """

    def __init__(self, padding: int = 4, mode: Literal["zeros", "reflect"] = "zeros") -> None:
        if padding < 1 or mode not in ("zeros", "reflect"):
            raise ValueError(f'padding must be at least 1 and mode "zeros" or "reflect", got {padding} and {mode!r}')
        self.padding, self.mode = padding, mode

    def __call__(self, images: Array, index: Array, epoch: int, seed: int) -> Array:
        (n, h, w, c), p = images.shape, self.padding
        widths = ((0, 0), (p, p), (p, p), (0, 0))
        padded = np.pad(images, widths) if self.mode == "zeros" else np.pad(images, widths, mode="reflect")
        top = _below(draws(index, epoch, seed, stream=2), 2 * p + 1)
        left = _below(draws(index, epoch, seed, stream=3), 2 * p + 1)
        # Each row of an image is one run of w c values, so the gather moves runs, not pixels.
        runs = np.lib.stride_tricks.sliding_window_view(padded.reshape(n, h + 2 * p, -1), w * c, axis=2)
        rows = top[:, None] + np.arange(h)
        return np.asarray(runs[np.arange(n)[:, None], rows, (left * c)[:, None]]).reshape(images.shape)


class Cutout:
    """Set a square of `size` pixels to zero, its centre anywhere in the image.  Source: DeVries and Taylor 2017, section 3."""

    def __init__(self, size: int = 8) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        self.size = size

    def __call__(self, images: Array, index: Array, epoch: int, seed: int) -> Array:
        rows = self._hidden(images.shape[1], index, epoch, seed, stream=4)
        columns = self._hidden(images.shape[2], index, epoch, seed, stream=5)
        shown = ~(rows[:, :, None] & columns[:, None, :])
        return np.asarray(images * shown[..., None], images.dtype)

    def _hidden(self, length: int, index: Array, epoch: int, seed: int, stream: int) -> Array:
        first = _below(draws(index, epoch, seed, stream), length)[:, None] - self.size // 2
        place = np.arange(length)
        return np.asarray((place >= first) & (place < first + self.size))
