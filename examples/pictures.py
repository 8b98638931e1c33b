"""The pictures that the examples write: a confusion matrix, and predictions on test images; and their writing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnlite.atomic import replacing


def confusion_picture(matrix: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Rows are true classes, columns predictions; each row in percent."""
    share = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*share.shape):
        axes.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title="test images, percent of each true class")
    write(figure, path)


def sample_picture(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.floating],
    classes: Sequence[str],
    path: Path,
    columns: int = 8,
) -> None:
    """Two rows of right and two of wrong predictions, each with its probability."""
    predicted = probabilities.argmax(axis=1)
    right, wrong = (np.flatnonzero((predicted == labels) == correct)[: 2 * columns] for correct in (True, False))
    figure = Figure(figsize=(1.35 * columns, 6.8), layout="constrained")
    grid = figure.subplots(4, columns)
    for axes in grid.flat:
        axes.axis("off")
    for rows, picks, colour in ((grid[:2], right, "tab:green"), (grid[2:], wrong, "tab:red")):
        for axes, i in zip(rows.flat, picks, strict=False):
            axes.imshow(images[i].squeeze(), cmap="gray" if images.shape[-1] == 1 else None)
            title = f"{classes[predicted[i]]} {100 * probabilities[i, predicted[i]]:.0f}%"
            axes.set_title(title if predicted[i] == labels[i] else f"{title}\n({classes[labels[i]]})", color=colour, fontsize=8)
    write(figure, path)


def write(figure: Figure, path: Path) -> None:
    """Write a PNG atomically."""
    with replacing(path) as file:
        figure.savefig(file, dpi=110)
