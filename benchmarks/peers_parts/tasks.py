"""The networks and tasks of `peers.py`, described once, so that every system builds the same thing.

A network is a tuple of the layers below; each module `<system>.py` translates it. Images are channels-last.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

LEARNING_RATE = 1e-3
BATCH_NORM_MOMENTUM, BATCH_NORM_EPS = 0.9, 1e-5
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Conv:
    filters: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    bias: bool = True


@dataclass(frozen=True)
class DepthwiseConv:
    """3x3, padding 1, one filter for each channel, no bias."""

    stride: int = 1


@dataclass(frozen=True)
class Dense:
    units: int


@dataclass(frozen=True)
class BatchNorm:
    pass


@dataclass(frozen=True)
class LayerNorm:
    """Of each pixel, or each row of an MLP, over its channels."""


@dataclass(frozen=True)
class ReLU:
    pass


@dataclass(frozen=True)
class GELU:
    """The exact one, by erf."""


@dataclass(frozen=True)
class MaxPool:
    """2x2, stride 2; an odd last row or column is left out."""


@dataclass(frozen=True)
class GlobalAvgPool:
    pass


@dataclass(frozen=True)
class Flatten:
    pass


@dataclass(frozen=True)
class Residual:
    """main(a) + shortcut(a), the shortcut being the identity where it is empty."""

    main: "Network"
    shortcut: "Network" = ()


Layer = Conv | DepthwiseConv | Dense | BatchNorm | LayerNorm | ReLU | GELU | MaxPool | GlobalAvgPool | Flatten | Residual
Network = tuple[Layer, ...]
Shape = tuple[int, ...]


def tutorial_cnn() -> Network:
    convolutions = (Conv(32), ReLU(), MaxPool(), Conv(64), ReLU(), MaxPool(), Conv(64), ReLU())
    return (*convolutions, Flatten(), Dense(64), ReLU(), Dense(10))


def vgg() -> Network:
    layers: list[Layer] = []
    for width in (64, 128, 256):
        layers += [Conv(width, padding=1, bias=False), BatchNorm(), ReLU()] * 2
        layers.append(MaxPool())
    return (*layers, Flatten(), Dense(10))


def resnet20() -> Network:
    """Pre-activation (He et al. 2016b): every block is BN-ReLU-Conv twice; where the width changes, a 1x1 shortcut."""
    layers: list[Layer] = [Conv(16, padding=1, bias=False)]
    for width in (16, 32, 64):
        for block in range(3):
            stride = 2 if block == 0 and width > 16 else 1
            shortcut = (Conv(width, kernel=1, stride=2, bias=False),) if stride == 2 else ()
            first = (BatchNorm(), ReLU(), Conv(width, stride=stride, padding=1, bias=False))
            second = (BatchNorm(), ReLU(), Conv(width, padding=1, bias=False))
            layers.append(Residual((*first, *second), shortcut))
    return (*layers, BatchNorm(), ReLU(), GlobalAvgPool(), Dense(10))


def mlp() -> Network:
    return (Dense(512), ReLU(), Dense(512), ReLU(), Dense(10))


def tiny_mlp() -> Network:
    return (Dense(16), ReLU(), Dense(3))


def strided_cnn() -> Network:
    convolutions = (Conv(width, kernel=5, stride=2, padding=2) for width in (32, 64, 128))
    return (*followed(convolutions, ReLU()), Flatten(), Dense(10))


def grey_cnn() -> Network:
    convolutions = (Conv(width, kernel=7, padding=3) for width in (16, 32))
    return (*followed(convolutions, ReLU(), MaxPool()), Flatten(), Dense(10))


def dilated_cnn() -> Network:
    convolutions = (Conv(32, padding=dilation, dilation=dilation) for dilation in (1, 2, 4))
    return (*followed(convolutions, ReLU()), GlobalAvgPool(), Dense(10))


def mobile_net() -> Network:
    """Depthwise separable convolutions, as in MobileNet (Howard et al. 2017)."""
    convolutions: list[Layer] = [Conv(32, padding=1, bias=False)]
    for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2)):
        convolutions += [DepthwiseConv(stride), Conv(width, kernel=1, bias=False)]
    return (*followed(convolutions, BatchNorm(), ReLU()), GlobalAvgPool(), Dense(10))


def large_image_cnn() -> Network:
    convolutions = (Conv(width, padding=1) for width in (16, 32, 64))
    return (*followed(convolutions, ReLU(), MaxPool()), GlobalAvgPool(), Dense(10))


def gelu_cnn() -> Network:
    convolutions = (Conv(width, padding=1) for width in (32, 64, 64))
    return (*followed(convolutions, LayerNorm(), GELU(), MaxPool()), Flatten(), Dense(10))


def gelu_mlp() -> Network:
    return (*followed((Dense(512), Dense(512)), LayerNorm(), GELU()), Dense(10))


def followed(layers: Iterable[Layer], *by: Layer) -> Iterator[Layer]:
    """Each of the layers with the same others behind it."""
    for layer in layers:
        yield from (layer, *by)


@dataclass(frozen=True)
class Task:
    """One row of the table: a training step (forward, loss, backward, Adam) or inference of a network on a batch."""

    name: str
    title: str
    make_network: Callable[[], Network]
    in_shape: Shape
    batch: int
    classes: int = 10
    training: bool = True
    network: Network = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", self.make_network())

    @property
    def key(self) -> str:
        return f"{self.name}@{self.batch}"

    @property
    def is_mlp(self) -> bool:
        return all(isinstance(layer, Dense | ReLU) for layer in self.network)

    @property
    def n_batches(self) -> int:
        """The number of different batches that the inputs rotate among."""
        return 64 if self.is_mlp else 8

    @property
    def hidden(self) -> tuple[int, ...]:
        """Of an MLP: the widths of its hidden layers."""
        return tuple(layer.units for layer in self.network if isinstance(layer, Dense))[:-1]


IMAGE, GREY, LARGE = (32, 32, 3), (28, 28, 1), (224, 224, 3)
TASKS = {
    task.key: task
    for task in (
        *(Task("cnn", "tutorial CNN, training", tutorial_cnn, IMAGE, batch) for batch in (1, 32, 128, 512)),
        Task("vgg", "VGG-like with batch norm, training", vgg, IMAGE, 64),
        Task("resnet20", "pre-activation ResNet-20, training", resnet20, IMAGE, 128),
        *(Task("mlp", "MLP 784-512-512-10, training", mlp, (784,), batch) for batch in (32, 256)),
        Task("tiny", "MLP 4-16-3, training", tiny_mlp, (4,), 16, classes=3),
        Task("strided", "5 x 5 convolutions of stride 2, training", strided_cnn, IMAGE, 64),
        Task("grey", "7 x 7 convolutions of grey images, training", grey_cnn, GREY, 64),
        Task("dilated", "dilations 1, 2 and 4, training", dilated_cnn, IMAGE, 32),
        Task("mobile", "depthwise separable convolutions, training", mobile_net, IMAGE, 32),
        Task("large", "images of 224 x 224, training", large_image_cnn, LARGE, 2),
        Task("gelu", "CNN with LayerNorm and GELU, training", gelu_cnn, IMAGE, 32),
        Task("gelu-mlp", "MLP 784-512-512-10 with LayerNorm and GELU, training", gelu_mlp, (784,), 128),
        *(Task("cnn-infer", "tutorial CNN, inference", tutorial_cnn, IMAGE, n, training=False) for n in (1, 32, 1024)),
    )
}
MEMORY_TASK = TASKS["cnn@512"]
LIMITS_TASK = TASKS["cnn@128"]
LIMITS = {"sgemm": None, "sgemm-1": 1, "product-1": 1, "peak-1": 1}  # and the threads of each, None being --threads


@dataclass
class Built:
    """A task built in one system.

    variants: ways to make the step, by name; the fastest is kept. A step takes the number of the batch.
    finish: wait until all started work is done. steps_per_call: number of batches in one call.
    """

    variants: dict[str, Callable[[int], Any]]
    parameters: int
    finish: Callable[[], Any] = lambda: None
    steps_per_call: int = 1


def make_batches(task: Task) -> list[tuple[Any, Any]]:
    """Random inputs (float32) and labels (int64)."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (task.batch, *task.in_shape)
    return [
        (rng.standard_normal(shape, dtype=np.float32), rng.integers(0, task.classes, task.batch)) for _ in range(task.n_batches)
    ]


@dataclass(frozen=True)
class Product:
    """What a layer with weights costs: its parameters, and the FLOPs of its forward pass for one sample."""

    parameters: int
    flops: int


def products(network: Network, shape: Shape) -> Iterator[Product]:
    """The layers with parameters, in order."""
    for layer in network:
        yield from _products_of(layer, shape)
        shape = out_shape(layer, shape)


def out_shape(layer: Layer, shape: Shape) -> Shape:
    """The shape of one sample after a layer."""
    match layer:
        case Conv():
            reach = layer.dilation * (layer.kernel - 1)
            size = tuple((n + 2 * layer.padding - reach - 1) // layer.stride + 1 for n in shape[:2])
            return (*size, layer.filters)
        case DepthwiseConv():
            return (*((n - 1) // layer.stride + 1 for n in shape[:2]), shape[2])
        case Dense():
            return (layer.units,)
        case MaxPool():
            return (shape[0] // 2, shape[1] // 2, shape[2])
        case GlobalAvgPool():
            return (shape[2],)
        case Flatten():
            return (shape[0] * shape[1] * shape[2],)
        case Residual():
            for inner in layer.main:
                shape = out_shape(inner, shape)
    return shape


def _products_of(layer: Layer, shape: Shape) -> Iterator[Product]:
    match layer:
        case Conv():
            weights = layer.filters * layer.kernel**2 * shape[2]
            height, width, _ = out_shape(layer, shape)
            yield Product(weights + layer.bias * layer.filters, 2 * height * width * weights)
        case Dense():
            yield Product((shape[0] + 1) * layer.units, 2 * shape[0] * layer.units)
        case DepthwiseConv():
            height, width, channels = out_shape(layer, shape)
            yield Product(9 * channels, 2 * height * width * 9 * channels)
        case BatchNorm() | LayerNorm():
            yield Product(2 * shape[-1], 0)
        case Residual():
            yield from products(layer.main, shape)
            yield from products(layer.shortcut, shape)


def count_parameters(task: Task) -> int:
    return sum(product.parameters for product in products(task.network, task.in_shape))


def flops_per_sample(task: Task) -> int:
    """Of a training step, by direct convolution: three times the forward pass, less the first layer's input gradient."""
    costs = [product.flops for product in products(task.network, task.in_shape)]
    return 3 * sum(costs) - costs[0] if task.training else sum(costs)
