"""nnlite: neural networks by hand, every layer's forward and backward pass written out, in NumPy, fast.

import nnlite as nn
model = nn.Sequential(nn.Dense(64), nn.ReLU(), nn.Dense(10), input_shape=(784,))
loss = model.loss_and_grad(x, t, nn.CrossEntropy())
nn.Adam(1e-3).step(model)
"""

from nnlite import init
from nnlite.backend import get_num_threads, set_num_threads
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
from nnlite.gradcheck import gradcheck
from nnlite.layers import (
    GELU,
    AvgPool2D,
    BatchLayer,
    BatchNorm,
    Context,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Layer,
    LayerNorm,
    LeakyReLU,
    MaxPool2D,
    Normalize,
    ReLU,
    Reshape,
    Residual,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from nnlite.losses import MAE, MSE, BinaryCrossEntropy, CrossEntropy, Huber, Loss, softmax
from nnlite.model import Sequential
from nnlite.optim import SGD, Adam, AdamW, Optimizer, ParameterGroups, RMSProp
from nnlite.serialize import load

__version__ = "0.1.0"
