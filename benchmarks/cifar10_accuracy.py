"""A recipe of examples/recipes.py over several seeds: test accuracy and time, and the same recipe in PyTorch, in turn.

usage: python benchmarks/cifar10_accuracy.py [--recipe fast90] [--seeds 5] [--torch-seeds 5] [--json FILE]

Each run is a process of its own on all cores; runs of both systems alternate, and nothing else should run meanwhile. Seconds
are those of training, whitening included; reading the data, evaluation and imports are not. Both systems get the same batches,
augmented by nnlite. Needs CIFAR-10 (NNLITE_DATA) and, for the ratio, torch.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]
PINS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # removed, so that every system chooses its own kernels


def main() -> None:
    args = parse()
    if args.worker:
        print(json.dumps(WORKERS[args.worker](args)))
        return
    counts = {"nnlite": args.seeds, "torch": args.torch_seeds if find_spec("torch") else 0}
    runs: list[dict[str, Any]] = []
    for seed in range(max(counts.values())):
        for system in (name for name, count in counts.items() if seed < count):
            runs.append({"system": system, "seed": seed, **run(args, system, seed)})
            print(json.dumps(runs[-1]), flush=True)
            report = {"recipe": args.recipe, "machine": machine(), "results": summarize(runs), "runs": runs}
            if args.json:
                args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(summarize(runs), indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="fast90")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--torch-seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit", type=int, help="train and test on the first LIMIT images")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(args: argparse.Namespace, system: str, seed: int) -> dict[str, Any]:
    """One training in a process of its own."""
    command = [sys.executable, __file__, "--recipe", args.recipe, "--worker", system, "--seed", str(seed)]
    for name in ("epochs", "limit"):
        if getattr(args, name):
            command += [f"--{name}", str(getattr(args, name))]
    environment = {name: value for name, value in os.environ.items() if name not in PINS}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and standard deviations over the seeds of each system; the ratio of seconds where both ran the same seed."""
    summary: dict[str, Any] = {}
    for system in sorted({run["system"] for run in runs}):
        own = [run for run in runs if run["system"] == system]
        summary[system] = {"seeds": len(own), "epochs": own[0]["epochs"], "mflop_per_image": own[0].get("mflop_per_image")}
        for key in ("accuracy", "accuracy_tta", "seconds"):
            values = [run[key] for run in own]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            summary[system][key] = {"mean": round(statistics.mean(values), 4), "sd": round(deviation, 4)}
    seconds = {(run["system"], run["seed"]): run["seconds"] for run in runs}
    ratios = [
        s / seconds["torch", seed] for (system, seed), s in seconds.items() if system == "nnlite" and ("torch", seed) in seconds
    ]
    if ratios:
        summary["time_ratio_to_torch"] = {"median": round(statistics.median(ratios), 3), "all": [round(r, 3) for r in ratios]}
    return summary


def load(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The recipe with the options applied, the training set with its augmentations, the test set."""
    from recipes import RECIPES

    import nnlite as nn

    recipe = RECIPES[args.recipe]
    if args.epochs:
        recipe = recipe._replace(epochs=args.epochs)
    data = nn.data.cifar10()
    return recipe, data.train.subset(args.limit), data.test.subset(args.limit)


def nnlite_worker(args: argparse.Namespace) -> dict[str, Any]:
    from recipes import fit, make_trainer

    recipe, train, test = load(args)
    start = time.perf_counter()
    trainer = make_trainer(recipe, len(train), args.seed)
    fit(recipe, trainer, train, seed=args.seed, progress=False)
    seconds = time.perf_counter() - start
    leaves = (layer for run in trainer.model.plan.training for layer in run.layers)
    plain, averaged = (trainer.predict(test.images, augment=views) for views in ((), recipe.views))
    return {
        "epochs": recipe.epochs,
        "seconds": round(seconds, 1),
        "accuracy": float((plain.argmax(axis=1) == test.labels).mean()),
        "accuracy_tta": float((averaged.argmax(axis=1) == test.labels).mean()),
        "mflop_per_image": round(3 * sum(layer.flops() for layer in leaves) / 1e6, 1),
    }


def torch_worker(args: argparse.Namespace) -> dict[str, Any]:
    from airbench_torch import train_airbench

    recipe, train, test = load(args)
    return train_airbench(recipe, train, test, args.seed)


WORKERS = {"nnlite": nnlite_worker, "torch": torch_worker}


def machine() -> dict[str, Any]:
    """The machine and the versions."""
    from importlib.metadata import version

    import nnlite as nn

    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = {"nnlite": nn.__version__} | {name: version(name) for name in ("numpy", "torch") if find_spec(name)}
    return {"processor": processor, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


if __name__ == "__main__":
    main()
