"""The best of twelve networks for handwritten digits, searched by worker processes of one thread each.

python examples/search.py                          # needs scikit-learn: pip install ".[sklearn]"
python examples/search.py --jobs 4 --limit 400     # so many processes, on a few samples
python examples/search.py --backend dask           # on Dask's workers: pip install "dask[distributed]"
python examples/search.py --compare --out FILE     # how long it takes, and that the scores are the same bits

The data, 1,797 images of 8 x 8 pixels, come with scikit-learn.
"""

import argparse
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

import nnlite as nn
from nnlite.interop.sklearn import NNClassifier

GRID = {"hidden_layer_sizes": [(64,), (128,), (64, 64)], "learning_rate": [1e-3, 3e-3], "weight_decay": [1e-4, 1e-2]}
ROUNDS = 3


def search(x: np.ndarray, t: np.ndarray, jobs: int, backend: str, epochs: int) -> GridSearchCV:
    network = NNClassifier(batch_size=32, max_iter=epochs, random_state=0)
    with joblib.parallel_config(backend, n_jobs=jobs):
        return GridSearchCV(network, GRID, cv=3, refit=False).fit(x, t)


def compare(x: np.ndarray, t: np.ndarray, jobs: int, backend: str, epochs: int) -> str:
    """Searches in one process and in many, in turn; the first of many starts them and is not counted."""
    search(x, t, jobs, backend, 1)
    seconds: dict[int, list[float]] = {1: [], jobs: []}
    scores = set()
    for _ in range(ROUNDS):
        for count, times in seconds.items():
            begun = time.perf_counter()
            found = search(x, t, count, backend if count > 1 else "sequential", epochs)
            times.append(time.perf_counter() - begun)
            scores.add(found.cv_results_["mean_test_score"].tobytes())
    one, many = (statistics.median(times) for times in seconds.values())
    lines = [
        "# A search in many processes",
        "",
        f"36 networks, {epochs} epochs each; medians of {ROUNDS} rounds, in turn; {backend}, joblib {joblib.__version__}.",
        "",
        "| | seconds | speed-up |",
        "|---|---|---|",
        f"| 1 process, {nn.get_num_threads()} threads | {one:.1f} | 1 |",
        f"| {jobs} processes | {many:.1f} | {one / many:.2f} |",
        "",
        "The scores of all rounds are the same bits." if len(scores) == 1 else "The scores differ.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="use only this many samples")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--backend", choices=("loky", "dask"), default="loky")
    parser.add_argument("--compare", action="store_true", help="compare its time with that of one process")
    parser.add_argument("--out", type=Path, help="a file for the comparison")
    args = parser.parse_args(arguments)

    digits = load_digits()
    x, t = digits.data[: args.limit].astype("float32") / 16, digits.target[: args.limit]
    nn.get_num_threads()  # is decided now: Dask, when it starts workers, sets OMP_NUM_THREADS=1 in this process, too
    with ExitStack() as stack:
        if args.backend == "dask":
            from dask.distributed import Client

            stack.enter_context(Client(n_workers=args.jobs, threads_per_worker=1, dashboard_address=None))
        if args.compare:
            text = compare(x, t, args.jobs, args.backend, args.epochs)
            print(text)
            if args.out:
                args.out.write_text(text)
            return {}
        found = search(x, t, args.jobs, args.backend, args.epochs)
    for place in np.argsort(found.cv_results_["rank_test_score"])[:3]:
        print(f"{found.cv_results_['mean_test_score'][place]:.4f}  {found.cv_results_['params'][place]}")
    return {"accuracy": float(found.best_score_)}


if __name__ == "__main__":
    main()
