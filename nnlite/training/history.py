"""Losses, metrics, learning rates and times of each epoch."""

import math
from collections.abc import Mapping
from os import PathLike
from typing import Any, Self

from nnlite.arguments import shortened
from nnlite.atomic import shown, write_whole
from nnlite.errors import FileError


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are numbers, and the entries of those that are vectors: recall_0, recall_1, ..."""
    found: dict[str, float] = {}
    for name, value in values.items():
        shape = () if isinstance(value, int | float) else getattr(value, "shape", None)
        if shape == ():
            found[name] = float(value)
        elif shape and len(shape) == 1:
            found |= {f"{name}_{i}": float(v) for i, v in enumerate(value)}
    return found


def is_score(column: str) -> bool:
    """Whether a column of the history shows a loss or a metric, not a learning rate or a time."""
    return not column.startswith(("learning_rate", "seconds", "samples_per_second"))


def score_columns(history: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The columns of losses, and those of other scores."""
    scores = [name for name in history if is_score(name)]
    losses = [name for name in scores if name.removeprefix("val_") == "loss"]
    return losses, [name for name in scores if name not in losses]


class History(dict[str, list[float]]):
    """Columns by name, one value an epoch: history["val_accuracy"][-1]. A column has NaN where an epoch had no value."""

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return max((len(column) for column in self.values()), default=0)

    def append(self, row: Mapping[str, float]) -> None:
        """Add the row of an epoch."""
        epochs = self.epochs
        for name in {**self, **row}:
            self.setdefault(name, [math.nan] * epochs).append(float(row.get(name, math.nan)))

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write a line for each epoch, counted from 1. Raises FileError if the file cannot be written."""
        write_whole(path, self.csv())

    @classmethod
    def from_csv(cls, path: str | PathLike[str]) -> Self:
        """What `to_csv` or `nn.CSVLog` wrote; raises FileError for anything else, FileNotFoundError if there is no file."""
        import csv

        try:
            with open(path, newline="", encoding="utf-8") as file:
                header, *rows = csv.reader(file)
            if header[0] != "epoch" or any(len(row) != len(header) for row in rows):
                raise ValueError("no header, or a line that does not fit it")
            return cls({name: [float(row[i]) for row in rows] for i, name in enumerate(header) if i})
        except FileNotFoundError:
            raise
        except (OSError, ValueError, IndexError, csv.Error) as error:
            raise FileError(f"{shown(path)}: not a history that nnlite saved, or damaged: {shortened(error)}") from error

    def csv(self, behind: int | None = None) -> bytes:
        """As a CSV file: a header and a line for each epoch; or only the lines of the epochs after the first `behind`."""
        import csv
        import io

        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([["epoch", *self]] if behind is None else [])
        epochs = range(behind or 0, self.epochs)
        writer.writerows([i + 1, *(repr(column[i]) for column in self.values())] for i in epochs)
        return text.getvalue().encode()
