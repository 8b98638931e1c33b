"""Random bits that depend on the position, not on the order of drawing."""

from typing import Any

import numpy as np

from nnlite.backend.window import Array

_WORDS_A_COUNT = 8  # one Philox 4x64 counter gives 4 words of 64 bits


def random_bits(key: int, stream: tuple[int, int], start: int, rows: int, words: int) -> Array:
    """Rows `start` to `start + rows` of the table of uint32 (rows, words) that `key` and `stream` name.

    Philox 4x64-10 (Salmon et al. 2011) with counter (row x blocks a row + block, 0, stream[0], stream[1]): each row begins
    at its own counter, so a mask is the same however a batch is cut, and a shard's rows are one call.
    """
    blocks = -(-words // _WORDS_A_COUNT)
    # NumPy increments the counter before it draws, hence the - 1; it takes the counter as one 256-bit integer.
    counter = (stream[1] << 192 | stream[0] << 128 | start * blocks) - 1
    generator = np.random.Philox(key=key, counter=counter % (1 << 256))
    raw: Any = generator.random_raw(rows * blocks * 4)
    return raw.view(np.uint32).reshape(rows, blocks * _WORDS_A_COUNT)[:, :words]
