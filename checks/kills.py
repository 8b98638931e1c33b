"""`make kills`: kills training processes with SIGKILL at random moments, resumes, and compares with an undisturbed run.

usage: python checks/kills.py [--kills 30] [--seed 0] [--out FILE]

Half of the kills wait until a checkpoint is being written. The final weights and the history, except its timing columns,
must equal those of the undisturbed run, bit for bit.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TIMING = ("seconds", "samples_per_second")
IMAGES, BATCH, EPOCHS, EVERY = 700, 32, 6, 2
STEPS = -(-IMAGES // BATCH)  # an epoch


def train(folder):
    """The run that is killed: batch norm, dropout, augmentation, schedules, groups, averaging, validation."""
    import nnlite as nn

    data = nn.data.shapes(n=IMAGES, seed=0)
    model = nn.Sequential(
        nn.Normalize(120.0, 60.0),
        nn.Conv2D(8, 3, padding=1),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.MaxPool2D(4),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Dense(10),
        input_shape=(32, 32, 3),
    )
    optimizer = nn.ParameterGroups({"*.W": nn.Adam(nn.schedules.linear(1e-2, 100)), "*": nn.SGD(0.01, momentum=0.9)})
    callbacks = [nn.WeightAverage(0.9), nn.EarlyStopping(patience=4, restore_best=False)]
    metrics = [nn.Accuracy(), nn.ConfusionMatrix(10)]
    trainer = nn.Trainer(model, nn.CrossEntropy(), optimizer, metrics[:1], callbacks)
    augmented = data.train.augmented(nn.data.RandomFlip(), nn.data.RandomCrop(2))
    history = trainer.fit(
        augmented, EPOCHS, batch_size=BATCH, validation=data.test, checkpoint=folder / "run", every=EVERY, resume=True
    )
    np.savez(folder / "result.npz", params=model.params, buffers=model.buffers)
    (folder / "history.json").write_text(json.dumps({k: v for k, v in history.items() if k not in TIMING}))


def start(folder):
    """The run in a separate process."""
    command = [sys.executable, __file__, "--train", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def finish(folder):
    """The run, undisturbed."""
    process = start(folder)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors)


def run_and_kill(folder, rng, while_writing, longest):
    """One process, killed somewhere; says how it ended and from which step it went on."""
    process = start(folder)
    if while_writing:
        wait_for_a_write(process, folder / "run", rng.randrange(6))
    else:
        wait(process, rng.uniform(0.1, 1.0) * longest)
    ended = process.poll() is not None
    if not ended:
        process.send_signal(signal.SIGKILL)
    output, errors = process.communicate()
    if ended and process.returncode:
        raise SystemExit(errors)
    lines = [line for line in output.splitlines() if line.startswith("going on")]
    return ended, lines[0] if lines else "afresh"


def wait_for_a_write(process, folder, skip):
    """Wait until a temporary file exists, after `skip` of them."""
    seen = set()
    while process.poll() is None:
        new = {path.name for path in folder.glob(".step-*")} - seen if folder.exists() else set()
        if new and len(seen) >= skip:
            return
        seen |= new


def wait(process, seconds):
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)


def results(folder):
    arrays = np.load(folder / "result.npz")
    return arrays["params"].tobytes(), arrays["buffers"].tobytes(), (folder / "history.json").read_text()


def run(kills, seed):
    """Kill `kills` processes, over as many runs as needed; returns the counts."""
    rng, counts = random.Random(seed), {"kills": 0, "while writing": 0, "resumed in mid-epoch": 0, "runs": 0, "same bits": 0}
    with tempfile.TemporaryDirectory() as temporary:
        undisturbed = Path(temporary) / "undisturbed"
        undisturbed.mkdir()
        begin = time.monotonic()
        finish(undisturbed)
        longest, expected = time.monotonic() - begin, results(undisturbed)
        while counts["kills"] < kills:
            folder = Path(temporary) / f"run{counts['runs']}"
            folder.mkdir()
            counts["runs"] += 1
            ended = False
            while not ended:
                if counts["kills"] >= kills:
                    finish(folder)
                    break
                while_writing = rng.random() < 0.5
                ended, begun = run_and_kill(folder, rng, while_writing, longest)
                counts["kills"] += not ended
                counts["while writing"] += not ended and while_writing
                counts["resumed in mid-epoch"] += begun.startswith("going on") and int(begun.split()[4]) % STEPS != 0
            counts["same bits"] += results(folder) == expected
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(args.train)
        return
    counts = run(args.kills, args.seed)
    text = "\n".join(["# Training killed and resumed", "", *(f"- {name}: {count}" for name, count in counts.items()), ""])
    print(text)
    if args.out:
        args.out.write_text(text)
    if counts["same bits"] != counts["runs"]:
        raise SystemExit("a resumed run differs from the undisturbed one")


if __name__ == "__main__":
    main()
