"""The layers: the textbook."""

from nnlite.layers.activation import ELU, GELU, LeakyReLU, PReLU, ReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from nnlite.layers.base import BatchLayer, Context, Layer
from nnlite.layers.branches import Concat, Residual
from nnlite.layers.conv import Conv2D, DepthwiseConv2D
from nnlite.layers.dense import Dense
from nnlite.layers.dropout import Dropout, SpatialDropout2D
from nnlite.layers.embedding import Embedding
from nnlite.layers.norm import BatchNorm, GroupNorm, LayerNorm, Normalize
from nnlite.layers.pool import AvgPool2D, GlobalAvgPool2D, GlobalMaxPool2D, MaxPool2D
from nnlite.layers.reshape import Flatten, Reshape
from nnlite.layers.sequence import AvgPool1D, Conv1D, GlobalMaxPool1D, MaxPool1D
from nnlite.layers.upsample import Upsample2D

__all__ = [
    "ELU",
    "GELU",
    "AvgPool1D",
    "AvgPool2D",
    "BatchLayer",
    "BatchNorm",
    "Concat",
    "Context",
    "Conv1D",
    "Conv2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAvgPool2D",
    "GlobalMaxPool1D",
    "GlobalMaxPool2D",
    "GroupNorm",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "MaxPool1D",
    "MaxPool2D",
    "Normalize",
    "PReLU",
    "ReLU",
    "Reshape",
    "Residual",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "SpatialDropout2D",
    "Tanh",
    "Upsample2D",
]
