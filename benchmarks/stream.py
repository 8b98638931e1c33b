"""`make stream`: train from a sparse file that is larger than the memory, and print the peak of the process's memory.

usage: python benchmarks/stream.py [--gigabytes 20] [--steps 300] [--folder DIRECTORY] [--out FILE]

The file takes no room on the disk: its images are all zero. Each row of the table is a process of its own; its peak counts the
pages of the file that are in it. The last one trains with checkpoints, resumes, which both hash the file, and validates on a
hundredth of the samples.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import nnlite as nn

SHAPE, BATCH = (64, 64, 3), 64
MOST = 500  # MB


def make_file(path: Path, gigabytes: float) -> None:
    samples = int(gigabytes * 1e9 / np.prod(SHAPE))
    np.lib.format.open_memmap(path, "w+", np.uint8, (samples, *SHAPE)).flush()


def measure(path: Path, task: str, steps: int) -> str:
    x = np.load(path, mmap_mode="r")
    t = np.arange(len(x)) % 10
    model = nn.Sequential(
        nn.Normalize(120.0, 60.0), nn.Conv2D(8, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Dense(10), input_shape=SHAPE
    )
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam(1e-4))
    trainer.fit((np.array(x[:BATCH]), t[:BATCH]), batch_size=BATCH, progress=False)  # loads threads and kernels
    before, begun = peak(), time.perf_counter()
    options = {"batch_size": BATCH, "steps_per_epoch": steps, "progress": False}
    if task == "a pass in order":
        trainer.evaluate((x, t), batch_size=1024)
    elif task == "shuffled steps":
        trainer.fit((x, t), **options)
    elif task == "resumed, validated":
        with tempfile.TemporaryDirectory() as run:
            for epochs in (1, 2):
                trainer.fit((x, t), epochs, checkpoint=run, resume=True, validation=0.01, **options)
    return f"| {task} | {time.perf_counter() - begun:.0f} | {before:.0f} | {peak():.0f} |"


def peak() -> float:
    """MB, pages of mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--steps", type=int, default=300, help="steps an epoch")
    parser.add_argument("--folder", type=Path, help="for the file; default: that for temporary files")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print(measure(args.file, args.task, args.steps))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "x.npy"
        make_file(file, args.gigabytes)
        size = f"{args.gigabytes:g} GB; an epoch has {args.steps} steps of {BATCH} images {SHAPE}."
        lines = [
            "# Training from a file",
            "",
            size,
            "",
            "| | seconds | peak before, MB | peak after, MB |",
            "|---|---|---|---|",
        ]
        for task in ("shuffled steps", "a pass in order", "resumed, validated"):
            command = [sys.executable, __file__, "--task", task, "--file", str(file), "--steps", str(args.steps)]
            lines.append(subprocess.check_output(command, text=True).strip())
            print(lines[-1], flush=True)
    text = "\n".join([*lines, ""])
    if args.out:
        args.out.write_text(text)
    peaks = [float(line.split("|")[-2]) for line in lines[6:]]
    if max(peaks) > MOST:
        raise SystemExit(f"memory grows: {max(peaks):.0f} MB")


if __name__ == "__main__":
    main()
