"""Run by mpiexec: what `fit` refuses in all processes, if one of them has it. Process 0 writes what each found."""

import json
import sys
from pathlib import Path

import numpy as np

import nnlite as nn


class Change(nn.Callback):
    """Changes a parameter in the first step."""

    def on_step_end(self, trainer):
        trainer.model.params[0] += trainer.steps == 1


def message(communicator, folder, case):
    last = communicator.rank == communicator.size - 1
    nn.set_kernels("numpy" if last and case == "kernels" else "native")
    width, seed = 17 if last and case == "model" else 16, 1 if last and case == "seed" else 0
    model = nn.Sequential(nn.Dense(width), nn.ReLU(), nn.Dense(3), input_shape=(8,), seed=seed)
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
    if case == "shorter validation":
        settings |= {"validation": iter(batches)}
    changes = [Change()] if last and case == "values" else []
    try:
        communicator.device = "cuda" if case == "device" else "cpu"
        trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam(rate), callbacks=changes, communicator=communicator)
        trainer.fit(data, 1, **settings)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


CASES = (
    *("model", "seed", "kernels", "length", "labels", "rate", "order", "validation", "no validation", "no checkpoint"),
    *("shorter", "longer", "shorter validation", "batch", "folder", "device", "values", "nothing"),
)


def main(folder):
    communicator = nn.distributed.mpi(deadline=3.0)
    every = communicator.gather({case: message(communicator, folder, case) for case in CASES})
    if communicator.rank == 0:
        Path(folder, "results.json").write_text(json.dumps(every))


main(*sys.argv[1:])
