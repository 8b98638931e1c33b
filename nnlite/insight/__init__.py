"""Views of training: `nn.insight.plots`."""

from nnlite.insight import plots

__all__ = ["plots"]
