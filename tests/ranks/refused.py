"""Run by mpiexec: what `fit` refuses in all processes, if one of them has it. Process 0 writes what each found."""

import json
import sys
from pathlib import Path

import numpy as np

import nnlite as nn


class Own(nn.ReLU):
    """Cannot be saved."""

    def __init__(self, function):
        super().__init__()
        self.function = function


class Change(nn.Callback):
    """Changes a parameter in the first step."""

    def on_step_end(self, trainer):
        trainer.model.params[0] += trainer.steps == 1


def message(communicator, folder, case):
    last = communicator.rank == communicator.size - 1
    nn.set_kernels("numpy" if last and case == "kernels" else "native")
    width, seed = 17 if last and case in ("model", "own layer") else 16, 1 if last and case == "seed" else 0
    layers = nn.Dense(width), nn.Dropout(0.2 if last and case == "dropout" else 0.1), nn.ReLU(), nn.Dense(3)
    own = [Own(print)] if case == "own layer" else []
    dtype = "float64" if last and case == "dtype" else "float32"
    model = nn.Sequential(*layers, *own, input_shape=(8,), seed=seed, dtype=dtype)
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(64, 8)), rng.integers(0, 3, 64)
    if last and case == "length":
        x, t = x[1:], t[1:]
    if last and case == "labels":
        t[5] = 9
    rate = 1e-3 if last and case == "rate" else 1e-2
    settings = {"seed": int(last and case == "order"), "batch_size": 2 if case == "batch" else 16, "progress": False}
    if case == "folder":
        Path(folder, "file").touch()
        settings["checkpoint"] = Path(folder, "file")
    if case in ("validation", "no validation") and not (last and case == "no validation"):
        settings["validation"] = (x[last:], t[last:])
    if case == "no checkpoint" and not last:
        settings["checkpoint"] = Path(folder, "checkpoints")
    n = 17 if last and case == "longer" else 16
    batches = [(x[:16], t[:16]), (x[:n], t[:n]), (x[:16], t[:16])][: 2 if last and case.startswith("shorter") else 3]
    data = iter(batches) if case in ("shorter", "longer") else (x, t)
    if case == "order of labels":
        data = x, t[::-1] if last else t
    if case == "weights":
        data = x, t, np.full(len(t), 2.0 if last else 1.0)
    if case == "augmentation":
        model = nn.Sequential(nn.Flatten(), nn.Dense(3), input_shape=(2, 2, 2))
        data = nn.data.Dataset(x.reshape(-1, 2, 2, 2), t, augmentations=[nn.data.RandomFlip()] if last else [])
    if case == "shorter validation":
        settings |= {"validation": iter(batches)}
    changes = [Change()] if last and case == "values" else []
    try:
        communicator.device = "cuda" if case == "device" else "cpu"
        communicator.deterministic = last and case == "deterministic"
        communicator.sync_batch_norm = last and case == "sync"
        loss = nn.CrossEntropy(label_smoothing=0.1 if last and case == "loss" else 0.0)
        trainer = nn.Trainer(model, loss, nn.Adam(rate), callbacks=changes, communicator=communicator)
        trainer.fit(data, 1, **settings)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


CASES = (
    *("model", "seed", "kernels", "length", "labels", "rate", "order", "validation", "no validation", "no checkpoint"),
    *("own layer", "dropout", "dtype", "loss", "deterministic", "sync", "order of labels", "weights", "augmentation"),
    *("shorter", "longer", "shorter validation", "batch", "folder", "device", "values", "nothing"),
)


def main(folder):
    communicator = nn.distributed.mpi(deadline=3.0)
    every = communicator.gather({case: message(communicator, folder, case) for case in CASES})
    if communicator.rank == 0:
        Path(folder, "results.json").write_text(json.dumps(every))


main(*sys.argv[1:])
