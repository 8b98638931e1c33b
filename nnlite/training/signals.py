"""Ctrl-C and SIGTERM while training: the step is finished first."""

import signal
import threading
from typing import Any


class HeldSignals:
    """In a `with` block, delay Ctrl-C and SIGTERM until `let_through`; a second one and the end of the block do not wait.

    Ignored signals stay ignored. Does nothing on threads other than the main one, which alone receives signals.
    """

    def __init__(self) -> None:
        self.waiting: int | None = None
        self.usual: dict[int, Any] = {}

    def __enter__(self) -> "HeldSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (int(signal.SIGINT), int(signal.SIGTERM)):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not set by Python
                    self.usual[number] = signal.signal(number, self._hold)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.usual.items():
            signal.signal(number, handler)
        if self.waiting is not None:
            signal.raise_signal(self.waiting)

    def _hold(self, number: int, frame: Any) -> None:
        is_second, self.waiting = self.waiting is not None, number
        if is_second:
            self.let_through()

    def let_through(self) -> None:
        """Deliver the waiting signal. That ends training, unless a custom handler returns."""
        number, self.waiting = self.waiting, None
        if number is not None:
            signal.signal(number, self.usual[number])
            signal.raise_signal(number)
            signal.signal(number, self._hold)
