"""The pictures of docs/insight.md: `make gallery`. A small CNN on generated shapes, a minute."""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

import nnlite as nn
from nnlite.atomic import replacing

plots = nn.insight.plots


def make_trainer(seed: int = 0) -> nn.Trainer:
    first = nn.Conv2D(16, 5), nn.ReLU(), nn.MaxPool2D(2)
    second = nn.Conv2D(32, 5), nn.ReLU(), nn.GlobalMaxPool2D()
    layers = nn.Normalize(mean=128, std=64), *first, *second, nn.Dense(10)
    model = nn.Sequential(*layers, input_shape=(32, 32, 3), seed=seed)
    return nn.Trainer(model, nn.CrossEntropy(), nn.Adam(3e-3), metrics=[nn.Accuracy()])


def pictures(trainer: nn.Trainer, data: nn.data.Datasets, epochs: int) -> dict[str, Figure]:
    """Each picture by its name."""
    test, classes = data.test, data.classes
    found = nn.insight.find_learning_rate(trainer, data.train, high=0.1, batch_size=64)
    history = trainer.fit(data.train, epochs=epochs, validation=test)
    z, matrix = trainer.predict(test.images), nn.ConfusionMatrix()
    matrix.update(z, test.labels)
    first = slice(16)
    axes = {
        "learning_rates": plots.learning_rates(found),
        "curves": plots.curves(history),
        "confusion": plots.confusion_matrix(matrix.result(), classes=classes),
        "samples": plots.samples(test.images[first], test.labels[first], z[first], classes=classes),
        "misclassified": plots.misclassified(test.images, test.labels, z, classes=classes, most=8),
        "calibration": plots.calibration(z, test.labels),
        "roc": plots.roc(z, test.labels, classes=classes),
        "precision_recall": plots.precision_recall(z, test.labels, classes=classes),
        "filters": plots.filters(trainer.model),
        "activations": plots.activations(trainer.model, test.images[0], 2),
    }
    return {name: ax.figure for name, ax in axes.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=4000, help="number of training images")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/images/gallery"))
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures(make_trainer(), nn.data.shapes(args.limit), args.epochs).items():
        with replacing(args.out / f"{name}.png") as file:
            figure.savefig(file, dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()
