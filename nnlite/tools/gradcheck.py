"""Does backward compute the derivative of forward? Checked on a copy, in float64, by central differences."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import instance, number, shortened, whole
from nnlite.backend import host_array, single_threaded_blas
from nnlite.errors import GradientError
from nnlite.layers.base import Layer
from nnlite.model import Sequential

Array = NDArray[Any]

norm = np.linalg.norm
_STEPS = (1e-5, 1e-6, 1e-7)  # of the direction's largest entry; the smaller ones only near a kink, as they round more
_NUDGES = 8


def gradcheck(layer_or_model: Layer, x: Any, *, seed: int = 0, tolerance: float = 1e-6, pass_id: int = 1) -> None:
    """Compare backward with central differences; raise GradientError, saying where and by how much.

    For each array theta, the input and every parameter, with a random cotangent u of the output and a random direction v:
    <u, J v> by differences against <J' u, v> by backward must agree within tolerance (|u| |J v| + |J' u| |v|). A cotangent
    of ones would be blind for softmax and batch norm, whose outputs have constant sums.

    layer_or_model: not changed; a copy in float64 is checked. x: (N, ...) inputs; ids of an Embedding are not compared. Where a
    kink (ReLU at 0, a tie in max-pool) is between the two points of a difference, x and the copy's parameters are moved a
    little, with a warning.
    Random layers draw the masks of `pass_id` each time; running statistics are held.
    """
    for name, value in (("seed", seed), ("pass_id", pass_id)):
        whole(name, value)
    number("tolerance", tolerance, least=0)
    instance("layer_or_model", layer_or_model, Layer, "a layer or a model")
    x = host_array(x)
    # Not the stream that the user may have drawn x from: u = x is blind for batch norm.
    rng = np.random.default_rng([seed, 0x6AD])
    with single_threaded_blas:
        model = _float64_copy(layer_or_model, x.shape[1:])
        x = x if model.plan.takes_integers else x.astype(np.float64)
        for attempt in range(_NUDGES + 1):
            try:
                _check(model, x, rng, tolerance, pass_id)
                break
            except _Kink as kink:
                if attempt == _NUDGES:
                    raise GradientError(f"{kink}, even after moving x {_NUDGES} times") from None
                if not model.plan.takes_integers:
                    x = x + 1e-2 * (1 + abs(x).max()) * rng.standard_normal(x.shape)
                model.params += model.backend.asarray(1e-2 * rng.standard_normal(model.params.shape))
    if attempt:
        warnings.warn(
            f"gradcheck: x lay on a kink; x and the copy's parameters were moved {attempt} times", UserWarning, stacklevel=2
        )


class _Kink(Exception):
    """The two one-sided differences disagree: forward is not differentiable between the points."""


def _float64_copy(layer: Layer, in_shape: tuple[int, ...]) -> Sequential:
    layer, backend = copy.deepcopy(layer), layer.backend
    if isinstance(layer, Sequential) and layer.input_shape is not None:
        layer.to("cpu")
    parts = layer.layers if isinstance(layer, Sequential) else [layer]
    model = Sequential(*parts, input_shape=in_shape, seed=getattr(layer, "seed", 0), dtype="float64")
    model.unfreeze("*") if len(model.params) else None
    return model.to(backend.device)


def _check(model: Sequential, x: Array, rng: np.random.Generator, tolerance: float, pass_id: int) -> None:
    to_host = model.backend.to_host
    x = model.backend.asarray(x).copy()

    def forward() -> Array:
        held = model.buffers.copy()
        z: Array = to_host(model.forward(x, training=True, pass_id=pass_id))
        model.buffers[...] = held
        return z

    u = rng.standard_normal(forward().shape)
    dx = to_host(model.backward(u)).copy()
    gradients = {name: to_host(g).copy() for name, g in model.named_grads().items()}
    if not model.plan.takes_integers:  # ids have no neighbours
        _compare(model, "dJ/dx", x, dx, u, forward, rng, tolerance)
    for name, parameter in model.named_params().items():
        _compare(model, f"dJ/d({name})", parameter, gradients[name], u, forward, rng, tolerance)


def _compare(
    model: Sequential,
    what: str,
    moving: Array,
    gradient: Array,
    u: Array,
    forward: Callable[[], Array],
    rng: np.random.Generator,
    tolerance: float,
) -> None:
    """moving: the array on the device, of the inputs or of a parameter, which `forward()` reads."""
    theta = model.backend.to_host(moving).copy()

    def f(value: Array) -> Array:
        moving[...] = model.backend.asarray(value)
        z = forward()
        moving[...] = model.backend.asarray(theta)
        return z

    v = rng.standard_normal(theta.shape)
    centre = f(theta)
    for step in _STEPS:
        h = step / max(1.0, abs(v).max(initial=0))
        after, before = f(theta + h * v), f(theta - h * v)
        Jv = (after - before) / (2 * h)
        numeric, analytic = float(np.vdot(u, Jv)), float(np.vdot(gradient, v))
        scale = float(norm(u) * norm(Jv) + norm(gradient) * norm(v)) + 1e-300
        rounding = 16 * np.finfo(np.float64).eps * float(norm(u) * norm(centre)) / h
        error = abs(numeric - analytic)
        if error <= tolerance * scale + rounding:
            return
        # A kink between the points changes the difference by at most half the change of slope.
        if not np.isfinite(error) or error > float(np.vdot(abs(u), abs(after - 2 * centre + before))) / h:
            raise GradientError(
                f"{_where(model, what)}: central differences give <u, J v> = {numeric:.9g}, "
                f"backward gives <J' u, v> = {analytic:.9g}; error {error / scale:.2g}, allowed {tolerance:.2g}"
            )
    raise _Kink(f"{_where(model, what)}: forward has a kink at x")


def _where(model: Sequential, what: str) -> str:
    name = what.removeprefix("dJ/d(").removesuffix(")")
    for slot in model.vectors.trained:
        if slot.name == name:
            return f"{shortened(slot.layer)}, {what}"
    return f"{shortened(model.layers[0])}, {what}" if len(model) == 1 else what
