"""A section of `gpu.py`: loss and gradients of a training step on the device against float64 on the CPU."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
from gpu_common import Record, attempt, tasks
from peers_parts import tasks as net
from peers_parts.nnlite import translate

import nnlite as nn

BATCH = 32
# Relative errors of the gradient that rounding explains: flipping a ReLU at zero costs far more than the rounding itself.
LARGEST = {"float32": 1e-2, "tf32": 0.3, "float64": 1e-9}


def parity(record: Record, quick: bool) -> None:
    """float64 on the device last: its kernels are compiled for nothing else, and only bugs cause its errors."""
    for precisions in (("float32", "tf32"), ("float64",)):
        for title, task in tasks().items():
            attempt(record, title, compare, record, title, replace(task, batch=BATCH), precisions)


def compare(record: Record, title: str, task: net.Task, precisions: tuple[str, ...]) -> None:
    """A row for each precision."""
    x, t = net.make_batches(task)[0]
    expected = step(make(task, "float64"), x, t)
    for precision in precisions:
        name = f"{title}, {precision}"
        attempt(record, name, check, record, name, task, precision, x, t, expected)


def check(record: Record, name: str, task: net.Task, precision: str, x: Any, t: Any, expected: tuple[float, Any]) -> None:
    model = make(task, "float64" if precision == "float64" else "float32")
    model.to("cuda", precision="tf32" if precision == "tf32" else "float32")
    began = time.perf_counter()
    loss, gradients = step(model, x, t)
    seconds = time.perf_counter() - began
    worst = {key: difference(gradients[key], g) for key, g in expected[1].items()}
    layer = max(worst, key=lambda key: worst[key])
    whole = difference(*(concatenate(g) for g in (gradients, expected[1])))
    values = {"loss": abs(loss - expected[0]) / abs(expected[0]), "gradient": whole, "worst": worst[layer], "worst_at": layer}
    record(name, seconds=seconds, **values)
    if not whole <= LARGEST[precision]:
        record(name, error=f"the gradient differs by {whole:.1e}, most in {layer}")


def make(task: net.Task, dtype: str) -> nn.Sequential:
    """The same initial values for every dtype, to rounding."""
    return nn.Sequential(*map(translate, task.network), input_shape=task.in_shape, dtype=dtype)


def step(model: nn.Sequential, x: Any, t: Any) -> tuple[float, dict[str, Any]]:
    """Loss and gradients, on the host."""
    loss = float(model.loss_and_grad(x, t, nn.CrossEntropy()))
    return loss, {name: model.backend.to_host(g) for name, g in model.named_grads().items()}


def concatenate(gradients: dict[str, Any]) -> Any:
    return np.concatenate([g.ravel() for g in gradients.values()])


def difference(ours: Any, expected: Any) -> float:
    """|ours - expected| / |expected|, over the whole array."""
    return float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))
