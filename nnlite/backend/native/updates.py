"""The updates of optimisers by the kernels of `optim.c`."""

from typing import Any

from nnlite.backend.native.operations import NativeOperations, address, kernels
from nnlite.backend.native.sums import are_real
from nnlite.backend.window import Array

_WORTH_THREADS = 1 << 15  # values


class Updates(NativeOperations):
    """As in `optim/`, in one sweep each."""

    sweep_values = 1 << 22  # one sweep gains nothing from a closer cache, and threads share it

    def lerp(self, a: Array, b: Array, weight: float) -> None:
        if are_real(a, b) and a.shape == b.shape and a.flags.c_contiguous:
            _, places = checked("lerp", (a, self.given(b)))
            kernels(a.dtype)["lerp"](*places, weight, a.size)
        else:
            super().lerp(a, b, weight)

    def adam(
        self, p: Array, g: Array, m: Array, v: Array, betas: tuple[float, float], eps: float, rate: float, decay: float
    ) -> None:
        self._update("adam", (p, g, m, v), *betas, eps, rate, decay)

    def rmsprop(self, p: Array, g: Array, v: Array, alpha: float, eps: float, rate: float) -> None:
        self._update("rmsprop", (p, g, v), 1 - alpha, eps, rate)

    def sgd(self, p: Array, g: Array, v: Array | None, rate: float, momentum: float, nesterov: bool) -> None:
        self._update("sgd", (p, g, v), rate, momentum, nesterov)

    def _update(self, name: str, vectors: tuple[Array | None, ...], *numbers: Any) -> None:
        """Call a kernel that updates vectors of one size in place."""
        first, places = checked(name, vectors)
        kernels(first.dtype)[name](*places, *numbers, first.size, self.team(first.dtype, first.size >= _WORTH_THREADS))


def checked(name: str, vectors: tuple[Array | None, ...]) -> tuple[Array, list[int | None]]:
    """The first of the vectors, and the addresses of all."""
    given = [vector for vector in vectors if vector is not None]
    if not are_real(*given) or any(v.shape != given[0].shape or not v.flags.c_contiguous for v in given):
        raise ValueError(
            f"{name} takes contiguous vectors of one size and dtype, not {[(v.shape, v.dtype.name) for v in given]}"
        )
    return given[0], [None if vector is None else address(vector) for vector in vectors]
