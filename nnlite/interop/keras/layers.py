"""Layers of Keras as nnlite's: what each entry of an architecture says, by its class.

The arrays of a layer are in Keras's order those that nnlite's layers declare: kernel and bias W and b; gamma, beta, moving
mean and variance gamma, beta, running mean and variance. Options that nnlite has no layer for raise Unsupported.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from nnlite import layers
from nnlite.arguments import shortened
from nnlite.backend import Array
from nnlite.layers.base import Layer, Shape

Config = dict[str, Any]


class Unsupported(ValueError):
    """What nnlite has no layer for."""


def read_layer(kind: str, config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    """The layers that a layer of Keras is, its activation included.

    kind: one of READERS.  in_shape: of its input.  arrays: its own. Raises Unsupported.
    """
    if config.get("data_format") == "channels_first":
        raise Unsupported("channels first")
    return [*READERS[kind](config, in_shape, arrays), *activation(config.get("activation"))]


def activation(given: Any) -> list[Layer]:
    """An activation function: a name, None for none, or a layer of Keras."""
    if isinstance(given, dict) and given.get("class_name") in READERS:
        return read_layer(given["class_name"], given["config"], (), [])
    name = given.get("config") if isinstance(given, dict) else given
    make = ACTIVATIONS.get(name or "linear") if isinstance(name, str | None) else None
    if make is None:
        raise Unsupported(f"activation {shortened(given)}")
    return make()


ACTIVATIONS: dict[str, Callable[[], list[Layer]]] = {
    "linear": list,
    "relu": lambda: [layers.ReLU()],
    "leaky_relu": lambda: [layers.LeakyReLU(0.2)],
    "elu": lambda: [layers.ELU()],
    "sigmoid": lambda: [layers.Sigmoid()],
    "tanh": lambda: [layers.Tanh()],
    "gelu": lambda: [layers.GELU()],
    "silu": lambda: [layers.SiLU()],
    "swish": lambda: [layers.SiLU()],
    "softplus": lambda: [layers.Softplus()],
    "softmax": lambda: [layers.Softmax()],
}


def _dense(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    """On images and sequences a convolution with kernels of one pixel."""
    units, options = config["units"], {"bias": config.get("use_bias", True)}
    if len(in_shape) == 1:
        return [layers.Dense(units, **options)]
    return [(layers.Conv2D if len(in_shape) == 3 else layers.Conv1D)(units, 1, **options)]


def _embedding(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    if config.get("mask_zero"):
        raise Unsupported("mask_zero")
    return [layers.Embedding(config["input_dim"], config["output_dim"])]


def _conv(kind: Callable[..., Layer]) -> Any:
    def conv(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
        bias, groups = config.get("use_bias", True), config.get("groups", 1)
        return [kind(config["filters"], _size(config["kernel_size"]), bias=bias, groups=groups, **_sliding(config))]

    return conv


def _depthwise(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    return [_by_channel(config, config.get("use_bias", True))]


def _separable(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    pointwise = layers.Conv2D(config["filters"], 1, bias=config.get("use_bias", True))
    return [_by_channel(config, bias=False), pointwise]


def _by_channel(config: Config, bias: bool) -> Layer:
    multiplier = config.get("depth_multiplier", 1)
    return layers.DepthwiseConv2D(_size(config["kernel_size"]), multiplier=multiplier, bias=bias, **_sliding(config))


def _sliding(config: Config) -> Config:
    """Stride, padding and dilation."""
    stride, dilation = _size(config.get("strides", 1)), _size(config.get("dilation_rate", 1))
    return {"stride": stride, "padding": _padding(config), "dilation": dilation}


def _size(value: Any) -> Any:
    """One number for both axes, or a pair."""
    pair = tuple(value) if isinstance(value, list) else value
    return pair[0] if isinstance(pair, tuple) and pair[:1] * len(pair) == pair else pair


def _padding(config: Config) -> Any:
    padding = config.get("padding", "valid")
    if padding == "causal":
        return _size(config.get("dilation_rate", 1)) * (_size(config["kernel_size"]) - 1), 0
    if padding not in ("valid", "same"):
        raise Unsupported(f"padding {shortened(padding)}")
    return 0 if padding == "valid" else "same"


def _pool(kind: Callable[..., Layer], **options: Any) -> Any:
    def pool(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
        size, stride = _size(config.get("pool_size", 2)), _size(config.get("strides"))
        return [kind(size, None if stride == size else stride, padding=_padding(config), **options)]

    return pool


def _global_pool(kind: Callable[[], Layer]) -> Any:
    def pool(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
        """A sequence is an image of one row for a layer of images."""
        before = [layers.Reshape((1, *in_shape))] if len(in_shape) == 2 and kind is not layers.GlobalMaxPool1D else []
        ones = (1,) * (len(in_shape) - 1)
        return [*before, kind(), *([layers.Reshape((*ones, in_shape[-1]))] if config.get("keepdims") else [])]

    return pool


def _batch_norm(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    return [layers.BatchNorm(momentum=config.get("momentum", 0.99), **_norm(config, in_shape))]


def _layer_norm(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    if config.get("rms_scaling"):
        raise Unsupported("rms_scaling")
    return [layers.LayerNorm(**_norm(config, in_shape))]


def _group_norm(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    groups = config.get("groups", 32)
    return [layers.GroupNorm(in_shape[-1] if groups == -1 else groups, **_norm(config, in_shape))]


def _norm(config: Config, in_shape: Shape) -> Config:
    _last_axis(config, in_shape)
    return {"eps": config.get("epsilon", 1e-3), "scale": config.get("scale", True), "shift": config.get("center", True)}


def _last_axis(config: Config, in_shape: Shape) -> None:
    axis = config.get("axis", -1)
    if axis not in (-1, [-1], len(in_shape), [len(in_shape)]):
        raise Unsupported(f"axis {shortened(axis)}")


def _rescaling(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    """y = scale a + offset = (a + offset / scale) scale"""
    scale, offset = (np.asarray(_numbers(config.get(name, 0.0)), float) for name in ("scale", "offset"))
    if not (scale > 0).all():
        raise Unsupported(f"scale {shortened(config.get('scale'))}")
    return [layers.Normalize((-offset / scale).tolist(), (1 / scale).tolist())]


def _normalization(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    """y = (a - mean) / max(sqrt(variance), 1e-7), the constants in its configuration or found by `adapt`."""
    _last_axis(config, in_shape)
    if config.get("invert"):
        raise Unsupported("invert")
    given = [config.get("mean"), config.get("variance")]
    mean, variance = (np.asarray(_numbers(v), float).ravel() for v in (given if given[0] is not None else arrays[:2]))
    if not (variance >= 0).all():
        raise Unsupported("variance below zero")
    mean, std = (np.broadcast_to(v, in_shape[-1:]).tolist() for v in (mean, np.maximum(np.sqrt(variance), 1e-7)))
    return [layers.Normalize(mean, std)]


def _numbers(value: Any) -> Any:
    """Numbers, which Keras may have wrapped as an array."""
    return value.get("config", value)["value"] if isinstance(value, dict) else value


def _relu(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    slope = config.get("negative_slope") or 0.0
    if config.get("max_value") is not None or config.get("threshold"):
        raise Unsupported("max_value or threshold")
    return [layers.LeakyReLU(_number(slope)) if slope else layers.ReLU()]


def _leaky_relu(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    return [layers.LeakyReLU(_number(config.get("negative_slope", config.get("alpha", 0.3))))]


def _prelu(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    every = list(range(1, len(in_shape) + 1))
    shared = [axis for axis in config.get("shared_axes") or [] if axis]
    if shared not in (every, every[:-1]):
        raise Unsupported(f"shared_axes {shortened(shared)}")
    return [layers.PReLU(shared=shared == every)]


def _elu(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    return [layers.ELU(_number(config.get("alpha", 1.0)))]


def _number(value: Any) -> float:
    return float(np.asarray(_numbers(value)))


def _softmax(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    _last_axis(config, in_shape)
    return [layers.Softmax()]


def _dropout(kind: Callable[[float], Layer]) -> Any:
    def dropout(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
        if config.get("noise_shape"):
            raise Unsupported("noise_shape")
        return [kind(config["rate"])]

    return dropout


def _flatten(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    return [layers.Flatten()]


def _reshape(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    return [layers.Reshape(tuple(config["target_shape"]))]


def _upsample(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    return [layers.Upsample2D(_size(config.get("size", 2)), mode=config.get("interpolation", "nearest"))]


def _nothing(config: Config, in_shape: Shape, arrays: list[Array]) -> list[Layer]:
    return []


READERS: dict[str, Callable[[Config, Shape, list[Array]], list[Layer]]] = {
    "Activation": _nothing,  # but its activation
    "AveragePooling1D": _pool(layers.AvgPool1D, count_padding=False),
    "AveragePooling2D": _pool(layers.AvgPool2D, count_padding=False),
    "BatchNormalization": _batch_norm,
    "Conv1D": _conv(layers.Conv1D),
    "Conv2D": _conv(layers.Conv2D),
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise,
    "Dropout": _dropout(layers.Dropout),
    "ELU": _elu,
    "Embedding": _embedding,
    "Flatten": _flatten,
    "GlobalAveragePooling1D": _global_pool(layers.GlobalAvgPool2D),
    "GlobalAveragePooling2D": _global_pool(layers.GlobalAvgPool2D),
    "GlobalMaxPooling1D": _global_pool(layers.GlobalMaxPool1D),
    "GlobalMaxPooling2D": _global_pool(layers.GlobalMaxPool2D),
    "GroupNormalization": _group_norm,
    "Identity": _nothing,
    "LayerNormalization": _layer_norm,
    "LeakyReLU": _leaky_relu,
    "MaxPooling1D": _pool(layers.MaxPool1D),
    "MaxPooling2D": _pool(layers.MaxPool2D),
    "Normalization": _normalization,
    "PReLU": _prelu,
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "SeparableConv2D": _separable,
    "Softmax": _softmax,
    "SpatialDropout2D": _dropout(layers.SpatialDropout2D),
    "UpSampling2D": _upsample,
}


def ours(array: Array, layer: Layer, name: str) -> Array:
    """An array of Keras as a layer declares it: kernels (h, w, in, out) become (out, h, w, in).

    A depthwise one is (h, w, channels, multiplier). One that does not fit stays as it is, for the message.
    """
    shape = layer.declared[name].shape
    if array.size != math.prod(shape):
        return array
    if name != "W" or isinstance(layer, layers.Embedding):
        return array.reshape(shape) if array.shape[-1:] == shape else array
    if array.ndim == 4 and shape[-1] == 1 != array.shape[2]:
        array = array.reshape(*array.shape[:2], 1, -1)
    turned = np.moveaxis(array, -1, 0)
    if turned.shape == (shape[0], shape[-1]):  # a Dense on images
        turned = turned.reshape(shape)
    return turned if turned.shape == shape else array


def group_name(kind: str, counts: "Counter[str]") -> str:
    """The group of the next layer of a class in a file of Keras 3: conv2d, conv2d_1, ..."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    name = re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()
    counts[name] += 1
    return name if counts[name] == 1 else f"{name}_{counts[name] - 1}"
