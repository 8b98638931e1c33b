"""The column of the history that epochs are compared by, and whether larger is better."""

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from nnlite.arguments import listing, shortened
from nnlite.errors import DataError
from nnlite.training.hooks import Training

Mode = Literal["min", "max"] | None


class Monitor(NamedTuple):
    """column: its name in the history   who: the watcher's name, for messages

    mode: "min" or "max": whether smaller or larger is better; None: as the metric of this name says, for a loss "min".
    """

    who: str
    column: str
    mode: Mode = None

    def check(self, trainer: Training, columns: Collection[str]) -> None:
        """Raise DataError for a name that the history will not have, ValueError where no metric says what is better."""
        if self.column not in columns:
            raise DataError(
                f"{self.who} watches {shortened(self.column)}, the history will have {listing(columns)}"
                + ("" if "val_loss" in columns else ": columns val_... need validation=")
            )
        self.sign(trainer)

    def sign(self, trainer: Training) -> int:
        """1 where smaller is better, -1 where larger is."""
        if self.mode is not None:
            return -1 if self.mode == "max" else 1
        greater_is_better = trainer.greater_is_better(self.column)
        if greater_is_better is None:
            own = "" if self.who == "fit" else f'{self.who} mode="max" or "min", or '
            raise ValueError(
                f"{self.who} watches {shortened(self.column)}, and no metric says whether more of it is better: "
                f"give {own}the metric greater_is_better = True or False"
            )
        return -1 if greater_is_better else 1

    def cost(self, trainer: Training, row: Mapping[str, float]) -> float:
        """The value of an epoch, negated where larger is better, so that smaller is always better."""
        if self.column not in row:
            raise DataError(f"{self.who} watches {shortened(self.column)}, the history has {listing(row)}")
        return self.sign(trainer) * row[self.column]
