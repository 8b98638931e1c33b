"""What training showed, epoch by epoch."""

import math
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from nnlite.atomic import replacing, write_whole


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of the values that are numbers."""
    return {name: float(v) for name, v in values.items() if isinstance(v, int | float) or getattr(v, "shape", None) == ()}


def is_score(column: str) -> bool:
    """Whether a column of the history shows a loss or a metric, not a learning rate or a time."""
    return not column.startswith(("learning_rate", "seconds", "samples_per_second"))


class History(dict[str, list[float]]):
    """Columns by name, one value an epoch: history["val_accuracy"][-1]. A column has NaN where an epoch had no value."""

    @property
    def epochs(self) -> int:
        """Number of rows."""
        return max((len(column) for column in self.values()), default=0)

    def append(self, row: Mapping[str, float]) -> None:
        """Add the row of an epoch."""
        epochs = self.epochs
        for name in {**self, **row}:
            self.setdefault(name, [math.nan] * epochs).append(float(row.get(name, math.nan)))

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write a line for each epoch, counted from 1. Raises FileError where that cannot be done."""
        write_whole(path, self.csv())

    def csv(self, behind: int | None = None) -> bytes:
        """As a CSV file: a header and a line for each epoch; or the lines alone of the epochs behind the first so many."""
        import csv
        import io

        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([["epoch", *self]] if behind is None else [])
        epochs = range(behind or 0, self.epochs)
        writer.writerows([i + 1, *(repr(column[i]) for column in self.values())] for i in epochs)
        return text.getvalue().encode()

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw the curves: losses at the left, everything else that has a validation at the right. Needs matplotlib.

        path: its suffix says the format; default: .png. Raises FileError where the file cannot be written.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("the plot needs matplotlib: pip install 'nnlite-numpy[examples]'") from error
        losses = [name for name in self if name.removeprefix("val_") == "loss"]
        others = [name for name in self if name not in losses and is_score(name)]
        figure = Figure(figsize=(10, 4) if others else (5.5, 4), layout="constrained")
        for axes, names in zip(figure.subplots(1, 2 if others else 1, squeeze=False)[0], (losses, others), strict=False):
            self._draw(axes, names)
        path = Path(path) if Path(path).suffix else Path(f"{os.fspath(path)}.png")
        with replacing(path) as file:
            figure.savefig(file, dpi=110, format=path.suffix[1:])

    def _draw(self, axes: Any, names: list[str]) -> None:
        for name in names:
            style = {"linestyle": "-", "marker": "o"} if name.startswith("val_") else {"linestyle": "--", "marker": "."}
            axes.plot(range(1, self.epochs + 1), self[name], label=name.replace("_", " "), markersize=4, **style)
        axes.set(xlabel="epoch", ylabel="loss" if "loss" in names else "")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
