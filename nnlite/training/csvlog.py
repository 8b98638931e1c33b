"""The history as a CSV file, appended to after each epoch."""

import os
import warnings
from collections.abc import Collection, Mapping
from os import PathLike

from nnlite.arguments import shortened
from nnlite.atomic import append, check_writable, write_whole
from nnlite.errors import FileError
from nnlite.training.history import History
from nnlite.training.hooks import Callback, Training


class CSVLog(Callback):
    """The history as a CSV file, as `History.to_csv` writes it: a header, and one line after each epoch, appended.

    When training begins, the file is rewritten from the trainer's history, so that a resumed run has exactly the completed
    epochs in it; other contents are lost. It is also rewritten after an epoch with new columns, in which earlier epochs have
    "nan".
    Raises ValueError for what is not a path. `fit` raises FileError before the first step if the file cannot be written. If
    writing fails later (a full disk), training continues with a warning, and the next epoch tries again.
    """

    only_first = True

    def __init__(self, path: str | PathLike[str]) -> None:
        if not isinstance(path, str | PathLike):
            raise ValueError(f"path must be the name of a file, not {shortened(path)}")
        self.path = path
        self.columns: list[str] = []  # of the file; empty if it is incomplete

    def check(self, trainer: Training, columns: Collection[str]) -> None:
        check_writable(self.path)
        self.columns = list(columns)

    def on_fit_begin(self, trainer: Training) -> None:
        begun = trainer.history or History({name: [] for name in self.columns})
        write_whole(self.path, begun.csv())
        self.columns = list(begun)

    def on_epoch_end(self, trainer: Training, row: Mapping[str, float]) -> None:
        history = trainer.history
        try:
            if list(history) == self.columns and os.path.exists(self.path):
                append(self.path, history.csv(behind=history.epochs - 1))
            else:
                write_whole(self.path, history.csv())
            self.columns = list(history)
        except FileError as error:
            self.columns = []
            warnings.warn(f"{error}; training continues", RuntimeWarning, stacklevel=2)
