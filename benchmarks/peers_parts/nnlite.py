"""The tasks of `peers.py` in nnlite."""

from typing import Any

import nnlite as nn
from peers_parts import tasks as net
from peers_parts.tasks import Built, Layer, Task


def build(task: Task, batches: list[tuple[Any, Any]], threads: int, system: str) -> Built:
    nn.set_num_threads(threads)
    model = nn.Sequential(*map(translate, task.network), input_shape=task.in_shape, dtype="float32")
    criterion, optimizer = nn.CrossEntropy(), nn.Adam(net.LEARNING_RATE)

    def train(i: int) -> None:
        x, t = batches[i]
        model.loss_and_grad(x, t, criterion)
        optimizer.step(model)

    def infer(i: int) -> None:
        model(batches[i][0])

    variants = {"loss_and_grad + step": train} if task.training else {"model(x)": infer}
    return Built(variants, parameters=model.params.size)


def translate(layer: Layer) -> nn.Layer:
    match layer:
        case net.Conv():
            options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "bias": layer.bias}
            return nn.Conv2D(layer.filters, layer.kernel, **options)
        case net.DepthwiseConv():
            return nn.DepthwiseConv2D(3, stride=layer.stride, padding=1, bias=False)
        case net.Dense():
            return nn.Dense(layer.units)
        case net.BatchNorm():
            return nn.BatchNorm(momentum=net.BATCH_NORM_MOMENTUM, eps=net.BATCH_NORM_EPS)
        case net.LayerNorm():
            return nn.LayerNorm(eps=net.LAYER_NORM_EPS)
        case net.ReLU():
            return nn.ReLU()
        case net.GELU():
            return nn.GELU()
        case net.MaxPool():
            return nn.MaxPool2D(2)
        case net.GlobalAvgPool():
            return nn.GlobalAvgPool2D()
        case net.Flatten():
            return nn.Flatten()
        case net.Residual():
            return nn.Residual(*map(translate, layer.main), shortcut=tuple(map(translate, layer.shortcut)))
