"""The tutorial CNN on CIFAR-10 over several seeds, against Keras's own runs (benchmarks/keras_tutorial.py).

usage: NNLITE_DATA=FOLDER python benchmarks/tutorial_accuracy.py [--seeds 0 1 2 3 4] [--out FILE]

Each run is examples/cifar10.py as a user starts it: 10 epochs of batch 32, the last weights, nothing selected.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS / "tutorial_accuracy.json")
    args = parser.parse_args()
    runs = []
    for seed in args.seeds:
        runs.append(train(seed, args.epochs))
        print(json.dumps(runs[-1]), flush=True)
    mean = statistics.mean(run["test_accuracy"] for run in runs)
    report = {
        "mean_test_accuracy": mean,
        "standard_deviation": statistics.stdev(run["test_accuracy"] for run in runs) if len(runs) > 1 else 0.0,
        "mean_after_one_epoch": statistics.mean(run["val_accuracy"][0] for run in runs),
        "runs": runs,
    }
    keras = RESULTS / "keras_tutorial.json"
    if keras.exists():
        report["keras_mean_test_accuracy"] = json.loads(keras.read_text())["mean_test_accuracy"]
        print(f"nnlite {mean:.4f}, Keras {report['keras_mean_test_accuracy']:.4f}")
    args.out.write_text(json.dumps(report, indent=1) + "\n")


def train(seed: int, epochs: int) -> dict:
    """One run of the example in a separate process."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(ROOT / "examples" / "cifar10.py"), "--data", "cifar10", "--out", out]
        subprocess.run([*command, "--seed", str(seed), "--epochs", str(epochs)], check=True, stdout=subprocess.DEVNULL)
        metrics = json.loads((Path(out) / "metrics.json").read_text())
        with (Path(out) / "history.csv").open() as file:
            curve = [round(float(row["val_accuracy"]), 4) for row in csv.DictReader(file)]
    return {**metrics, "val_accuracy": curve}


if __name__ == "__main__":
    main()
