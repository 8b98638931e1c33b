"""The helpers of `team.h`: threads of the crew that wait awake, in C, for blocks of a kernel."""

import atexit
import ctypes
import os
from collections.abc import Callable

import numpy as np

from nnlite.backend.cpu.threads import calls, lend

_ROOM = 64  # bytes, no fewer than those of Team


class Helpers:
    """They leave when there was no work for a while, and when `map_shards` calls the crew."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Nobody is there: at first, and after a fork."""
        self._memory, self._there = np.zeros(_ROOM, np.uint8), list[None]()
        self._address = self._memory.ctypes.data

    def awake(self) -> int:
        """How many wait or compute, or are about to."""
        return len(self._there)

    def called(self, help: Callable[[int, int], None], count: int) -> int:
        """The address of the team, for a kernel, which begins without those that have to wake; 0: there are none.

        help: the kernel of that name.
        """
        if count == 0:
            return 0

        def work() -> None:
            try:
                help(self._address, ctypes.addressof(calls))
            finally:
                self._there.pop()

        while len(self._there) < count:
            self._there.append(None)
            lend(work)
        return self._address

    def dismiss(self) -> None:
        """Make them leave, before the memory that they read is freed."""
        calls.value += 1


helpers = Helpers()
atexit.register(helpers.dismiss)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=helpers.renew)
