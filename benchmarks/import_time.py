"""Seconds that `import nnlite` takes beyond `import numpy`: medians of fresh processes, run in turn.

usage: python benchmarks/import_time.py [--runs 15]
"""

import argparse
import os
import statistics
import subprocess
import sys

CODE = "import time, numpy; s = time.perf_counter(); import nnlite; print(time.perf_counter() - s)"
NUMPY = "import time; s = time.perf_counter(); import numpy; print(time.perf_counter() - s)"


def seconds(code: str) -> float:
    # Python caches its bytecode, as after an installation by pip.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return float(subprocess.check_output([sys.executable, "-c", code], env=environment))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    pairs = [(seconds(CODE), seconds(NUMPY)) for _ in range(runs + 1)][1:]
    extra, numpy = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"import nnlite: {extra * 1e3:.1f} ms beyond import numpy ({numpy * 1e3:.1f} ms); medians of {runs} runs")


if __name__ == "__main__":
    main()
