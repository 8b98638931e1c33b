"""The tasks of `peers.py` in JAX: plain functions of a list of parameters, jit, donated state, Adam written out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from peers_parts import tasks as net
from peers_parts.tasks import Built, Network, Shape, Task

Params = list[dict[str, Any]]  # one dictionary a layer: trained "W", "b", "gamma", "beta", or "main" and "shortcut"


def build(task: Task, batches: list[tuple[Any, Any]], threads: int, system: str) -> Built:
    params = init(task.network, task.in_shape, np.random.default_rng(0))
    data = [(jnp.asarray(x), jnp.asarray(t, jnp.int32)) for x, t in batches]
    pipeline = Pipeline()
    make = make_train if task.training else make_infer
    step = make(task, params, data, pipeline)
    return Built({"jit": step}, count(params), finish=pipeline.finish)


class Pipeline:
    """Keeps one step in flight: the next is sent while the last still runs."""

    def __init__(self) -> None:
        self.last: Any = None

    def send(self, result: Any) -> None:
        self.finish()
        self.last = result

    def finish(self) -> None:
        jax.block_until_ready(self.last)


def make_train(task: Task, params: Params, data: list[Any], pipeline: Pipeline) -> Callable[[int], None]:
    def loss_of(params: Params, x: Array, t: Array) -> tuple[Array, list[Any]]:
        z, moments = forward(task.network, params, x)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), t[:, None], axis=1)), moments

    def train_step(state: tuple[Any, ...], x: Array, t: Array) -> tuple[Any, Array]:
        params, m, v, running, steps = state
        (loss, moments), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, x, t)
        keep = net.BATCH_NORM_MOMENTUM
        running = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, running, moments)
        return (*adam(params, gradients, m, v, steps + 1), running, steps + 1), loss

    compiled = jax.jit(train_step, donate_argnums=0)
    zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
    running = jax.tree.map(jnp.zeros_like, jax.eval_shape(loss_of, params, *data[0])[1])
    state = (params, *zeros, running, jnp.zeros((), jnp.float32))

    def train(i: int) -> None:
        nonlocal state
        state, loss = compiled(state, *data[i])
        pipeline.send(loss)

    return train


def make_infer(task: Task, params: Params, data: list[Any], pipeline: Pipeline) -> Callable[[int], None]:
    compiled = jax.jit(lambda params, x: forward(task.network, params, x)[0])
    return lambda i: pipeline.send(compiled(params, data[i][0]))


def adam(params: Params, gradients: Params, m: Params, v: Params, step: Array) -> tuple[Params, Params, Params]:
    b1, b2 = 0.9, 0.999
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, gradients)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, gradients)
    rate, root = net.LEARNING_RATE / (1 - b1**step), jnp.sqrt(1 - b2**step)
    return jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) / root + 1e-8), params, m, v), m, v


def forward(network: Network, params: Params, a: Array) -> tuple[Array, list[Any]]:
    """The outputs, and the batch statistics in the order of the layers."""
    moments: list[Any] = []
    for layer, values in zip(network, params, strict=True):
        match layer:
            case net.Conv():
                a = convolve(layer, values, a)
            case net.DepthwiseConv():
                a = convolve_depthwise(layer, values["W"], a)
            case net.Dense():
                a = a @ values["W"] + values["b"]
            case net.BatchNorm():
                mean, var = jnp.mean(a, axis=(0, 1, 2)), jnp.var(a, axis=(0, 1, 2))
                a = (a - mean) * (values["gamma"] * lax.rsqrt(var + net.BATCH_NORM_EPS)) + values["beta"]
                moments.append((mean, var))
            case net.LayerNorm():
                mean, var = jnp.mean(a, axis=-1, keepdims=True), jnp.var(a, axis=-1, keepdims=True)
                a = (a - mean) * lax.rsqrt(var + net.LAYER_NORM_EPS) * values["gamma"] + values["beta"]
            case net.ReLU():
                a = jax.nn.relu(a)
            case net.GELU():
                a = jax.nn.gelu(a, approximate=False)
            case net.MaxPool():
                a = max_pool(a)
            case net.GlobalAvgPool():
                a = jnp.mean(a, axis=(1, 2))
            case net.Flatten():
                a = a.reshape(len(a), -1)
            case net.Residual():
                main, inner = forward(layer.main, values["main"], a)
                a = main + forward(layer.shortcut, values["shortcut"], a)[0]
                moments += inner
    return a, moments


def max_pool(a: Array) -> Array:
    """By a reshape, which is faster than `lax.reduce_window`, most of all backward."""
    n, height, width, channels = a.shape
    rows, columns = height // 2, width // 2
    return a[:, : 2 * rows, : 2 * columns].reshape(n, rows, 2, columns, 2, channels).max(axis=(2, 4))


def convolve(layer: net.Conv, values: dict[str, Array], a: Array) -> Array:
    pads = [(layer.padding, layer.padding)] * 2
    strides, dilations = (layer.stride,) * 2, (layer.dilation,) * 2
    z = lax.conv_general_dilated(a, values["W"], strides, pads, None, dilations, ("NHWC", "HWIO", "NHWC"))
    return z + values["b"] if layer.bias else z


def convolve_depthwise(layer: net.DepthwiseConv, W: Array, a: Array) -> Array:
    """By shifted images, which is faster than a convolution in groups, most of all backward."""
    padded, (height, width) = jnp.pad(a, ((0, 0), (1, 1), (1, 1), (0, 0))), a.shape[1:3]
    shifted = (padded[:, y : y + height : layer.stride, x : x + width : layer.stride] for y in range(3) for x in range(3))
    return sum(image * w for image, w in zip(shifted, W.reshape(9, -1), strict=True))


def init(network: Network, shape: Shape, rng: np.random.Generator) -> Params:
    params = []
    for layer in network:
        params.append(init_layer(layer, shape, rng))
        shape = net.out_shape(layer, shape)
    return params


def init_layer(layer: net.Layer, shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    def he_normal(*shape: int) -> Array:
        return jnp.asarray(rng.standard_normal(shape, dtype=np.float32) * np.float32((2 / np.prod(shape[:-1])) ** 0.5))

    match layer:
        case net.Conv():
            W = he_normal(layer.kernel, layer.kernel, shape[2], layer.filters)
            return {"W": W, "b": jnp.zeros(layer.filters)} if layer.bias else {"W": W}
        case net.Dense():
            return {"W": he_normal(shape[0], layer.units), "b": jnp.zeros(layer.units)}
        case net.DepthwiseConv():
            return {"W": he_normal(3, 3, 1, shape[2])}
        case net.BatchNorm() | net.LayerNorm():
            return {"gamma": jnp.ones(shape[-1]), "beta": jnp.zeros(shape[-1])}
        case net.Residual():
            return {"main": init(layer.main, shape, rng), "shortcut": init(layer.shortcut, shape, rng)}
    return {}


def count(params: Params) -> int:
    return sum(values.size for values in jax.tree.leaves(params))
