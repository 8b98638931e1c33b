"""Augmentation of image batches (N, H, W, C). The draw for a sample depends only on (seed, epoch, its place in the data set).

Each kind is called as `augmentation(images, index, epoch, seed)`, index: (N,) places in the data set; it returns new images
of the same shape and dtype, and raises DataError for a batch that is not (N, H, W, C) or has another number of places. In
the batches of a data set, neighbouring kinds of this file are one sweep over the pixels: `Pictures`.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import choice, whole
from nnlite.backend import FRAME, backend_of
from nnlite.errors import DataError

Array = NDArray[Any]
Augmentation = Callable[[Array, Array, int, int], Array]
_MOVE, _HIDE = 1, 2  # steps of a sweep, in their order
_MOST = 1 << 24  # places to draw from


def draws(index: Array, epoch: int, seed: int, kind: int) -> tuple[Array, Array]:
    """Two uint64 (N,), each of 32 random bits: SplitMix64 (Steele, Lea and Flood 2014) of a key and a place."""
    z = (index.astype(np.uint64) ^ _key(seed, epoch, kind)) + 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z ^= z >> 31
    return z >> 32, z & 0xFFFFFFFF


class Pictures:
    """Images to be moved, mirrored and partly hidden, in the order of the calls: by one sweep wherever that order allows.

    images: (M, H, W, C), on the host or on a device   rows: (N,), which of them; None: all
    """

    def __init__(self, images: Array, rows: Array | None = None) -> None:
        self.images, self.rows = images, rows
        self._frames: Any = None
        self._last, self._reflect = 0, False

    @property
    def size(self) -> tuple[int, int]:
        """H and W."""
        if len(self.images.shape) != 4:
            raise DataError(f"augmentation needs images (N, H, W, C), got {self.images.shape}")
        return self.images.shape[1], self.images.shape[2]

    def _frames_for(self, step: int = 0) -> Any:
        """The frames of this sweep, or of the next one if this step cannot follow the last; mirroring, 0, always can."""
        if 0 < step <= self._last:
            Pictures.__init__(self, self.array())
        if self._frames is None:
            rows = np.arange(len(self.images)) if self.rows is None else self.rows
            self._frames = np.zeros(len(rows), FRAME)
            self._frames["image"] = rows
        self._last = max(step, self._last)
        return self._frames

    def move(self, top: Any, left: Any, reflected: int = 0) -> None:
        """The windows that begin at (top, left), (N,) each; what is outside is 0, or the image, reflected over some pixels."""
        smallest = min(self.size)
        if 0 < reflected >= smallest:
            raise DataError(f"images {self.images.shape[1:]} are too small to be reflected over {reflected} pixels")
        frames = self._frames_for(_MOVE)
        self._reflect = reflected > 0
        frames["top"], frames["left"] = top, np.where(frames["mirrored"], -left, left)

    def mirror(self, chosen: Any) -> None:
        """Left and right, where `chosen` (N,) is 1."""
        (_, width), frames = self.size, self._frames_for()
        first, end = frames["first_column"], frames["end_column"]
        frames["mirrored"] ^= chosen
        first[...], end[...] = np.where(chosen, width - end, first), np.where(chosen, width - first, end)

    def hide(self, row: Array, column: Array, size: int) -> None:
        """A square around (row, column), (N,) each: it becomes 0."""
        frames = self._frames_for(_HIDE)
        for axis, place, length in zip(("row", "column"), (row, column), self.size, strict=True):
            width = min(size, 2 * length)  # as good as more
            first = place - width // 2
            frames[f"first_{axis}"], frames[f"end_{axis}"] = np.maximum(first, 0), np.minimum(first + width, length)

    def array(self) -> Array:
        """The pictures (N, H, W, C); the images themselves if nothing was called."""
        backend, pictures = backend_of(self.images), self.images
        if self._frames is not None:
            pictures = backend.framed(pictures, self._frames, self._reflect)
        elif self.rows is not None:
            pictures = pictures[backend.asarray(self.rows)]
        return pictures


class _Kind:
    """An augmentation by the steps of `Pictures`."""

    def __call__(self, images: Array, index: Array, epoch: int, seed: int) -> Array:
        """New images (N, H, W, C)."""
        if len(index) != len(images):
            raise DataError(f"{len(images)} images have as many places in the data set, not {len(index)}")
        pictures = Pictures(images)
        self.apply(pictures, index, epoch, seed)
        return pictures.array()

    def apply(self, pictures: Pictures, index: Array, epoch: int, seed: int) -> None:
        raise NotImplementedError


def in_turn(steps: Iterable[tuple[Augmentation, int]], pictures: Pictures, index: Array, epoch: int) -> Array:
    """The pictures, augmented by each of (augmentation, seed)."""
    for augmentation, seed in steps:
        if isinstance(augmentation, _Kind) and type(augmentation).__call__ is _Kind.__call__:
            augmentation.apply(pictures, index, epoch, seed)
        else:
            pictures = Pictures(augmentation(pictures.array(), index, epoch, seed))
    return pictures.array()


class RandomFlip(_Kind):
    """Mirror left and right, with probability 1/2."""

    def apply(self, pictures: Pictures, index: Array, epoch: int, seed: int) -> None:
        pictures.mirror(_below(2, draws(index, epoch, seed, kind=1)[0]))


class AlternatingFlip(_Kind):
    """Mirror left and right: half of the images in the first epoch, drawn at random, the other half in the next, and so on.

    Two epochs thus show every image both ways. Source: Jordan 2024, 94% on CIFAR-10 in 3.29 seconds, section 3.6.
    """

    def apply(self, pictures: Pictures, index: Array, epoch: int, seed: int) -> None:
        pictures.mirror(_below(2, draws(index, 0, seed, kind=4)[0]) ^ (epoch & 1))


class RandomCrop(_Kind):
    """Pad by `padding` pixels on each side, then cut the old size out at a random place.

    mode: what the padding holds: "zeros", or "reflect", the image mirrored at its border pixels.
    Raises ValueError for another mode and a padding below 1, DataError for images too small to be reflected that far.
    """

    def __init__(self, padding: int = 4, *, mode: Literal["zeros", "reflect"] = "zeros") -> None:
        self.padding, self.mode = whole("padding", padding, 1), choice("mode", mode, "zeros", "reflect")

    def apply(self, pictures: Pictures, index: Array, epoch: int, seed: int) -> None:
        padding = int(self.padding)
        top, left = (_below(2 * padding + 1, bits) - padding for bits in draws(index, epoch, seed, kind=2))
        pictures.move(top, left, padding if self.mode == "reflect" else 0)


class Cutout(_Kind):
    """Set a square of `size` pixels to zero, its centre anywhere in the image.  Source: DeVries and Taylor 2017, section 3."""

    def __init__(self, size: int = 8) -> None:
        self.size = whole("size", size, 1)

    def apply(self, pictures: Pictures, index: Array, epoch: int, seed: int) -> None:
        row, column = draws(index, epoch, seed, kind=3)
        height, width = pictures.size
        pictures.hide(_below(height, row), _below(width, column), int(self.size))


def mirror(images: Array, chosen: Any = slice(None)) -> Array:
    """New images (N, H, W, C), the chosen ones mirrored left and right (default: all)."""
    pictures, is_chosen = Pictures(images), np.zeros(len(images), np.int64)
    is_chosen[chosen] = 1
    pictures.mirror(is_chosen)
    return pictures.array()


def views(shift: int = 0) -> list[Callable[[Array], Array]]:
    """For `Trainer.predict(x, augment=nn.data.views())`: the images as they are and mirrored left and right.

    shift: with both, also moved by `shift` pixels up and left, and down and right, reflected at the border (six views).
    Raises DataError for images too small to be reflected that far.
    """
    shift = int(whole("shift", shift))
    places = [0] if not shift else [0, -shift, shift]
    return [_View(place, mirrored) for place in places for mirrored in (False, True)]


class _View:
    """Images moved along the diagonal, and mirrored."""

    def __init__(self, shift: int, mirrored: bool) -> None:
        self.shift, self.mirrored = shift, mirrored

    def __call__(self, images: Array) -> Array:
        pictures = Pictures(images)
        if self.shift:
            pictures.move(self.shift, self.shift, abs(self.shift))
        if self.mirrored:
            pictures.mirror(1)
        return pictures.array()


@lru_cache(maxsize=64)
def _key(seed: int, epoch: int, kind: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, kind]).generate_state(1, np.uint64)[0])


def _below(n: int, bits: Array) -> NDArray[np.int64]:
    """Uniform integers 0 ... n - 1 from 32 random bits, n much smaller than 2^32. Raises DataError for more."""
    if n > _MOST:
        raise DataError(f"{n} places are too many to draw from: {_MOST} at most")
    return (bits * n >> 32).astype(np.int64)
