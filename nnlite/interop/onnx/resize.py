"""Larger images: which of ONNX's many ways are nnlite's."""

from collections.abc import Callable
from typing import Any

import numpy as np

from nnlite.interop.onnx.axes import Axes, axis
from nnlite.interop.onnx.folding import BATCH
from nnlite.interop.onnx.operation import Operation, Unsupported
from nnlite.interop.onnx.reading import Reading, Value
from nnlite.layers import Upsample2D

LONGEST = 1 << 16  # pixels along an axis whose places are compared
_MOVED = {True: "asymmetric", False: "half_pixel"}  # by whether it is an operator of opset 10 or before
_ROUNDED: dict[str, Callable[[Any], Any]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_PLACES: dict[str, Callable[[Any, int, int], Any]] = {  # of the pixels of an axis, by the factor and its length
    "half_pixel": lambda i, f, n: (i + 0.5) / f - 0.5,
    "pytorch_half_pixel": lambda i, f, n: (i + 0.5) / f - 0.5 if f * n > 1 else 0 * i,
    "half_pixel_symmetric": lambda i, f, n: (i + 0.5) / f - 0.5,
    "tf_half_pixel_for_nn": lambda i, f, n: (i + 0.5) / f,
    "asymmetric": lambda i, f, n: i / f,
    "align_corners": lambda i, f, n: i * (n - 1) / max(1, f * n - 1),
}


def resize(reading: Reading, node: Operation) -> Value:
    """Resize or Upsample by whole factors."""
    value, oldest = reading.data(node), node.version < 11
    shape = value.axes.shape
    factors = _factors(reading, node, shape)
    mode, rounding = (
        node.attribute("mode", "nearest"),
        node.attribute("nearest_mode", "floor" if oldest else "round_prefer_floor"),
    )
    moved = node.attribute("coordinate_transformation_mode", "asymmetric" if oldest else "half_pixel")
    if set(factors) == {1}:
        return value
    if len(factors) not in (2, 3) or factors[0] != 1:
        raise Unsupported("it resizes other axes than those of the pixels")
    for n, f in zip(shape[1:], factors[1:], strict=True):
        if not _is_ours(mode, rounding, moved, n, f):
            raise Unsupported(f"mode={mode} with {moved} takes pixels from elsewhere than nnlite's Upsample2D")
    value, _ = reading.columns(value, value.axes.file[0], ((), *value.axes.file[1:])[-2:])
    pixels = tuple(f * n for f, n in zip(factors[1:], shape[1:], strict=True))
    rows, columns = (1, *factors[1:])[-2:]
    sizes = [axis(n) for n in pixels]
    layer = Upsample2D(rows if rows == columns else (rows, columns), mode="nearest" if mode == "nearest" else "bilinear")
    return reading.add(value, layer, Axes([value.axes.file[0], *sizes], [*((), *sizes)[-2:], value.axes.here[-1]]))


def _is_ours(mode: str, rounding: str, moved: str, n: int, f: int) -> bool:
    """Whether an axis of n pixels becomes f n as Upsample2D does it."""
    if f * n > LONGEST:
        return False
    out = np.arange(f * n)
    places = _PLACES[moved](out, f, n)
    if mode == "nearest":
        return bool((np.clip(_ROUNDED[rounding](places), 0, n - 1) == out // f).all())
    ours = _PLACES["half_pixel"](out, f, n)
    return mode in ("linear", "bilinear") and np.allclose(np.clip(places, 0, n - 1), np.clip(ours, 0, n - 1))


def _factors(reading: Reading, node: Operation, shape: tuple[int, ...]) -> list[int]:
    """By how much each axis of a sample grows."""
    place = 1 if node.version < 11 else 2
    scales = reading.constant(node, place, node.attribute("scales"))
    sizes = reading.constant(node, 3)
    if (scales is None or not np.size(scales)) and sizes is None:
        raise Unsupported("it has neither scales nor sizes")
    whole = (1, *shape)
    axes = [i % len(whole) for i in node.attribute("axes", range(len(whole)))]
    if sizes is not None:
        if node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Unsupported("it keeps the aspect ratio")
        scales = [1 if i == 0 and n in (BATCH, reading.batch) else n / whole[i] for i, n in zip(axes, sizes, strict=True)]
    factors = dict.fromkeys(range(len(whole)), 1.0) | dict(zip(axes, map(float, scales), strict=True))
    if factors[0] != 1 or any(f != int(f) or f < 1 for f in factors.values()):
        raise Unsupported(f"its factors {[factors[i] for i in range(len(whole))]} are not whole")
    return [int(factors[i]) for i in range(1, len(whole))]
