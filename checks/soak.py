"""`make soak`: training for 2,000 steps, with memory and answers monitored.

usage: python checks/soak.py [--steps 2000] [--out FILE]

Prints the slope of the resident memory over the second half of the steps, in bytes a step. A model with everything that keeps
memory trains, is asked from other threads meanwhile, and writes checkpoints.
"""

import argparse
import os
import tempfile
import threading
from pathlib import Path

import numpy as np

import nnlite as nn

FLAT = 512  # bytes a step: more than this is a leak


def resident():
    """Resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def make_model():
    return nn.Sequential(
        nn.Conv2D(16, 3, padding=1), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(2), nn.Dropout(0.2),
        nn.Residual(nn.Conv2D(16, 3, padding=1), nn.BatchNorm(), nn.GELU("tanh")), nn.GlobalAvgPool2D(), nn.Dense(10),
        input_shape=(16, 16, 3),
    )  # fmt: skip


class Watch(nn.Callback):
    """Samples the memory."""

    def __init__(self):
        self.samples = []

    def on_step_end(self, trainer):
        if trainer.steps % 10 == 0:
            self.samples.append((trainer.steps, resident()))

    def slope(self):
        steps, sizes = np.array(self.samples[len(self.samples) // 2 :], float).T
        return float(np.polyfit(steps, sizes, 1)[0])


def run(steps):
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((32 * 40 + 7, 16, 16, 3)).astype("float32"), rng.integers(0, 10, 32 * 40 + 7)
    model, watch = make_model(), Watch()
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam(1e-4), [nn.Accuracy()], [watch, nn.WeightAverage()])
    asked, done = [0], threading.Event()

    def ask():
        while not done.is_set():
            asked[0] += len(model(x[: 1 + asked[0] % 50]))
            done.wait(0.05)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            epochs = -(-steps // 41)
            trainer.fit((x, t), epochs, batch_size=32, validation=(x[:64], t[:64]), progress=False, checkpoint=folder, every=50)
    finally:
        done.set()
        asker.join()
    return {"steps": trainer.steps, "asked meanwhile": asked[0], "resident MB": round(resident() / 1e6, 1),
        "slope, bytes a step": round(watch.slope(), 1)}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = run(args.steps)
    text = "\n".join(["# A long training", "", *(f"- {name}: {value:,}" for name, value in result.items()), ""])
    print(text)
    if args.out:
        args.out.write_text(text)
    if result["slope, bytes a step"] > FLAT:
        raise SystemExit("memory grows")


if __name__ == "__main__":
    main()
