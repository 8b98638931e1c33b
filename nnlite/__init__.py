"""nnlite: neural networks by hand, every layer's forward and backward pass written out, in NumPy, fast.

import nnlite as nn
model = nn.Sequential(nn.Dense(64), nn.ReLU(), nn.Dense(10), input_shape=(784,))
loss = model.loss_and_grad(x, t, nn.CrossEntropy())
nn.Adam(1e-3).step(model)
"""

from typing import TYPE_CHECKING, Any

from nnlite import init, metrics, schedules
from nnlite.backend import get_num_threads, set_conv_algorithm, set_kernels, set_num_threads
from nnlite.errors import (
    DataError,
    DeviceError,
    DownloadError,
    FileError,
    GradientError,
    NNLiteError,
    NonFiniteError,
    ShapeError,
    StateError,
)
from nnlite.files import load
from nnlite.layers import (
    ELU,
    GELU,
    AvgPool1D,
    AvgPool2D,
    BatchLayer,
    BatchNorm,
    Concat,
    Context,
    Conv1D,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Embedding,
    Flatten,
    GlobalAvgPool2D,
    GlobalMaxPool1D,
    GlobalMaxPool2D,
    GroupNorm,
    Layer,
    LayerNorm,
    LeakyReLU,
    MaxPool1D,
    MaxPool2D,
    Normalize,
    PReLU,
    ReLU,
    Reshape,
    Residual,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    SpatialDropout2D,
    Tanh,
    Upsample2D,
)
from nnlite.losses import MAE, MSE, BinaryCrossEntropy, CrossEntropy, Huber, Loss, softmax
from nnlite.metrics import F1, Accuracy, ConfusionMatrix, Metric, Precision, Recall, TopK
from nnlite.model import Sequential
from nnlite.optim import SGD, Adam, AdamW, Muon, Optimizer, ParameterGroups, RMSProp
from nnlite.tools.debug import debug
from nnlite.tools.gradcheck import gradcheck
from nnlite.tools.profile import profile
from nnlite.training.callbacks import EarlyStopping, LogTo, ReduceOnPlateau, WeightAverage
from nnlite.training.csvlog import CSVLog
from nnlite.training.history import History
from nnlite.training.hooks import Callback
from nnlite.training.trainer import Trainer

if TYPE_CHECKING:
    from nnlite import data, distributed, insight, interop, privacy, zoo

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """The packages `nn.data`, `nn.distributed`, ... are loaded on first use, so that `import nnlite` is fast."""
    if name in ("data", "distributed", "insight", "interop", "privacy", "zoo"):
        from importlib import import_module

        return import_module(f"nnlite.{name}")
    raise AttributeError(f"module 'nnlite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "ELU",
    "F1",
    "GELU",
    "MAE",
    "MSE",
    "SGD",
    "Accuracy",
    "Adam",
    "AdamW",
    "AvgPool1D",
    "AvgPool2D",
    "BatchLayer",
    "BatchNorm",
    "BinaryCrossEntropy",
    "CSVLog",
    "Callback",
    "Concat",
    "ConfusionMatrix",
    "Context",
    "Conv1D",
    "Conv2D",
    "CrossEntropy",
    "DataError",
    "Dense",
    "DepthwiseConv2D",
    "DeviceError",
    "DownloadError",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "FileError",
    "Flatten",
    "GlobalAvgPool2D",
    "GlobalMaxPool1D",
    "GlobalMaxPool2D",
    "GradientError",
    "GroupNorm",
    "History",
    "Huber",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LogTo",
    "Loss",
    "MaxPool1D",
    "MaxPool2D",
    "Metric",
    "Muon",
    "NNLiteError",
    "NonFiniteError",
    "Normalize",
    "Optimizer",
    "PReLU",
    "ParameterGroups",
    "Precision",
    "RMSProp",
    "ReLU",
    "Recall",
    "ReduceOnPlateau",
    "Reshape",
    "Residual",
    "Sequential",
    "ShapeError",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "SpatialDropout2D",
    "StateError",
    "Tanh",
    "TopK",
    "Trainer",
    "Upsample2D",
    "WeightAverage",
    "data",
    "debug",
    "distributed",
    "get_num_threads",
    "gradcheck",
    "init",
    "insight",
    "interop",
    "load",
    "metrics",
    "privacy",
    "profile",
    "schedules",
    "set_conv_algorithm",
    "set_kernels",
    "set_num_threads",
    "softmax",
    "zoo",
]
