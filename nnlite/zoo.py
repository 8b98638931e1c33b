"""Networks from papers and tutorials, each a few lines. Images are bytes 0 ... 255 or on that scale."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from nnlite import layers as nn
from nnlite.arguments import choice, flag, listing, shortened, whole
from nnlite.layers.base import Layer
from nnlite.model import Sequential

CIFAR_MEAN, CIFAR_STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)  # of the training images, by channel
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # as torchvision's networks were trained
IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
IMAGE = (32, 32, 3)
Colours = tuple[float, float, float]
tanh_gelu = partial(nn.GELU, "tanh")


def tutorial_cnn(classes: int = 10, *, seed: int = 0) -> Sequential:
    """The CNN of the TensorFlow tutorial on CIFAR-10: 122,570 parameters (https://www.tensorflow.org/tutorials/images/cnn)."""
    whole("classes", classes, 1)
    init: dict[str, Any] = {"init": "glorot_uniform"}
    return Sequential(
        nn.Normalize(mean=0, std=255),
        nn.Conv2D(32, 3, **init),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Conv2D(64, 3, **init),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Conv2D(64, 3, **init),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dense(64, **init),
        nn.ReLU(),
        nn.Dense(classes, **init),
        input_shape=IMAGE,
        seed=seed,
    )


def airbench(
    widths: tuple[int, int, int] = (64, 256, 256),
    *,
    classes: int = 10,
    seed: int = 0,
    padding: Literal["valid", "same"] = "valid",
    activation: Callable[[], Layer] = tanh_gelu,
) -> Sequential:
    """A whitening convolution and three groups of two convolutions.  Source: Jordan 2024, 94% on CIFAR-10 in 3.29 seconds.

    padding: of the whitening. "valid", as published: the groups see 31 x 31 pixels, then 15 x 15, 7 x 7 and 3 x 3. "same":
    32 x 32, 16 x 16, 8 x 8 and 4 x 4, which tiles of 4 x 4 cover exactly.
    activation: makes the layer after each norm. GELU by tanh, as published; `nn.ReLU` costs less.

    Layer 1 is the whitening: give it its filters, `model[1].W = nn.init.whitening(images)(model[1].W.shape)`, of normalized
    images, and freeze them, `model.freeze("1.W")`. `examples/recipes.py` trains it.
    """
    choice("padding", padding, "valid", "same")
    whole("classes", classes, 1)
    return Sequential(
        nn.Normalize(CIFAR_MEAN, CIFAR_STD),
        nn.Conv2D(24, 2, padding=padding),
        activation(),
        *(layer for width in widths for layer in _airbench_group(width, activation)),
        nn.GlobalMaxPool2D(),
        nn.Normalize(0, widths[-1]),  # the head's inputs are scaled by 1 / width
        nn.Dense(classes, bias=False, init="lecun_uniform"),
        input_shape=IMAGE,
        seed=seed,
    )


def _airbench_group(width: int, activation: Callable[[], Layer]) -> list[Layer]:
    def convolution() -> Layer:
        return nn.Conv2D(width, 3, padding=1, bias=False, init="dirac_uniform")

    def norm() -> Layer:
        return nn.BatchNorm(momentum=0.6, eps=1e-12, scale=False)

    return [convolution(), nn.MaxPool2D(2), norm(), activation(), convolution(), norm(), activation()]


def resnet(
    depth: int = 20,
    *,
    classes: int = 10,
    seed: int = 0,
    preactivation: bool = True,
    projection: bool = True,
    mean: Colours = CIFAR_MEAN,
    std: Colours = CIFAR_STD,
) -> Sequential:
    """The ResNet for CIFAR of depth 6 n + 2: widths 16, 32, 64, n blocks each.

    preactivation: whether norm and ReLU precede their convolution (He et al. 2016), or follow it, as first published (2015).
    projection: of the latter: whether the shortcuts to more channels are convolutions with a norm (option B), or every second
    pixel with zeros for the channels that are new (option A), here a convolution that is frozen.  mean, std: of the images.

    Sources: He et al. 2015, section 4.2; He et al. 2016, Identity Mappings in Deep Residual Networks. Raises ValueError for
    another depth.
    """
    whole("classes", classes, 1)
    flag("preactivation", preactivation), flag("projection", projection)
    n, rest = divmod(int(whole("depth", depth, 8)) - 2, 6)
    if rest:
        raise ValueError(f"the depth of a ResNet for CIFAR is 6 n + 2, such as 20, not {shortened(depth)}")
    strides = [(width, 2 if i == 0 and width > 16 else 1) for width in (16, 32, 64) for i in range(n)]
    stem = nn.Normalize(mean, std), nn.Conv2D(16, 3, padding=1, bias=False)
    if preactivation:
        layers = [*stem, *(_residual(width, stride) for width, stride in strides), nn.BatchNorm(), nn.ReLU()]
    else:
        blocks = [layer for width, stride in strides for layer in _block(width, stride, stride > 1, projection)]
        layers = [*stem, nn.BatchNorm(), nn.ReLU(), *blocks]
    model = Sequential(*layers, nn.GlobalAvgPool2D(), nn.Dense(classes), input_shape=IMAGE, seed=seed)
    if not (preactivation or projection):
        model.freeze("*.shortcut.*")
    return model


def _residual(width: int, stride: int) -> Layer:
    first = nn.BatchNorm(), nn.ReLU(), nn.Conv2D(width, 3, stride=stride, padding=1, bias=False)
    second = nn.BatchNorm(), nn.ReLU(), nn.Conv2D(width, 3, padding=1, bias=False)
    return nn.Residual(*first, *second, shortcut=() if stride == 1 else nn.Conv2D(width, 1, stride=stride, bias=False))


def _block(width: int, stride: int, changes: bool, projection: bool = True, wide: int = 1) -> list[Layer]:
    """Two convolutions of 3 x 3, or, with wide outputs, one of 1 x 1 around each side of one of 3 x 3; and a ReLU."""
    convolutions = (
        [(width, 3, stride), (width, 3, 1)] if wide == 1 else [(width, 1, 1), (width, 3, stride), (wide * width, 1, 1)]
    )
    main = [layer for convolution in convolutions for layer in (*_convolution(*convolution), nn.ReLU())][:-1]
    shortcut: list[Layer] = []
    if changes and projection:
        shortcut = _convolution(wide * width, 1, stride)
    elif changes:
        shortcut = [nn.Conv2D(width, 1, stride=stride, bias=False, init="dirac")]
    return [nn.Residual(*main, shortcut=shortcut), nn.ReLU()]


def _convolution(filters: int, size: int, stride: int) -> list[Layer]:
    return [nn.Conv2D(filters, size, stride=stride, padding=size // 2, bias=False), nn.BatchNorm()]


def imagenet_resnet(depth: int = 18, *, classes: int = 1000, size: int = 224, seed: int = 0) -> Sequential:
    """The ResNet for ImageNet of depth 18, 34, 50, 101 or 152, as torchvision has it: strides are of the 3 x 3 convolutions.

    size: height and width of the images.  Source: He et al. 2015, table 1. Raises ValueError for another depth.
    """
    whole("classes", classes, 1)
    if depth not in IMAGENET_BLOCKS:
        raise ValueError(f"the depth of a ResNet for ImageNet is one of {listing(IMAGENET_BLOCKS)}, not {shortened(depth)}")
    wide = 4 if depth >= 50 else 1
    blocks = [
        layer
        for width, blocks in zip((64, 128, 256, 512), IMAGENET_BLOCKS[depth], strict=True)
        for i in range(blocks)
        for layer in _block(width, 2 if i == 0 and width > 64 else 1, i == 0 and wide * width > 64, wide=wide)
    ]
    return Sequential(
        nn.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        nn.Conv2D(64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.MaxPool2D(3, 2, padding=1),
        *blocks,
        nn.GlobalAvgPool2D(),
        nn.Dense(classes),
        input_shape=(size, size, 3),
        seed=seed,
    )


def vgg_small(widths: tuple[int, ...] = (64, 128, 256), *, classes: int = 10, seed: int = 0) -> Sequential:
    """Two 3 x 3 convolutions with batch norm and a pooling for each width.  Source: Simonyan and Zisserman 2015, section 2."""
    whole("classes", classes, 1)
    layers: list[Layer] = []
    for width in widths:
        layers += [layer for _ in range(2) for layer in (nn.Conv2D(width, 3, padding=1, bias=False), nn.BatchNorm(), nn.ReLU())]
        layers.append(nn.MaxPool2D(2))
    head = nn.Flatten(), nn.Dense(classes)
    return Sequential(nn.Normalize(CIFAR_MEAN, CIFAR_STD), *layers, *head, input_shape=IMAGE, seed=seed)


def mlp(sizes: tuple[int, ...], *, seed: int = 0) -> Sequential:
    """Dense layers with ReLU between them.     sizes: inputs, hidden units, ..., outputs"""
    if not isinstance(sizes, list | tuple) or len(sizes) < 2:
        raise ValueError(f"sizes must be of inputs, hidden units and outputs, such as (784, 256, 10), not {shortened(sizes)}")
    hidden = [layer for units in sizes[1:-1] for layer in (nn.Dense(units), nn.ReLU())]
    return Sequential(*hidden, nn.Dense(sizes[-1], init="lecun_uniform"), input_shape=sizes[:1], seed=seed)
