"""The updates of optimisers by the kernels of `optim.c`."""

from typing import Any

from nnlite.backend.native.operations import NativeOperations, address, kernels
from nnlite.backend.native.sums import are_real
from nnlite.backend.window import Array


class Updates(NativeOperations):
    """As in `optim/`, in one sweep each."""

    sweep_values = 3 << 17  # one sweep gains nothing from a closer cache: as few calls as two threads can share

    def lerp(self, a: Array, b: Array, weight: float) -> None:
        if are_real(a, b) and a.shape == b.shape and a.flags.c_contiguous:
            _sweep("lerp", (a, self.given(b)), weight)
        else:
            super().lerp(a, b, weight)

    def adam(
        self, p: Array, g: Array, m: Array, v: Array, betas: tuple[float, float], eps: float, rate: float, decay: float
    ) -> None:
        _sweep("adam", (p, g, m, v), *betas, eps, rate, decay)

    def rmsprop(self, p: Array, g: Array, v: Array, alpha: float, eps: float, rate: float) -> None:
        _sweep("rmsprop", (p, g, v), 1 - alpha, eps, rate)

    def sgd(self, p: Array, g: Array, v: Array | None, rate: float, momentum: float, nesterov: bool) -> None:
        _sweep("sgd", (p, g, v), rate, momentum, nesterov)


def _sweep(name: str, vectors: tuple[Array | None, ...], *numbers: Any) -> None:
    """Call a kernel that updates vectors of one size in place."""
    given = [vector for vector in vectors if vector is not None]
    if not are_real(*given) or any(v.shape != given[0].shape or not v.flags.c_contiguous for v in given):
        raise ValueError(
            f"{name} takes contiguous vectors of one size and dtype, not {[(v.shape, v.dtype.name) for v in given]}"
        )
    places = [None if vector is None else address(vector) for vector in vectors]
    kernels(given[0].dtype)[name](*places, *numbers, given[0].size)
