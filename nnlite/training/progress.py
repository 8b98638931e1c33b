"""Progress of training: a live bar on a terminal and in a notebook, lines in logs, nothing without a stream."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from nnlite.training.history import is_score

Values = Mapping[str, float]

_REFRESH = 0.2  # least seconds between two updates of the values in a live bar
_SHARE = 20  # slow values are updated so rarely that they take at most 1 / _SHARE of the time
_SMALL = 1e-3  # as in Keras
_FIRST, _LONGEST = 1.0, 600.0  # seconds to the first line within an epoch, and between two of them at most


def live_bar() -> Any:
    """tqdm's bar class on a terminal and in a notebook, which tqdm recognises itself; else None."""
    from tqdm.asyncio import tqdm as plain
    from tqdm.auto import tqdm

    return tqdm if tqdm is not plain or _is_terminal(sys.stderr) else None


def _is_terminal(stream: Any) -> bool:
    with suppress(Exception):  # the stream may be None, closed, or custom
        return bool(stream.isatty())
    return False


def say(text: str) -> None:
    """Print a line if there is a stream. Errors of the stream do not end training."""
    with suppress(Exception):  # the stream may be closed, or unable to flush
        print(text, flush=True)


class Progress:
    """Progress of one epoch: the base shows nothing."""

    def advance(self, samples: int, values: Callable[[], Values]) -> None:
        """Count a step of `samples` samples. values: returns what can be shown of the epoch so far."""

    def close(self) -> None:
        """Called when the epoch is aborted."""

    def end(self, row: Values) -> None:
        """Called at the end of the epoch, with its row in the history."""


class Bar(Progress):
    """A live bar. total: the number of `unit`s, "sample" or "step", in the epoch, None if unknown.

    log: a second display of the epoch.
    """

    def __init__(self, make: Any, title: str, total: int | None, unit: str, done: int, log: Progress) -> None:
        self.log = log
        self.bar, self.unit = make(total=total, initial=done, desc=title, unit=unit, unit_scale=False, leave=True), unit
        self.next = 0.0

    def advance(self, samples: int, values: Callable[[], Values]) -> None:
        self.bar.update(1 if self.unit == "step" else samples)
        if (start := time.monotonic()) > self.next:
            self.bar.set_postfix(_texts(values()), refresh=False)
            now = time.monotonic()
            self.next = now + max(_REFRESH, _SHARE * (now - start))
        self.log.advance(samples, values)

    def close(self) -> None:
        self.bar.close()

    def end(self, row: Values) -> None:
        self.bar.set_postfix(_texts(row))
        self.bar.close()
        self.log.end(row)


class Lines(Progress):
    """A line at the end. If the length is unknown, also after 1, 2, 4, 8, ... seconds, with the samples so far."""

    def __init__(self, title: str, is_endless: bool, samples: int) -> None:
        self.title, self.is_endless, self.earlier, self.samples = title, is_endless, samples, samples
        self.start, self.next = time.monotonic(), _FIRST

    def advance(self, samples: int, values: Callable[[], Values]) -> None:
        self.samples += samples
        if self.is_endless and (seconds := time.monotonic() - self.start) >= self.next:
            self.next = seconds + min(seconds, _LONGEST)
            self._say(f"{self.title}  {self.samples:,} samples", values(), (self.samples - self.earlier) / seconds)

    def end(self, row: Values) -> None:
        self._say(self.title, row, row["samples_per_second"])

    def _say(self, title: str, values: Values, rate: float) -> None:
        say("  ".join([title, *(f"{name} {text}" for name, text in _texts(values).items()), f"{rate:,.0f} samples/s"]))


def show(epoch: int, total: int | None, unit: str, steps: int, samples: int) -> Progress:
    """The display for an epoch of which `steps` steps and `samples` samples are done."""
    make, title = live_bar(), f"epoch {epoch}"
    lines = Lines(title, total is None, samples)
    if make is None:
        return lines
    # As in `python train.py | tee log`: the bar is on the terminal, stdout in a log.
    log = lines if _is_terminal(sys.stderr) and not _is_terminal(sys.stdout) else Progress()
    return Bar(make, title, total, unit, steps if unit == "step" else samples, log)


def _texts(values: Values) -> dict[str, str]:
    """Losses and metrics with four decimals, or in scientific notation where small."""
    shown = {name: v for name, v in values.items() if isinstance(v, float) and is_score(name)}
    return {name: f"{v:.4e}" if 0 < abs(v) < _SMALL else f"{v:.4f}" for name, v in shown.items()}
