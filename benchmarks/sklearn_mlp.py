"""NNClassifier beside scikit-learn's MLPClassifier: accuracy and time of the same networks on scikit-learn's own data sets.

usage: python benchmarks/sklearn_mlp.py [--seeds 3] [--out FILE]

5-fold cross-validation for each seed, both with their defaults behind a StandardScaler, one after the other in each fold.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnlite.interop.sklearn import NNClassifier

SETS = {"breast cancer": load_breast_cancer, "wine": load_wine, "digits": load_digits}
KINDS: dict[str, Any] = {"nnlite": NNClassifier, "scikit-learn": MLPClassifier}


def fold(kind: Any, seed: int, x: Any, t: Any, train: Any, test: Any) -> tuple[float, float]:
    """(test accuracy, seconds of fitting)"""
    estimator = make_pipeline(StandardScaler(), kind(random_state=seed))
    start = time.perf_counter()
    estimator.fit(x[train], t[train])
    seconds = time.perf_counter() - start
    return estimator.score(x[test], t[test]), seconds


def compare(name: str, seeds: int) -> str:
    """A row of the table."""
    x, t = SETS[name](return_X_y=True)
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for seed in range(seeds):
        for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(x, t):
            for kind, make in KINDS.items():
                found[kind].append(fold(make, seed, x, t, train, test))
    means = {kind: np.mean([accuracy for accuracy, _ in results]) for kind, results in found.items()}
    pairs = zip(found["nnlite"], found["scikit-learn"], strict=True)
    ratio = statistics.median(theirs / ours for (_, ours), (_, theirs) in pairs)
    return f"| {name} | {means['nnlite']:.4f} | {means['scikit-learn']:.4f} | {ratio:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the table to this file")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    lines = [
        "# NNClassifier beside MLPClassifier",
        "",
        f"Mean accuracy of 5 folds and {args.seeds} seeds; speed: median of scikit-learn's time over nnlite's.",
        "",
        "| data | nnlite | scikit-learn | speed |",
        "| :-- | --: | --: | --: |",
    ]
    for name in SETS:
        lines.append(compare(name, args.seeds))
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
