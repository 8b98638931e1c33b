"""Learning-rate schedules: each call gives a plain function of the step (from 0), for `learning_rate=`.

    nn.SGD(learning_rate=nn.schedules.warmup(nn.schedules.cosine(0.1, steps=1000), steps=100))

They are frozen dataclasses, so that they print, compare and pickle. After the last step the final value is kept. Rates must not
be negative; numbers of steps are whole, at least 1. Raises ValueError otherwise. Rates are the same bits on every machine;
a function of your own with `math.cos` or `**` does not promise that.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from nnlite.arguments import number, shortened, whole
from nnlite.backend.exact import cos_pi, power

Schedule = Callable[[int], float]


class _Checked:
    """Numbers of steps are whole, at least 1; rates and factors are not negative."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in ("steps", "every"):
                whole(name, value, 1)
            elif name in ("rate", "factor", "decay", "start", "final"):
                number(name, value, least=0)


@dataclass(frozen=True)
class constant(_Checked):
    """rate"""

    rate: float

    def __call__(self, step: int) -> float:
        return self.rate


@dataclass(frozen=True)
class step(_Checked):
    """rate factor^(step // every)"""

    rate: float
    every: int
    _: KW_ONLY
    factor: float = 0.1

    def __call__(self, step: int) -> float:
        return self.rate * power(self.factor, step // int(self.every))


@dataclass(frozen=True)
class exponential(_Checked):
    """rate decay^(step / every): it falls smoothly by a factor `decay` every `every` steps"""

    rate: float
    decay: float
    _: KW_ONLY
    every: int = 1

    def __call__(self, step: int) -> float:
        return float(self.rate * power(self.decay, step / int(self.every)))


@dataclass(frozen=True)
class _Ramp(_Checked):
    """The base of schedules from `rate` to `final` in `steps` steps."""

    rate: float
    steps: int
    _: KW_ONLY
    final: float = 0.0


class cosine(_Ramp):
    """final + (rate - final) (1 + cos(pi step / steps)) / 2.     Source: Loshchilov and Hutter 2017, equation 5"""

    def __call__(self, step: int) -> float:
        done = min(step / int(self.steps), 1.0)
        return self.final + (self.rate - self.final) * (1 + cos_pi(done)) / 2


class linear(_Ramp):
    """rate + (final - rate) step / steps: by default down to zero"""

    def __call__(self, step: int) -> float:
        return self.rate + (self.final - self.rate) * min(step / int(self.steps), 1.0)


@dataclass(frozen=True)
class warmup(_Checked):
    """From `start` in a straight line to the first value of `schedule` in `steps` steps, then `schedule` from its beginning"""

    schedule: Schedule
    steps: int
    _: KW_ONLY
    start: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.schedule, type) or not callable(self.schedule):
            given = shortened(self.schedule)
            raise ValueError(f"schedule must be a function of the step, such as nn.schedules.constant(0.1), not {given}")
        super().__post_init__()

    def __call__(self, step: int) -> float:
        steps = int(self.steps)
        if step >= steps:
            return self.schedule(step - steps)
        return self.start + (self.schedule(0) - self.start) * step / steps
