"""Handwritten digits: a perceptron and a small CNN as scikit-learn estimators, compared by cross-validation.

python examples/digits.py               # needs scikit-learn: pip install ".[sklearn]"
python examples/digits.py --limit 400   # on a few samples

The data, 1,797 images of 8 x 8 pixels, come with scikit-learn.
"""

import argparse

from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score

import nnlite as nn
from nnlite.interop.sklearn import NNClassifier


def cnn(input_shape: tuple[int, ...], outputs: int, filters: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2D(filters, 3, padding=1),
        nn.ReLU(),
        nn.Conv2D(2 * filters, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Dense(outputs),
    )


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="use only this many samples")
    args = parser.parse_args(arguments)

    digits = load_digits()
    images, t = digits.images[: args.limit, :, :, None].astype("float32") / 16, digits.target[: args.limit]
    estimators = {
        "perceptron": NNClassifier((100,), max_iter=60, random_state=0),
        "cnn": NNClassifier(model=cnn, max_iter=15, batch_size=32, learning_rate=2e-3, random_state=0),
    }
    results = {}
    for name, estimator in estimators.items():
        scores = cross_val_score(estimator, images, t, cv=5)
        print(f"{name:<10}  {scores.mean():.4f} +- {scores.std():.4f}")
        results[name] = float(scores.mean())
    return results


if __name__ == "__main__":
    main()
