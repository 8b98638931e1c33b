"""Run by mpiexec, and imported by the tests: `fit` in several processes. Process 0 writes what all found."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import nnlite as nn
import nnlite.engine.cut

# Several shards in small batches.
nnlite.engine.cut.BUDGET, nnlite.engine.cut.WORTH_CUTTING = 200_000, 1_000_000
SAMPLES, BATCH = 150, 48  # the last batch of an epoch has 6 samples


def data():
    rng = np.random.default_rng(0)
    return nn.data.Dataset(
        rng.integers(0, 256, (SAMPLES, 12, 12, 3), np.uint8), rng.integers(0, 10, SAMPLES), weights=rng.uniform(0.5, 2, SAMPLES)
    ).augmented(nn.data.RandomFlip(), nn.data.RandomCrop(2))


def trainer_for(communicator, folder, *callbacks):
    model = nn.Sequential(
        *(nn.Normalize(128, 64), nn.Conv2D(8, 3, padding="same"), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.MaxPool2D(2)),
        *(nn.Residual(nn.Conv2D(8, 3, padding="same"), nn.ReLU()), nn.Flatten(), nn.Dense(10)),
        input_shape=(12, 12, 3),
    )
    if communicator is not None:
        model.params += communicator.rank  # training begins with those of process 0
    callbacks = [nn.WeightAverage(0.9), nn.CSVLog(Path(folder, "log.csv")), *callbacks]
    metrics = [nn.Accuracy(), nn.metrics.F1(average="macro")]
    return nn.Trainer(model, nn.CrossEntropy(), nn.Adam(1e-3, clip_norm=1.0), metrics, callbacks, communicator=communicator)


def values_of(model):
    return hashlib.sha256(model.params.tobytes() + model.buffers.tobytes()).hexdigest()


def fit(trainer, folder, epochs, resume, source=None, **options):
    settings = {"checkpoint": folder, "every": 3, "resume": resume} if folder else {}
    validation = data()[:70]
    history = trainer.fit(source or data(), epochs, BATCH, validation=validation, seed=5, **settings, **options)
    return {"history": history, "values": values_of(trainer.model), "steps": trainer.steps}


class Stop(nn.Callback):
    """Stops in process 1. validated: the loss that this process finds by itself, and that of the history."""

    def on_epoch_end(self, trainer, row):
        self.validated = trainer.evaluate(data()[:70])["loss"], row["val_loss"]
        if trainer.communicator.rank == 1:
            trainer.stop()


def bad_value(communicator, folder):
    """Where the message says that a NaN is, in sample 40 of 48."""
    x = np.ones((BATCH, 12, 12, 3), np.float32)
    x[40] = np.nan
    try:
        trainer_for(communicator, folder).fit((x, np.zeros(BATCH, int)), 1, BATCH, shuffle=False, progress=False)
    except nn.NonFiniteError as error:
        return str(error)


def main(folder, mode, epochs, resume):
    communicator = nn.distributed.mpi(deterministic=mode == "ordered", sync_batch_norm=mode == "ordered", deadline=30.0)
    results = {"fit": fit(trainer_for(communicator, folder), folder, int(epochs), resume == "resume")}
    if mode == "summed":
        batches = [(x, t, w) for x, t, w in data().batches(BATCH, shuffle=False)]
        listed = trainer_for(communicator, folder)
        whole = {"shuffle": False, "progress": False}
        results["list"] = fit(listed, None, 2, False, batches, progress=False)
        results["set"] = fit(trainer_for(communicator, folder), None, 2, False, data(), **whole)
        results["steps"] = fit(trainer_for(communicator, folder), None, 2, False, data(), steps_per_epoch=3, progress=False)
        stop = Stop()
        results["stopped"] = fit(trainer_for(communicator, folder, stop), None, 5, False, progress=False)
        results["validated"] = stop.validated
        results["bad"] = bad_value(communicator, folder)
    every = communicator.gather(results)
    if communicator.rank == 0:
        Path(folder, "results.json").write_text(json.dumps(every))


if __name__ == "__main__":
    main(*sys.argv[1:])
