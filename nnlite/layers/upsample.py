"""Larger images."""

from typing import Literal

from nnlite.arguments import choice, pair
from nnlite.backend import Array, Pair
from nnlite.backend.window import both
from nnlite.layers.base import Context, Layer, Shape, check_images

Tap = tuple[float, slice, slice]  # a share, the pixels that it is taken of, along one axis, and where it goes


class Upsample2D(Layer):
    """Each pixel becomes fh x fw pixels.     a: (N, H, W, C)   y: (N, fh H, fw W, C)

    nearest:   y[i, j] = a[i // fh, j // fw]
    bilinear:  y[i, j] = a at (i + 1/2) / fh - 1/2 and (j + 1/2) / fw - 1/2, between pixels in proportion to their distance,
               beyond the first and the last as at them: PyTorch's align_corners=False, ONNX's half_pixel

    Along an axis it is a sum of shares, y[there] += share a[here]. Backward, the adjoint: dJ/da[here] += share delta[there].

    factor: fh and fw, a whole number or a pair of them.  mode: "nearest" or "bilinear".  Raises ShapeError for inputs that are
    not images.
    """

    keeps, shares_memory, gives_probabilities, images = None, False, None, True

    def __init__(self, factor: int | Pair, *, mode: Literal["nearest", "bilinear"] = "nearest") -> None:
        self.factor, self.mode = pair("factor", factor), choice("mode", mode, "nearest", "bilinear")

    def build(self, in_shape: Shape) -> Shape:
        check_images(in_shape)
        (height, width, channels), (fh, fw) = in_shape, both(self.factor)
        self.taps = [_taps(size, f, self.mode == "bilinear") for size, f in ((height, fh), (width, fw))]
        return (fh * height, fw * width, channels)

    def forward(self, a: Array, ctx: Context) -> Array:
        y, rows = self._room(ctx.out, (len(a), *self.out_shape), a), self._rows(a)
        for source, target, axis, taps in ((a, rows, 1, self.taps[0]), (rows, y, 2, self.taps[1])):
            _add_shares(source, target, axis, taps, [here == slice(None) for _, here, _ in taps])
        return y

    def backward(self, delta: Array, ctx: Context) -> Array:
        da, rows = self._room(ctx.out, (len(delta), *self.in_shape), delta), self._rows(delta)
        for source, target, axis, taps in ((delta, rows, 2, self.taps[1]), (rows, da, 1, self.taps[0])):
            adjoint = [(share, there, here) for share, here, there in taps]
            _add_shares(source, target, axis, adjoint, [tap is adjoint[0] for tap in adjoint])
        return da

    def temporaries(self) -> int:
        return self.out_shape[0] * self.in_shape[1] * self.in_shape[2]

    def _room(self, out: Array | None, shape: Shape, like: Array) -> Array:
        return self.backend.empty_batch(shape, like.dtype) if out is None else out

    def _rows(self, like: Array) -> Array:
        """(N, fh H, W, C)"""
        return self.backend.scratch_batch("rows", (len(like), self.out_shape[0], *self.in_shape[1:]), like.dtype)


def _taps(size: int, factor: int, bilinear: bool) -> list[Tap]:
    """The shares along an axis of `size` pixels."""
    taps, last = list[Tap](), size - 1
    for phase in range(factor):
        offset = (phase + 0.5) / factor - 0.5 if bilinear else 0.0
        far = abs(offset)
        taps.append((1 - far, slice(None), slice(phase, None, factor)))
        if offset > 0:  # of the next pixel; the last one is its own
            taps.append((far, slice(1, None), slice(phase, last * factor, factor)))
            taps.append((far, slice(last, None), slice(last * factor + phase, last * factor + phase + 1)))
        elif offset < 0:
            taps.append((far, slice(None, last), slice(factor + phase, None, factor)))
            taps.append((far, slice(1), slice(phase, phase + 1)))
    return taps


def _add_shares(source: Array, target: Array, axis: int, taps: list[Tap], is_first: list[bool]) -> None:
    """target = the sum of the shares; is_first: whether those of a tap are the first where they go."""
    before = (slice(None),) * axis
    for (share, here, there), first in zip(taps, is_first, strict=True):
        part, given = target[(*before, there)], source[(*before, here)]
        shares = given if share == 1 else share * given
        if first:
            part[...] = shares
        else:
            part += shares
