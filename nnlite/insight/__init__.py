"""Views of training, predictions and models: `plots`, `find_learning_rate`, `TensorBoard`, `explain`, all in `nn.insight`."""

from nnlite.insight import explain, plots
from nnlite.insight.rates import Found, find_learning_rate
from nnlite.insight.tensorboard import TensorBoard

__all__ = ["Found", "TensorBoard", "explain", "find_learning_rate", "plots"]
