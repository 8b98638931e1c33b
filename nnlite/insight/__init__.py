"""Views of training: `nn.insight.plots`, `nn.insight.find_learning_rate`, `nn.insight.TensorBoard`."""

from nnlite.insight import plots
from nnlite.insight.rates import Found, find_learning_rate
from nnlite.insight.tensorboard import TensorBoard

__all__ = ["Found", "TensorBoard", "find_learning_rate", "plots"]
