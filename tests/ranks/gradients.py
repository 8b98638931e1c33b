"""Run by mpiexec: gradients of one process and of several, and steps of training; process 0 writes what all found."""

import functools
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import nnlite as nn
import nnlite.engine.cut
from nnlite.engine.exchange import Together
from nnlite.engine.plan import cut_of

# Several shards in small batches.
nnlite.engine.cut.BUDGET, nnlite.engine.cut.WORTH_CUTTING = 200_000, 1_000_000

SIZES = (  # 800: more than 32 shards, whose gradients are added in stretches
    *((800, "native", "float32"), (97, "native", "float32"), (97, "numpy", "float64")),
    *((3, "native", "float32"), (1, "numpy", "float64")),
)


def mlp(dtype):
    layers = nn.Dense(64), nn.Dropout(0.3), nn.ReLU(), nn.Dense(10)
    return nn.Sequential(*layers, input_shape=(20,), dtype=dtype)


def convolutions(dtype, *norm):
    layers = [nn.Conv2D(8, 3, padding="same"), *norm, nn.ReLU(), nn.Dropout(0.2), nn.MaxPool2D(2)]
    layers += [nn.Residual(nn.Conv2D(8, 3, padding="same"), nn.ReLU()), nn.Flatten(), nn.Dense(10)]
    return nn.Sequential(*layers, input_shape=(12, 12, 3), dtype=dtype)


def normalised(dtype):
    return convolutions(dtype, nn.BatchNorm())


def batch(model, n):
    rng = np.random.default_rng(n)
    return rng.normal(size=(n, *model.in_shape)), rng.integers(0, 10, n), rng.uniform(0, 2, n)


def distance(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@functools.lru_cache
def one_process(make, n, weighted, dtype, kernels):
    """The gradient, loss and outputs of a step of one process."""
    model, z = make(dtype), np.empty((n, 10), dtype)
    x, t, w = batch(model, n)
    loss = model.loss_and_grad(x, t, nn.CrossEntropy(), w if weighted else None, z)
    return model.grads, loss, z


def compare(make, n, weighted, deterministic, dtype, kernels):
    """The same of all processes."""
    grads, one, z = one_process(make, n, weighted, dtype, kernels)
    model, out = make(dtype), np.empty((n, 10), dtype)
    x, t, w = batch(model, n)
    w = w if weighted else None
    communicator = nn.distributed.mpi(deterministic=deterministic, sync_batch_norm=True, deadline=30.0)
    model.engine.exchange = Together(communicator)
    loss = model.loss_and_grad(x, t, nn.CrossEntropy(), w, out)
    again = model.grads.copy()
    mine = model.engine.exchange.rows(model.plan.training, n, model.vectors)
    part = x[mine]  # the others' inputs are not needed
    model.loss_and_grad(part, t, nn.CrossEntropy(), w, pass_id=1)
    return {
        "gradient": distance(model.grads, grads),
        "loss": abs(loss - one) / one,
        "outputs": distance(out, z),
        "repeats": bool((model.grads == again).all()),
        "same bits": bool(loss == one and (again == grads).all() and (out == z).all()),
        "shards": len(cut_of(model.plan.training[-1], n, model.vectors)),
        "samples": mine.stop - mine.start,
    }


def train(make, deterministic, sync, steps, alone=False):
    """Parameters and statistics after some steps, of uneven batches."""
    model, optimizer = make("float32"), nn.Adam(1e-3)
    if not alone:
        communicator = nn.distributed.mpi(deterministic=deterministic, sync_batch_norm=sync, deadline=30.0)
        model.engine.exchange = Together(communicator)
    for step in range(steps):
        x, t, w = batch(model, 1 + (step * 7) % 50)
        model.loss_and_grad(x, t, nn.CrossEntropy(), w)
        optimizer.step(model)
    return np.concatenate([model.params, model.buffers])


def main(folder):
    results, communicator = {}, nn.distributed.mpi(deadline=30.0)
    for make in (mlp, convolutions, normalised):
        for n, kernels, dtype in SIZES:
            nn.set_kernels(kernels)
            for deterministic in (False, True):
                case = compare(make, n, n != 3, deterministic, dtype, kernels)
                results[f"{make.__name__} {n} {'ordered' if deterministic else 'summed'} {kernels}"] = case
    nn.set_kernels("native")
    for deterministic, sync, steps in ((False, False, 100), (False, True, 20), (True, True, 20)):
        values = train(normalised, deterministic, sync, steps)
        again = train(normalised, deterministic, sync, steps) if sync else values
        one = train(normalised, False, False, steps, alone=True) if deterministic else values
        results[f"steps {'ordered' if deterministic else 'summed'} {'sync' if sync else 'local'}"] = {
            "repeats": bool((values == again).all()),
            "finite": bool(np.isfinite(values).all()),
            "same bits": bool((values == one).all()),
            "values": hashlib.sha256(values.tobytes()).hexdigest(),
        }
    every = communicator.gather(results)
    if communicator.rank == 0:
        Path(folder, "results.json").write_text(json.dumps(every))


main(sys.argv[1])
