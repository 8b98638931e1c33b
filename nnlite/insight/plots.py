"""Plots of training, drawn with matplotlib."""

from typing import TYPE_CHECKING

from nnlite.training.history import History, is_score

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def curves(history: History) -> "Axes":
    """Draw losses and, beside them, the other scores, epoch by epoch; returns the Axes of the losses.

    `curves(history).figure.savefig("curves.png")` writes both. Raises ImportError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the plot needs matplotlib: pip install 'nnlite-numpy[examples]'") from error
    losses = [name for name in history if name.removeprefix("val_") == "loss"]
    others = [name for name in history if name not in losses and is_score(name)]
    figure = Figure(figsize=(10, 4) if others else (5.5, 4), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, 2 if others else 1, squeeze=False)[0])
    for axes, names in zip(panels, (losses, others), strict=False):
        _draw(axes, history, names)
    return panels[0]


def _draw(axes: "Axes", history: History, names: list[str]) -> None:
    for name in names:
        style = "o-" if name.startswith("val_") else ".--"
        axes.plot(range(1, history.epochs + 1), history[name], style, label=name.replace("_", " "), markersize=4)
    axes.set(xlabel="epoch", ylabel="loss" if "loss" in names else "")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
