"""Pictures cut out of images by NumPy: whole rows of an image are copied much faster than pixels of three bytes."""

from typing import Any

import numpy as np

from nnlite.backend.window import Array


def framed(images: Array, frames: Any, reflect: bool) -> Array:
    """The pictures of `backend/frames.py`: moved, then mirrored, then hidden."""
    images = np.ascontiguousarray(images[frames["image"]])
    n, height, width, channels = images.shape
    pictures, top, left = images.reshape(n, height, width * channels), frames["top"], frames["left"]
    if top.any() or left.any():
        pictures = _moved(images, np.clip(top, -height, height), np.clip(left, -width, width), reflect)
    if len(chosen := np.flatnonzero(frames["mirrored"])):
        reversed_row = np.arange(width * channels).reshape(width, channels)[::-1].ravel()
        pictures[chosen] = np.take(pictures[chosen], reversed_row, axis=2)
    if frames["end_row"].any():
        rows, columns = _between(frames, "row", height), np.repeat(_between(frames, "column", width), channels, axis=1)
        pictures[rows[:, :, None] & columns[:, None, :]] = 0
    return pictures.reshape(images.shape)


def _moved(images: Array, top: Array, left: Array, reflect: bool) -> Array:
    """(N, H, W C): windows of images padded by p and q pixels."""
    n, height, width, channels = images.shape
    p, q = (int(abs(places).max()) for places in (top, left))
    rows, side, length = images.reshape(n, height, width * channels), q * channels, width * channels
    padded = np.zeros((n, height + 2 * p, length + 2 * side), images.dtype)
    padded[:, p : p + height, side : side + length] = rows
    if reflect:
        values = np.pad(np.arange(length).reshape(width, channels), ((q, q), (0, 0)), mode="reflect").ravel()
        padded[:, p : p + height, :side] = np.take(rows, values[:side], axis=2)
        padded[:, p : p + height, side + length :] = np.take(rows, values[side + length :], axis=2)
        padded[:, :p] = padded[:, 2 * p : p : -1]
        padded[:, p + height :] = padded[:, p + height - 2 : height - 2 : -1]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, length), axis=(1, 2))  # (N, top, left, H, W C), a view
    return np.asarray(windows[np.arange(n), p + top, (q + left) * channels])


def _between(frames: Any, axis: str, size: int) -> Array:
    place = np.arange(size)
    return np.asarray((place >= frames[f"first_{axis}"][:, None]) & (place < frames[f"end_{axis}"][:, None]))
