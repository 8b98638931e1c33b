"""Train a convolutional network on CIFAR-10, in NumPy.

python examples/cifar10.py                       # the tutorial CNN, 10 epochs, results and a report in out/cifar10
python examples/cifar10.py --model fast90        # 90% in minutes; fast94: 94%; all settings are those of recipes.py
python examples/cifar10.py --limit 2000 --epochs 1 --data shapes    # a quick look, offline
mpiexec -n 2 python examples/cifar10.py --distributed    # in two processes, see docs/distributed.md
python examples/cifar10.py --resume              # resume an interrupted run from the checkpoints in --out
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from recipes import RECIPES, Recipe, fit, make_trainer

import nnlite as nn
from nnlite.atomic import replacing
from nnlite.insight.values import needs_matplotlib

IMAGES_A_CHECKPOINT = 10_000  # some seconds' work
OPTIMIZERS = {
    "adam": lambda rate: nn.Adam(rate or 1e-3),
    "adamw": lambda rate: nn.AdamW(rate or 1e-3),
    "sgd": lambda rate: nn.SGD(rate or 0.05, momentum=0.9, nesterov=True),
    "rmsprop": lambda rate: nn.RMSProp(rate or 1e-3),
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=RECIPES, default="tutorial", help="also decides the other defaults")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float, help="with --optimizer; default: 0.001, 0.05 for sgd")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="instead of the recipe's, with a constant rate")
    parser.add_argument("--seed", type=int, default=0, help="of initial values and order of the data")
    parser.add_argument("--threads", type=int, help="default: the cores that this process may use")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--data", choices=["auto", "cifar10", "shapes"], default="auto")
    parser.add_argument("--data-dir", type=Path, help="default: NNLITE_DATA, else the user's cache folder")
    parser.add_argument("--limit", type=int, help="train and test on the first LIMIT images only")
    parser.add_argument(
        "--resume", action="store_true", help="resume from the last checkpoint in --out; a new run sets it aside"
    )
    parser.add_argument("--distributed", action="store_true", help="train in the processes that mpiexec or srun started")
    parser.add_argument("--deterministic", action="store_true", help="with --distributed: with the bits of one process")
    parser.add_argument("--out", type=Path, default=Path("out/cifar10"))
    args = parser.parse_args(arguments)
    if args.learning_rate and not args.optimizer:
        parser.error("--learning-rate needs --optimizer: a recipe has its own rates")
    return args


def load_data(args: argparse.Namespace) -> nn.data.Datasets:
    """CIFAR-10 if it is found or can be downloaded; else, with --data auto, the generated shapes."""
    if args.data == "shapes":
        return nn.data.shapes(n=args.limit or 20_000, seed=args.seed)
    try:
        return nn.data.cifar10(root=args.data_dir)
    except nn.DownloadError as error:
        if args.data == "cifar10":
            raise
        print(f"{error}\n\n*** TRAINING ON GENERATED SHAPES: these numbers are not CIFAR-10's ***\n", file=sys.stderr)
        return nn.data.shapes(n=args.limit or 20_000, seed=args.seed)


def choose_recipe(args: argparse.Namespace) -> Recipe:
    """The model's recipe, with the changes of the command line."""
    changes: dict[str, Any] = {"epochs": args.epochs, "batch_size": args.batch_size}
    if args.optimizer:
        changes["optimizer"] = lambda model, recipe, steps: OPTIMIZERS[args.optimizer](args.learning_rate)
    return RECIPES[args.model]._replace(**{name: value for name, value in changes.items() if value is not None})


def score(trainer: nn.Trainer, recipe: Recipe, test: nn.data.Dataset) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Logits of the test images, the confusion matrix, and the metrics that are single numbers."""
    logits = trainer.predict(test.images)
    matrix, f1 = nn.ConfusionMatrix(n_classes=10), nn.F1(average="macro")
    for metric in (matrix, f1):
        metric.update(logits, test.labels)
    scores = {"test_accuracy": accuracy(logits, test.labels)}
    if recipe.views:
        scores["test_accuracy_tta"] = accuracy(trainer.predict(test.images, augment=recipe.views), test.labels)
    return logits, matrix.result(), scores | {"macro_f1": f1.result()}


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def draw(
    out: Path,
    history: nn.History,
    matrix: np.ndarray,
    logits: np.ndarray,
    test: nn.data.Dataset,
    classes: tuple[str, ...],
) -> None:
    """The curves, the confusion matrix, and two rows of right and two of wrong predictions."""
    plots, hits = nn.insight.plots, logits.argmax(axis=1) == test.labels
    picks = np.concatenate([np.flatnonzero(hits == right)[:16] for right in (True, False)])
    pictures = ({"curves": plots.curves(history)} if history else {}) | {
        "confusion": plots.confusion_matrix(matrix, classes=classes),
        "samples": plots.samples(test.images[picks], test.labels[picks], logits[picks], classes=classes),
    }
    for name, ax in pictures.items():
        with replacing(out / f"{name}.png") as file:
            ax.figure.savefig(file, dpi=110)


def main(arguments: list[str] | None = None) -> dict[str, object]:
    args = parse(arguments)
    needs_matplotlib()  # before training, not after it
    if args.threads:
        nn.set_num_threads(args.threads)
    data = load_data(args)
    train, test = data.train.subset(args.limit), data.test.subset(args.limit)
    args.out.mkdir(parents=True, exist_ok=True)
    communicator = None
    if args.distributed:
        options = {"deterministic": args.deterministic, "sync_batch_norm": args.deterministic}
        communicator = nn.distributed.mpi(device=args.device, **options)

    recipe = choose_recipe(args)
    start = time.perf_counter()
    trainer = make_trainer(recipe, len(train), args.seed, args.device, communicator)
    model = trainer.model
    is_first = communicator is None or communicator.rank == 0
    if is_first:
        model.summary()
    kept = {"checkpoint": args.out / "checkpoints", "every": max(1, IMAGES_A_CHECKPOINT // recipe.batch_size)}
    history = fit(recipe, trainer, train, validation=test, seed=args.seed, resume=args.resume, **kept)
    seconds = time.perf_counter() - start
    if not is_first:
        return {}

    logits, matrix, scores = score(trainer, recipe, test)
    metrics: dict[str, Any] = {
        "dataset": data.name,
        "model": args.model,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "seed": args.seed,
        "train_images": len(train),
        "test_images": len(test),
        **scores,
        "train_seconds": round(seconds, 2),
        "images_per_second": round(float(np.median(history["samples_per_second"])), 1) if recipe.epochs else 0.0,
    }
    metrics = nn.insight.save_run(args.out, trainer, test, metrics, outputs=logits, batch_size=recipe.batch_size)
    draw(args.out, history, matrix, logits, test, data.classes)
    page = nn.insight.report(args.out)
    print("\n" + nn.metrics.classification_report(matrix, data.classes))
    print(f"test accuracy {scores['test_accuracy']:.4f} on {data.name}; {seconds:.0f} s; look at {page}")
    print(f"weights {metrics['weights']}, trained by {model.kernels} kernels")
    return metrics


if __name__ == "__main__":
    try:
        main()
    except nn.NNLiteError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
