"""A section of `gpu.py`: the time of the fast90 recipe on generated shapes of CIFAR-10's size. 90% is for CIFAR-10 only."""

import time
from typing import Any

import numpy as np
from gpu_common import Record, attempt
from recipes import RECIPES, Recipe, fit, make_trainer

import nnlite as nn

IMAGES = 50_000  # as CIFAR-10 has
DRAWN = 5_000  # different ones


def fast90(record: Record, quick: bool) -> None:
    """A row for each precision."""
    train_set, test_set = shapes(DRAWN if quick else IMAGES)
    for precision in ("float32", "tf32"):
        attempt(record, precision, train, record, precision, RECIPES["fast90"], train_set, test_set)


def shapes(images: int) -> tuple[nn.data.Dataset, nn.data.Dataset]:
    """Images for training, the drawn ones repeated, and for the test."""
    drawn = nn.data.shapes(min(DRAWN, images), seed=0)
    return drawn.train[np.arange(images) % len(drawn.train)], drawn.test


def train(record: Record, precision: Any, recipe: Recipe, train_set: nn.data.Dataset, test_set: nn.data.Dataset) -> None:
    """Seconds of each epoch as they come, of all with the whitening, and the accuracy as a sign that it learns."""
    trainer = make_trainer(recipe, len(train_set), 0, "cuda")
    trainer.model.to("cuda", precision=precision)
    trainer.callbacks.append(Epochs(record, precision))
    start = time.perf_counter()
    fit(recipe, trainer, train_set, progress=False)
    seconds = time.perf_counter() - start
    record(precision, seconds=seconds, images=len(train_set), accuracy=trainer.evaluate(test_set)["accuracy"])


class Epochs(nn.Callback):
    """Records the history so far after each epoch."""

    def __init__(self, record: Record, name: str) -> None:
        self.record, self.name = record, name

    def on_epoch_end(self, trainer: nn.Trainer, row: Any) -> None:
        self.record(self.name, epochs=list(trainer.history["seconds"]), loss=row["loss"])
