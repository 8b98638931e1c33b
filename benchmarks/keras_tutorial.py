"""The TensorFlow tutorial's CIFAR-10 CNN in Keras itself: the reference accuracy for nnlite.

usage: NNLITE_DATA=FOLDER python benchmarks/keras_tutorial.py --seeds 0 1 2 3 4 --out benchmarks/results/keras_tutorial.json

FOLDER holds `cifar-10-batches-py/`. Needs the `bench` extra. Ten epochs of batch 32, images divided by 255, Adam with
Keras's defaults: the network and the schedule of https://www.tensorflow.org/tutorials/images/cnn.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import nnlite as nn

Arrays = tuple[np.ndarray, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    data = load()
    runs: list[dict[str, Any]] = []
    for seed in args.seeds:
        runs.append(train(seed, args.epochs, *data))
        last = [run["val_accuracy"][-1] for run in runs]
        first = [run["val_accuracy"][0] for run in runs]
        report = {
            "mean_test_accuracy": statistics.mean(last),
            "mean_after_one_epoch": statistics.mean(first),
            "epochs": args.epochs,
            "batch_size": 32,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "versions": versions(),
            "runs": runs,
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps(runs[-1]), flush=True)


def load() -> tuple[Arrays, Arrays]:
    """CIFAR-10 as the tutorial takes it: ((x, t), (xv, tv)), images in [0, 1], channels last."""
    data = nn.data.cifar10(download=False)
    train, test = ((part.images.astype(np.float32) / 255, part.labels) for part in (data.train, data.test))
    return train, test


def train(seed: int, epochs: int, train_set: Arrays, test_set: Arrays) -> dict[str, Any]:
    """One run of the tutorial, as it is printed."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    start = time.perf_counter()
    history = model.fit(*train_set, batch_size=32, epochs=epochs, validation_data=test_set, verbose=0).history
    return {"seed": seed, "seconds": round(time.perf_counter() - start, 1), **history}


def versions() -> dict[str, str]:
    import keras
    import tensorflow

    return {"keras": keras.__version__, "tensorflow": tensorflow.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    main()
