"""Pictures cut out of images: of which one, how far it is moved, whether it is mirrored, and what of it is hidden.

y[i, j] = a[image, top + i, left + j'] with j' = W - 1 - j where it is mirrored, else j; images and pictures have one size.
Outside the image it is 0, or the image reflected at its border pixels; and it is 0 in rows `first_row` to `end_row` of columns
`first_column` to `end_column`, without the ends.
"""

from typing import Any

import numpy as np

from nnlite.backend.window import Array
from nnlite.errors import DataError

_NAMES = "image", "top", "left", "mirrored", "first_row", "end_row", "first_column", "end_column"
FRAME = np.dtype([(name, np.int64) for name in _NAMES])  # one for each picture, on the host; as in `native/augment.c`
_FAR = 1 << 40


def check(images: Array, frames: Any, reflect: bool) -> None:
    """Raise DataError unless a kernel can follow these frames (N,) of images (M, H, W, C)."""
    m, height, width, _ = images.shape
    if frames.dtype != FRAME or frames.ndim != 1:
        raise DataError(f"frames must be a vector of them, not {frames.dtype} {frames.shape}")
    table = frames.view(np.int64).reshape(-1, len(_NAMES))
    far = (height - 1, width - 1) if reflect else (_FAR, _FAR)
    least, most = (0, -far[0], -far[1], 0, 0, 0, 0, 0), (m - 1, *far, 1, height, height, width, width)
    if len(table) and ((table.min(axis=0) < least).any() or (table.max(axis=0) > most).any()):
        raise DataError(f"frames reach too far out of {m} images {images.shape[1:]}")


def gathered(images: Array, frames: Any) -> tuple[Array, Any]:
    """The images of the frames, one for each, and the frames of them."""
    twin = frames.copy()
    twin["image"] = np.arange(len(frames))
    return np.ascontiguousarray(images[frames["image"]]), twin


def places_of(frames: Any, height: int, width: int, reflect: bool) -> tuple[tuple[Array, Array, Array], Array]:
    """The places (image, row, column) of all pixels of the pictures, each to be broadcast, and which are 0: (N, H, W)."""
    columns, i, j = (frames[name][:, None] for name in _NAMES), np.arange(height), np.arange(width)
    image, top, left, mirrored, first_row, end_row, first_column, end_column = columns
    y, x = top + i, left + np.where(mirrored, width - 1 - j, j)
    is_zero = ((i >= first_row) & (i < end_row))[:, :, None] & ((j >= first_column) & (j < end_column))[:, None, :]
    if reflect:
        y, x = (length - 1 - abs(length - 1 - abs(v)) for v, length in ((y, height), (x, width)))
    else:
        is_zero |= ~(((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :])
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    return (image[:, :, None], y[:, :, None], x[:, None, :]), is_zero
