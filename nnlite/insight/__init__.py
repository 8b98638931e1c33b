"""Views of training, predictions and models, in `nn.insight`: `plots`, `report`, `explain`, `TensorBoard`, ..."""

from nnlite.insight import explain, plots
from nnlite.insight.html import report
from nnlite.insight.rates import Found, find_learning_rate
from nnlite.insight.run import save_run
from nnlite.insight.tensorboard import TensorBoard

__all__ = ["Found", "TensorBoard", "explain", "find_learning_rate", "plots", "report", "save_run"]
