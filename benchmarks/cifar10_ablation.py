"""What each ingredient of a fast recipe contributes: the recipe without it, on a validation split of the training images.

usage: python benchmarks/cifar10_ablation.py [--recipe fast90] [--seeds 2] [--variants NAME ...] [--json FILE]

Trains on 45,000 images and measures accuracy on the other 5,000; never looks at the test set. Needs CIFAR-10 (NNLITE_DATA).
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnlite as nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from recipes import RECIPES, Airbench, Recipe, fit, make_trainer

VALIDATION = 5000
Change = Callable[[Recipe], Recipe]


def main() -> None:
    args = parse()
    train, held_out = nn.data.cifar10().train.subset(args.limit).split(args.validation)
    report: dict[str, Any] = {"recipe": args.recipe, "seeds": args.seeds, "results": {}}
    for name in args.variants:
        recipe = VARIANTS[name](RECIPES[args.recipe])
        if args.epochs:
            recipe = recipe._replace(epochs=args.epochs)
        runs = [train_once(recipe, train, held_out, seed) for seed in range(args.seeds)]
        accuracies = [accuracy for accuracy, _ in runs]
        report["results"][name] = {
            "accuracy": round(statistics.mean(accuracies), 4),
            "all": accuracies,
            "seconds": round(statistics.mean(seconds for _, seconds in runs), 1),
        }
        print(name, report["results"][name], flush=True)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="fast90")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit", type=int, help="use only the first LIMIT images")
    parser.add_argument("--validation", type=int, default=VALIDATION)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def train_once(recipe: Recipe, train: nn.data.Dataset, held_out: nn.data.Dataset, seed: int) -> tuple[float, float]:
    start = time.perf_counter()
    trainer = make_trainer(recipe, len(train), seed)
    fit(recipe, trainer, train, seed=seed, progress=False)
    seconds = time.perf_counter() - start
    hits = trainer.predict(held_out.images).argmax(axis=1) == held_out.labels
    return float(hits.mean()), seconds


def with_layers(change: Callable[[nn.Layer], nn.Layer]) -> Change:
    """The recipe with every layer of its network replaced by `change(layer)`."""

    def changed(recipe: Recipe) -> Recipe:
        def model(seed: int) -> nn.Sequential:
            original = recipe.model(seed)
            layers = [change(fresh(layer)) for layer in original.layers]
            return nn.Sequential(*layers, input_shape=original.in_shape, seed=seed)

        return recipe._replace(model=model)

    return changed


def fresh(layer: nn.Layer) -> nn.Layer:
    """A new layer with the same arguments."""
    return type(layer)(**layer.config())


def plain_filters(layer: nn.Layer) -> nn.Layer:
    if isinstance(layer, nn.Conv2D) and layer.init == "dirac_uniform":
        return nn.Conv2D(layer.filters, 3, padding=1, bias=False)
    return layer


def usual_norm(layer: nn.Layer) -> nn.Layer:
    return nn.BatchNorm() if isinstance(layer, nn.BatchNorm) else layer


def gelu(layer: nn.Layer) -> nn.Layer:
    return nn.GELU("tanh") if isinstance(layer, nn.ReLU) else layer


class FiltersBySGD(Airbench):
    """The recipe's optimiser with Nesterov SGD for the filters too."""

    def __call__(self, model: nn.Sequential, recipe: Recipe, steps: int) -> nn.ParameterGroups:
        groups = super().__call__(model, recipe, steps).groups
        schedule = nn.schedules.linear(0.1, steps * recipe.epochs)
        return nn.ParameterGroups({**groups, "*.W": nn.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=5e-4)})


VARIANTS: dict[str, Change] = {
    "as it is": lambda recipe: recipe,
    "first layer not whitened, but trained": lambda recipe: recipe._replace(prepare=lambda model, images: None),
    "filters by SGD instead of Muon": lambda recipe: recipe._replace(optimizer=FiltersBySGD()),
    "filters begin at random": with_layers(plain_filters),
    "batch norm as usual": with_layers(usual_norm),
    "GELU instead of ReLU": with_layers(gelu),
    "no label smoothing": lambda recipe: recipe._replace(loss=nn.CrossEntropy()),
    "no crops": lambda recipe: recipe._replace(augmentations=recipe.augmentations[:1]),
    "no flips": lambda recipe: recipe._replace(augmentations=recipe.augmentations[1:]),
    "flips at random": lambda recipe: recipe._replace(augmentations=(nn.data.RandomFlip(), *recipe.augmentations[1:])),
}

if __name__ == "__main__":
    main()
