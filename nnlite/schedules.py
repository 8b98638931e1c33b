"""Learning-rate schedules: each call gives a plain function of the step (from 0), for `learning_rate=`.

    nn.SGD(learning_rate=nn.schedules.warmup(nn.schedules.cosine(0.1, steps=1000), steps=100))

They are named tuples, so that they print, compare and pickle. After their last step the final value stays.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

Schedule = Callable[[int], float]


class constant(NamedTuple):
    """rate"""

    rate: float

    def __call__(self, step: int) -> float:
        return self.rate


class step(NamedTuple):
    """rate factor^(step // every)"""

    rate: float
    every: int
    factor: float = 0.1

    def __call__(self, step: int) -> float:
        return self.rate * self.factor ** (step // self.every)


class exponential(NamedTuple):
    """rate decay^(step / every): it falls by `decay` each `every` steps, smoothly"""

    rate: float
    decay: float
    every: int = 1

    def __call__(self, step: int) -> float:
        return float(self.rate * self.decay ** (step / self.every))


class cosine(NamedTuple):
    """final + (rate - final) (1 + cos(pi step / steps)) / 2.     Source: Loshchilov and Hutter 2017, equation 5"""

    rate: float
    steps: int
    final: float = 0.0

    def __call__(self, step: int) -> float:
        done = min(step / self.steps, 1.0)
        return self.final + (self.rate - self.final) * (1 + math.cos(math.pi * done)) / 2


class linear(NamedTuple):
    """rate + (final - rate) step / steps: by default down to zero"""

    rate: float
    steps: int
    final: float = 0.0

    def __call__(self, step: int) -> float:
        return self.rate + (self.final - self.rate) * min(step / self.steps, 1.0)


class warmup(NamedTuple):
    """From `start` in a straight line to the first value of `schedule` in `steps` steps, then `schedule` from its beginning"""

    schedule: Schedule
    steps: int
    start: float = 0.0

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.schedule(step - self.steps)
        return self.start + (self.schedule(0) - self.start) * step / self.steps
