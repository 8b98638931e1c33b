"""Values of a whole batch, shard after shard."""

import math

from nnlite.backend import Array, Backend
from nnlite.backend.memory import Buffers, in_order
from nnlite.layers.base import Shape


class Batch:
    """An array (N, *shape) stored shard after shard; `flat`: the memory, `images`: each in the backend's order for images."""

    def __init__(self, backend: Backend, flat: Array, shape: Shape, images: bool, cut: list[slice]) -> None:
        self.flat, self.shape, self.images, size = flat, shape, images, math.prod(shape)
        lay_out = backend.lay_out if images else in_order
        self.shards = [
            (rows, lay_out(flat[rows.start * size : rows.stop * size], (rows.stop - rows.start, *shape))) for rows in cut
        ]
        self.by_start = {rows.start: (rows.stop, shard) for rows, shard in self.shards}

    def __getitem__(self, rows: slice) -> Array:
        """The shard of these samples."""
        return self.by_start[rows.start][1]

    def take(self, rows: slice, name: str, room: Buffers) -> Array:
        """These samples: a shard, or, if another run has a different cut, a copy in `room`."""
        stop, shard = self.by_start.get(rows.start, (None, None))
        if stop == rows.stop:
            return shard
        copy = (room.batch if self.images else room.get)(name, (rows.stop - rows.start, *self.shape), self.flat.dtype)
        for place, shard in self.shards:
            start, stop = max(rows.start, place.start), min(rows.stop, place.stop)
            if start < stop:
                copy[start - rows.start : stop - rows.start] = shard[start - place.start : stop - place.start]
        return copy
