"""Pictures of training: which curves they show, and what they need."""

import io
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes

import nnlite as nn

HISTORY = nn.History(
    {"loss": [1.0, 0.5], "r2": [0.1, 0.4], "val_loss": [2.0, np.nan], "val_r2": [0.0, 0.2]}
    | {"learning_rate": [0.1, 0.1], "learning_rate_*.b": [0.1, 0.1], "seconds": [1.0, 1.0], "samples_per_second": [9.0, 9.0]}
)


def shown(axes):
    """The curves of each Axes of the figure, by their labels."""
    return [{line.get_label(): list(line.get_ydata()) for line in each.lines} for each in axes.figure.axes]


def test_losses_stand_at_the_left_and_scores_at_the_right():
    axes = nn.insight.plots.curves(HISTORY)
    assert isinstance(axes, Axes) and axes is axes.figure.axes[0]
    losses, scores = shown(axes)
    assert list(losses) == ["loss", "val loss"] and losses["loss"] == [1.0, 0.5]
    assert scores == {"r2": [0.1, 0.4], "val r2": [0.0, 0.2]}
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 2], [1, 2]]
    assert (axes.get_ylabel(), axes.figure.axes[1].get_ylabel()) == ("loss", "")


def test_without_scores_there_is_one_panel():
    assert shown(nn.insight.plots.curves(nn.History({"loss": [1.0]}))) == [{"loss": [1.0]}]


@pytest.mark.parametrize(("kind", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_figure_can_be_saved(kind, begins):
    file = io.BytesIO()
    nn.insight.plots.curves(HISTORY).figure.savefig(file, format=kind)
    assert file.getvalue().startswith(begins)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'nnlite-numpy\[examples\]'"):
        nn.insight.plots.curves(HISTORY)
