"""Views of training and of predictions: `nn.insight.plots`, `nn.insight.explain`."""

from nnlite.insight import explain, plots

__all__ = ["explain", "plots"]
