"""How a batch is cut into shards: a function of shapes alone, so that the cut is the same on every machine."""

import math
from collections.abc import Sequence
from itertools import pairwise

from nnlite.layers.base import Layer

# Bytes of a shard: its largest step, or all that a sweep keeps. Measured: smaller shards stay in a closer cache, but threads
# wait for each other between calls; larger ones spill.
BUDGET = 14 << 20
WORTH_CUTTING = 1 << 29  # FLOP of a training step: below that, a second thread gains little
EVEN = 4  # the number of shards, above two, is a multiple of this, so that 2 or 4 threads end together
FLOPS_PER_SUMMED_VALUE = 400  # a gradient is summed at 20 FLOP a value; at 5% of the work that is 20 times more
FLOPS_PER_MOVED_VALUE = 40  # reading or writing a value takes as long as this many FLOP of a product


def cut(own: Sequence[Layer], barrier: Sequence[Layer], n: int, itemsize: int, sweeps: bool, finer: int) -> list[slice]:
    """The shards of a batch of n samples for a run's own layers and the layers of the barrier after it.

    sweeps: whether each goes forward and backward at once, keeping what all layers keep.  finer: how many times smaller than
    the budget they are.
    """
    layers, count = [*own, *barrier], 1
    if n * _work(layers) > WORTH_CUTTING:
        # Each shard reads and writes all weights: its own values should be as many.
        largest = max(_values(layer) for layer in layers)
        most = n * largest // max(1, sum(layer.weights() for layer in layers))
        held = max(largest, sum(_kept(layer) for layer in layers)) if sweeps else largest
        count = min(-(-n * held * itemsize * finer // BUDGET), most)
        count = max(EVEN, round(count / EVEN) * EVEN) if count > 2 else 2
        count = max(1, min(count, n // _least_rows(own)))
    rows, longer = divmod(n, count)  # the longer shards first: their memory is large enough for the others
    starts = [i * rows + min(i, longer) for i in range(count + 1)]
    return [slice(*both) for both in pairwise(starts)]


def _least_rows(layers: Sequence[Layer]) -> int:
    """The samples per shard that keep summing the gradients under 5% of computing them."""
    values = sum(p.size for layer in layers for p in layer.declared.values() if p.trained)
    return max(1, -(-values * FLOPS_PER_SUMMED_VALUE // max(1, _work(layers))))


def _work(layers: Sequence[Layer]) -> int:
    """FLOP of a training step of one sample; values read and written count, too."""
    return 3 * sum(layer.flops() + FLOPS_PER_MOVED_VALUE * _values(layer) for layer in layers)


def _values(layer: Layer) -> int:
    return math.prod(layer.in_shape) + math.prod(layer.out_shape) + layer.temporaries()


def _kept(layer: Layer) -> int:
    # Its output is the next one's input; an elementwise one may work in place.
    return (0 if layer.elementwise else math.prod(layer.in_shape)) + layer.temporaries()
