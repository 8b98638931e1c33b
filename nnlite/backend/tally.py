"""Running mean of the losses of an epoch."""

import math
from collections.abc import Mapping
from typing import Any


class Tally:
    """A weighted mean of losses, and the first that is not finite; or, with `skip`, the mean of the finite ones.

    `halted`: on a device, what its optimisers check before they update anything; else None.
    `is_bad`: whether the last number was not finite, if that is known without waiting; `count`: of all numbers.
    """

    halted: Any = None

    def __init__(self, skip: bool = False) -> None:
        self.skip, self.is_bad = skip, False
        self.total = self.weight = 0.0
        self.count = self.first_bad = 0

    def add(self, value: Any, weight: float) -> None:
        """Add a number."""
        self.count += 1
        self.is_bad = not math.isfinite(value)
        if self.is_bad and self.skip:
            return
        self.total += value * weight
        self.weight += weight
        if self.is_bad and not self.first_bad:
            self.first_bad = self.count

    def state(self) -> dict[str, list[float]]:
        """sums: the weighted sum of all numbers, and the sum of the weights."""
        return {"sums": [self.total, self.weight]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.total, self.weight = map(float, state["sums"])

    def read(self) -> tuple[float, int]:
        """The mean (NaN if there is none), and the number, from 1, of the first bad loss, or 0."""
        return self.total / self.weight if self.weight else math.nan, self.first_bad
