"""The tasks of `peers.py` in PyTorch: channels_last, eager ("torch") or compiled ("torch.compile"), Adam fused."""

from typing import Any

import torch
from torch import Tensor, nn

from peers_parts import tasks as net
from peers_parts.tasks import Built, Network, Shape, Task


def build(task: Task, batches: list[tuple[Any, Any]], threads: int, system: str) -> Built:
    torch.set_num_threads(threads)
    model = translate(task.network, task.in_shape).to(memory_format=torch.channels_last)
    data = [(to_channels_last(x), torch.from_numpy(t)) for x, t in batches]
    make = make_train if task.training else make_infer
    step = make(model, data, compiled=system == "torch.compile")
    return Built({system: step}, parameters=sum(p.numel() for p in model.parameters()))


def make_train(model: nn.Module, data: list[tuple[Tensor, Tensor]], compiled: bool) -> Any:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=net.LEARNING_RATE, fused=True)

    def compute_loss(x: Tensor, t: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x), t)

    loss_of = torch.compile(compute_loss) if compiled else compute_loss

    def train(i: int) -> None:
        optimizer.zero_grad()
        loss_of(*data[i]).backward()
        optimizer.step()

    return train


def make_infer(model: nn.Module, data: list[tuple[Tensor, Tensor]], compiled: bool) -> Any:
    model.eval()
    apply = torch.compile(model) if compiled else model

    def infer(i: int) -> None:
        with torch.inference_mode():
            apply(data[i][0])

    return infer


def to_channels_last(x: Any) -> Tensor:
    """Images (N, H, W, C) seen as (N, C, H, W): PyTorch's channels_last format, without a copy."""
    tensor = torch.from_numpy(x)
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


class Residual(nn.Module):
    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, a: Tensor) -> Tensor:
        return self.main(a) + self.shortcut(a)


class ChannelsLayerNorm(nn.LayerNorm):
    """Over the channels, which are the last axis in memory."""

    def forward(self, a: Tensor) -> Tensor:
        return super().forward(a.movedim(1, -1)).movedim(-1, 1)


def translate(network: Network, shape: Shape) -> nn.Sequential:
    modules = []
    for layer in network:
        modules.append(translate_layer(layer, shape))
        shape = net.out_shape(layer, shape)
    return nn.Sequential(*modules)


def translate_layer(layer: net.Layer, shape: Shape) -> nn.Module:
    match layer:
        case net.Conv():
            window = (layer.kernel, layer.stride, layer.padding, layer.dilation)
            return nn.Conv2d(shape[2], layer.filters, *window, bias=layer.bias)
        case net.DepthwiseConv():
            return nn.Conv2d(shape[2], shape[2], 3, layer.stride, 1, groups=shape[2], bias=False)
        case net.Dense():
            return nn.Linear(shape[0], layer.units)
        case net.BatchNorm():
            return nn.BatchNorm2d(shape[2], eps=net.BATCH_NORM_EPS, momentum=1 - net.BATCH_NORM_MOMENTUM)
        case net.LayerNorm():
            return ChannelsLayerNorm(shape[-1], eps=net.LAYER_NORM_EPS)
        case net.ReLU():
            return nn.ReLU(inplace=True)
        case net.GELU():
            return nn.GELU()
        case net.MaxPool():
            return nn.MaxPool2d(2)
        case net.GlobalAvgPool():
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        case net.Flatten():
            return nn.Flatten()
        case net.Residual():
            return Residual(translate(layer.main, shape), translate(layer.shortcut, shape))
