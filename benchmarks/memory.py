"""Peak memory of the tutorial CNN's `loss_and_grad` at two batch sizes, without inputs and imports.

usage: python benchmarks/memory.py [--batches 256 4096]     (each batch size in a process of its own)
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path


def peak(batch: int) -> float:
    """MiB that five steps take beyond imports, model and inputs."""
    import numpy as np

    import nnlite as nn

    model, rng = nn.zoo.tutorial_cnn(), np.random.default_rng(0)
    x, t = rng.integers(0, 256, (batch, 32, 32, 3), np.uint8), rng.integers(0, 10, batch)
    model.loss_and_grad(x[:1], t[:1], nn.CrossEntropy())  # loads threads and libraries
    before = rss()
    for _ in range(5):
        model.loss_and_grad(x, t, nn.CrossEntropy())
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def rss() -> int:
    """Resident memory now, in KiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 4096])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(peak(args.one))
        return
    command = [sys.executable, __file__, "--one"]
    peaks = [float(subprocess.check_output([*command, str(batch)])) for batch in args.batches]
    for batch, mib in zip(args.batches, peaks, strict=True):
        print(f"batch {batch:5d}: {mib:6.1f} MiB beyond imports, model and inputs")
    print(f"ratio {peaks[-1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
