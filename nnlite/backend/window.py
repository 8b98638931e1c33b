"""The geometry of a sliding window, shared by convolutions and pooling. Arrays are (N, H, W, C)."""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

from nnlite.arguments import shortened
from nnlite.errors import ShapeError

Array = Any  # numpy.ndarray or cupy.ndarray
Pair = tuple[int, int]
Padding = int | Pair | tuple[Pair, Pair] | Literal["same", "valid"]


def both(value: int | Pair) -> Pair:
    """(height, width) from one number for both, or from a pair."""
    height, width = value if isinstance(value, list | tuple) else (value, value)
    return int(height), int(width)


class Window:
    """A kernel that slides over an image: out = (in + padding - dilation (kernel - 1) - 1) // stride + 1.

    padding: ((top, bottom), (left, right)).  beyond: how much of it, at bottom and right, is there only because of `ceil_mode`.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        kernel: Pair,
        stride: Pair,
        dilation: Pair,
        padding: tuple[Pair, Pair],
        beyond: Pair = (0, 0),
    ) -> None:
        self.in_shape, self.kernel, self.stride, self.dilation = in_shape, kernel, stride, dilation
        self.padding, self.beyond = padding, beyond

    @classmethod
    def of(
        cls,
        in_shape: tuple[int, ...],
        kernel: int | Pair,
        stride: int | Pair,
        padding: Padding = 0,
        dilation: int | Pair = 1,
        ceil_mode: bool = False,
    ) -> "Window":
        """Resolve the user's arguments; raises ShapeError if they do not fit images of `in_shape`.

        ceil_mode: whether pixels that are too few for another output give one, if it starts in the image or before it.
        """
        if len(in_shape) != 3:
            raise ShapeError(f"expects images of shape (height, width, channels), got {shortened(in_shape)}")
        k, s, d = both(kernel), both(stride), both(dilation)
        pads = _resolve_padding(in_shape[:2], k, s, d, padding)
        window = cls((in_shape[0], in_shape[1], in_shape[2]), k, s, d, pads)
        window = window.padded_further() if ceil_mode else window
        if min(window.out_size) < 1:
            raise ShapeError(f"the kernel covers {window.span}, more than the padded input {window.padded_size}")
        return window

    def before(self, pool: "Window") -> "Window":
        """This window, of a convolution, without the outputs that the pooling after it ignores."""
        cropped = Window(self.in_shape, self.kernel, self.stride, self.dilation, self.padding)
        cropped.out_size = (pool.out_size[0] * pool.kernel[0], pool.out_size[1] * pool.kernel[1])
        return cropped

    def padded_further(self) -> "Window":
        """This window with as much more padding at bottom and right as one more output needs that starts before them."""
        (top, bottom), (left, right) = self.padding
        down, across = (self._missing(axis) for axis in (0, 1))
        padding = (top, bottom + down), (left, right + across)
        return Window(self.in_shape, self.kernel, self.stride, self.dilation, padding, (down, across))

    def _missing(self, axis: int) -> int:
        start = self.out_size[axis] * self.stride[axis]
        missing = start + self.span[axis] - self.padded_size[axis]
        starts_before = start < self.padding[axis][0] + self.in_shape[axis]
        return missing if starts_before and missing < self.stride[axis] else 0

    @cached_property
    def span(self) -> Pair:
        """Height and width that the dilated kernel covers."""
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        return dh * (kh - 1) + 1, dw * (kw - 1) + 1

    @cached_property
    def padded_size(self) -> Pair:
        """Height and width of the padded image."""
        return self.in_shape[0] + sum(self.padding[0]), self.in_shape[1] + sum(self.padding[1])

    @cached_property
    def out_size(self) -> Pair:
        """Height and width of the output."""
        (h, w), (sh, sw) = self.padded_size, self.stride
        return (h - self.span[0]) // sh + 1, (w - self.span[1]) // sw + 1

    @cached_property
    def taps(self) -> list[tuple[slice, slice, slice]]:
        """For each place in the kernel, row by row: the pixels of the padded image under it."""
        (oh, ow), (sh, sw), (dh, dw) = self.out_size, self.stride, self.dilation
        every = slice(None)
        return [
            (every, slice(i * dh, i * dh + sh * (oh - 1) + 1, sh), slice(j * dw, j * dw + sw * (ow - 1) + 1, sw))
            for i in range(self.kernel[0])
            for j in range(self.kernel[1])
        ]

    def taps_inside(self, axis: int) -> list[tuple[int, slice, slice]]:
        """For each place in the kernel along an axis that meets the image: it, outputs with a pixel there, and these pixels."""
        size, out, stride = self.in_shape[axis], self.out_size[axis], self.stride[axis]
        taps = list[tuple[int, slice, slice]]()
        for tap in range(self.kernel[axis]):
            first = tap * self.dilation[axis] - self.padding[axis][0]
            start, stop = max(0, -(first // stride)), min(out, (size - 1 - first) // stride + 1)
            if start < stop:
                pixels = slice(first + start * stride, first + (stop - 1) * stride + 1, stride)
                taps.append((tap, slice(start, stop), pixels))
        return taps

    def taps_met(self, axis: int, with_padding: bool) -> list[int]:
        """For each output along an axis, how many places in the kernel meet the image, or also the padding without `beyond`."""
        size, (before, after), k, d = self.in_shape[axis], self.padding[axis], self.kernel[axis], self.dilation[axis]
        first, end = (-before, size + after - self.beyond[axis]) if with_padding else (0, size)
        starts = range(-before, self.out_size[axis] * self.stride[axis] - before, self.stride[axis])
        return [max(0, min(k, -((start - end) // d)) - max(0, -((start - first) // d))) for start in starts]

    @cached_property
    def plane_size(self) -> Pair:
        """(height, width) of a plane: the padded image's pixels with one remainder modulo the stride."""
        (ph, pw), (sh, sw) = self.padded_size, self.stride
        return -(-ph // sh), -(-pw // sw)

    @cached_property
    def plane_taps(self) -> list[Any]:
        """For each place in the kernel: the pixels under it, in planes (remainder, remainder, height, width, N, C)."""
        (oh, ow), (sh, sw), (dh, dw) = self.out_size, self.stride, self.dilation
        return [
            (y % sh, x % sw, slice(y // sh, y // sh + oh), slice(x // sw, x // sw + ow))
            for y in range(0, self.kernel[0] * dh, dh)
            for x in range(0, self.kernel[1] * dw, dw)
        ]

    @cached_property
    def plane_pixels(self) -> list[tuple[Any, Any]]:
        """The part of each plane inside the image: (place in the planes, pixels of the image)."""
        rows, columns = (self._plane_pixels(axis) for axis in (0, 1))
        return [((i, j, a, b), (y, x)) for i, a, y in rows for j, b, x in columns]

    def _plane_pixels(self, axis: int) -> list[tuple[int, slice, slice]]:
        size, before, stride = self.in_shape[axis], self.padding[axis][0], self.stride[axis]
        places = list[tuple[int, slice, slice]]()
        for first in range(min(stride, size)):
            start, remainder = divmod(first + before, stride)
            places.append((remainder, slice(start, start + len(range(first, size, stride))), slice(first, None, stride)))
        return places

    @cached_property
    def is_padded(self) -> bool:
        """Whether there is any padding."""
        return self.padded_size != self.in_shape[:2]

    @cached_property
    def tiles_exactly(self) -> bool:
        """Whether every pixel meets the kernel exactly once."""
        (oh, ow), (kh, kw) = self.out_size, self.kernel
        return self.stride == self.kernel and self.dilation == (1, 1) and self.padded_size == (oh * kh, ow * kw)

    @cached_property
    def overlap(self) -> int:
        """The largest number of windows that contain one pixel."""
        axes = zip(self.kernel, self.stride, self.dilation, strict=True)
        return math.prod(-(-k // (s // math.gcd(s, d))) for k, s, d in axes)

    @cached_property
    def is_blockwise(self) -> bool:
        """Whether the windows are adjacent, without padding; the last row or column may be left out."""
        return self.stride == self.kernel and self.dilation == (1, 1) and not self.is_padded

    @cached_property
    def interior(self) -> tuple[slice, slice, slice]:
        """The place of the image in the padded image."""
        (top, _), (left, _) = self.padding
        return slice(None), slice(top, top + self.in_shape[0]), slice(left, left + self.in_shape[1])

    def borders(self) -> Iterator[tuple[slice, slice, slice]]:
        """The padding of the padded image, as slices."""
        (top, bottom), (left, right) = self.padding
        h, w = self.padded_size
        every = slice(None)
        yield every, slice(0, top), every
        yield every, slice(h - bottom, h), every
        yield every, every, slice(0, left)
        yield every, every, slice(w - right, w)


def _resolve_padding(size: tuple[int, ...], kernel: Pair, stride: Pair, dilation: Pair, padding: Padding) -> tuple[Pair, Pair]:
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        axes = zip(size, kernel, stride, dilation, strict=True)
        rows, columns = (_same_padding(*axis) for axis in axes)
        return rows, columns
    of_rows, of_columns = padding if isinstance(padding, list | tuple) else (padding, padding)
    return both(of_rows), both(of_columns)


def _same_padding(size: int, kernel: int, stride: int, dilation: int) -> Pair:
    out = -(-size // stride)
    total = max(0, (out - 1) * stride + dilation * (kernel - 1) + 1 - size)
    return total // 2, total - total // 2
