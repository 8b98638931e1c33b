"""Run by mpiexec, and imported by the tests: training from samples in files. Process 0 writes what all found."""

import hashlib
import itertools
import json
import sys
import threading
from pathlib import Path

import numpy as np
from PIL import Image

import nnlite as nn
import nnlite.engine.cut

# Several shards in small batches.
nnlite.engine.cut.BUDGET, nnlite.engine.cut.WORTH_CUTTING = 200_000, 1_000_000
SAMPLES, BATCH, EPOCHS, SHAPE = 101, 32, 2, (12, 12, 3)  # an epoch has 4 batches, the last one of 5 samples
KINDS = "map", "images", "shards"


class Killed(Exception):
    pass


class KillAt(nn.Callback):
    """Stands for a power cut after so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, trainer):
        if trainer.steps == self.steps:
            raise Killed


def write(folder):
    """The same samples as a map, as images and as shards."""
    rng = np.random.default_rng(0)
    x, t = rng.integers(0, 256, (SAMPLES, *SHAPE), np.uint8), np.sort(rng.integers(0, 3, SAMPLES))
    np.save(folder / "x.npy", x)
    np.save(folder / "t.npy", t)
    for i, (first, end) in enumerate(itertools.pairwise([0, 30, 31, 60, 85, SAMPLES])):
        np.savez(folder / f"{i}.npz", x=x[first:end], t=t[first:end])
    for i, (image, label) in enumerate(zip(x, t, strict=True)):
        place = folder / "images" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:03}.png")


def source(kind, folder):
    t = np.load(folder / "t.npy")
    if kind == "memory":
        data = nn.data.Dataset(np.load(folder / "x.npy"), t)
    elif kind == "map":
        data = nn.data.Dataset(np.load(folder / "x.npy", mmap_mode="r"), t)
    elif kind == "images":
        data = nn.data.folder(folder / "images")
    else:
        data = nn.data.npz_shards(folder / "*.npz", window=2)
    return data.augmented(nn.data.RandomFlip())


def watch(data):
    """A function that returns how many samples were read ahead by then, and how often all were hashed."""
    reads, hashes, kind = [], [], type(data.images)

    class Watched(kind):
        def __getitem__(self, rows):
            values = super().__getitem__(rows)
            if threading.current_thread().name == "nnlite-ahead":
                reads.append(len(values))
            return values

        def add_to(self, digest):
            hashes.append(True)
            super().add_to(digest)

    data.images.__class__ = Watched
    return lambda: (sum(reads), len(hashes))


def train(communicator, data, run=None, kill=0, **options):
    """8 steps, with dropout."""
    layers = nn.Normalize(128, 64), nn.Conv2D(8, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Dense(3)
    model = nn.Sequential(*layers, input_shape=SHAPE)
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam(1e-3), [nn.Accuracy()], [KillAt(kill)], communicator)
    if run is not None:
        options |= {"checkpoint": run, "every": 1, "resume": True}
    try:
        trainer.fit(data, EPOCHS, BATCH, seed=3, progress=False, **options)
    except Killed:
        assert kill
    values = hashlib.sha256(model.params.tobytes()).hexdigest()
    return {"values": values, "steps": trainer.steps, "loss": trainer.history.get("loss")}


def main(folder, kill):
    """Without a fault, killed and resumed in the middle of an epoch; and a part of a run that other processes go on with."""
    folder, kill, results = Path(folder), int(kill), {}
    communicator = nn.distributed.mpi(deadline=30.0)
    ordered = nn.distributed.mpi(deterministic=True, deadline=30.0)
    for kind in KINDS:
        data, held_out, again = (source(kind, folder) for _ in range(3))
        read = {"training": watch(data), "validation": watch(held_out), "resuming": watch(again)}
        found = {"whole": train(communicator, data, validation=held_out)}
        run = folder / f"{kind} in {communicator.size}"
        train(communicator, source(kind, folder), run, 3)
        found["resumed"] = train(communicator, again, run)
        found["shared"] = train(ordered, source(kind, folder), folder / f"{kind} shared", kill)
        results[kind] = found | {name: reads() for name, reads in read.items()}
    every = communicator.gather(results)
    if communicator.rank == 0:
        Path(folder, "results.json").write_text(json.dumps(every))


if __name__ == "__main__":
    main(*sys.argv[1:])
