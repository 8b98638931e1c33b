"""The layers: the textbook."""

from nnlite.layers.activation import ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from nnlite.layers.base import BatchLayer, Context, Layer
from nnlite.layers.branches import Concat, Residual
from nnlite.layers.conv import Conv2D
from nnlite.layers.dense import Dense
from nnlite.layers.dropout import Dropout
from nnlite.layers.norm import BatchNorm, LayerNorm, Normalize
from nnlite.layers.pool import AvgPool2D, GlobalAvgPool2D, GlobalMaxPool2D, MaxPool2D
from nnlite.layers.reshape import Flatten, Reshape
from nnlite.layers.upsample import Upsample2D

__all__ = [
    "ELU",
    "GELU",
    "AvgPool2D",
    "BatchLayer",
    "BatchNorm",
    "Concat",
    "Context",
    "Conv2D",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2D",
    "GlobalMaxPool2D",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "MaxPool2D",
    "Normalize",
    "ReLU",
    "Reshape",
    "Residual",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "Upsample2D",
]
