"""Randomness that must stay secret: which samples are in a batch, and the noise; both follow from one key."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from nnlite.backend import Backend
from nnlite.backend.exact import standard_normal
from nnlite.backend.random import random_bits
from nnlite.data.dataset import Array, Batch, Dataset
from nnlite.privacy.ledger import Ledger


class PoissonBatches:
    """A data set each of whose batches has every sample with probability q = batch_size / N, independently.

    So batches differ in length, and may be empty. An epoch has N // batch_size of them.
    ledger: has the key of the randomness, and the number of the step   places: of the samples, in the user's data set.
    """

    def __init__(self, data: Dataset, ledger: Ledger, places: Any) -> None:
        self.data, self.ledger, self.places = data, ledger, places

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)  # labels, augmentations, digest, ...

    def __len__(self) -> int:
        return len(self.data)

    def on(self, backend: Backend) -> "PoissonBatches":
        """The same samples in the memory of a device."""
        return PoissonBatches(self.data.on(backend), self.ledger, self.places)

    def batches(self, batch_size: int, start: int = 0, **order: Any) -> Iterator[Batch]:
        """The batches (x, t) of an epoch, from number `start` on, which is that of the present step."""
        first = self.ledger.steps
        for step in range(first, first + len(self) // batch_size - start):
            yield self.data.batch(self._drawn(step, batch_size), epoch=step)

    def rows(self, batch: int, batch_size: int, **order: Any) -> Array:
        """The places in the user's data set of the samples of the present batch."""
        drawn = self._drawn(self.ledger.steps, batch_size)
        places: Array = drawn if self.places is None else self.places[drawn]
        return places

    def _drawn(self, step: int, batch_size: int) -> Array:
        n = len(self)
        bits: Any = random_bits(2 * self.ledger.key, (step, 0), 0, 1, 2 * n).view(np.uint64)[0]
        return np.flatnonzero((bits >> np.uint64(11)) * 2.0**-53 < batch_size / n)


def noise(key: int, step: int, n: int) -> Array:
    """n standard normal values of a step: the same bits wherever they are drawn."""
    generator = np.random.Generator(np.random.Philox(key=2 * key + 1, counter=step << 128))
    values: Array = standard_normal(generator, (n,))
    return values
