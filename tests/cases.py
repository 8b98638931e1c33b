"""The tables of layer cases. A new layer is one row of CASES: a name, and a strategy that draws (layers, shape of a sample).

A new activation is one row of ACTIVATIONS for each form of it: the layer, what it computes of an array, and its limits.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend import Window

small = st.integers(1, 3)
yes_no = st.booleans()
pairs = st.one_of(small, st.tuples(small, small))
sizes = st.tuples(st.integers(5, 8), st.integers(5, 8))


@st.composite
def windows(draw):
    """A sliding window that fits its image of one channel."""
    shape = draw(st.tuples(st.integers(2, 9), st.integers(2, 9), st.just(1)))
    arguments = draw(pairs), draw(pairs), draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(yes_no)
    try:
        return Window.of(shape, *arguments)
    except nn.ShapeError:
        reject()


@st.composite
def convolution(draw, depthwise=False):
    groups = draw(st.integers(1, 3))
    channels = groups if depthwise else groups * draw(st.integers(1, 2))
    layer = nn.Conv2D(
        filters=groups * draw(st.integers(1, 2)),
        kernel_size=draw(pairs),
        stride=draw(pairs),
        padding=draw(
            st.one_of(
                st.integers(0, 2),
                st.tuples(st.integers(0, 2), st.integers(0, 2)),
                st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
                st.sampled_from(["same", "valid"]),
            )
        ),
        dilation=draw(st.one_of(st.integers(1, 2), st.tuples(st.integers(1, 2), st.integers(1, 2)))),
        groups=groups,
        bias=draw(st.booleans()),
    )
    return [layer], (*draw(sizes), channels)


@st.composite
def three_by_three(draw):
    """What fast algorithms are written for: 3x3, stride 1, with all paddings and odd sizes."""
    padding = draw(st.sampled_from([0, 1, "same", (1, 0), ((0, 1), (2, 0))]))
    return [nn.Conv2D(draw(st.integers(1, 5)), 3, padding=padding)], (
        *draw(st.tuples(st.integers(3, 11), st.integers(3, 11))),
        draw(st.integers(1, 5)),
    )


@st.composite
def one_by_one(draw):
    """Plain products, in groups: blocks of groups with a plan that keeps the filters as they are."""
    groups = draw(st.integers(1, 3))
    filters = groups * draw(st.integers(1, 2))
    return [nn.Conv2D(filters, 1, groups=groups)], (*draw(sizes), groups * draw(st.integers(1, 2)))


@st.composite
def pooling(draw, kind):
    size = draw(st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))))
    height, width = (size, size) if isinstance(size, int) else size
    stride = draw(st.one_of(st.none(), pairs))
    rows, columns = st.integers(0, height - 1), st.integers(0, width - 1)
    sides = st.tuples(st.tuples(rows, rows), st.tuples(columns, columns))
    padding = draw(st.one_of(st.integers(0, min(height, width) - 1), st.tuples(rows, columns), sides))
    options = {"count_padding": draw(yes_no)} if kind is nn.AvgPool2D else {}
    dilation = draw(st.sampled_from([1, 1, 2, (1, 2)]))
    return [kind(size, stride, padding=padding, dilation=dilation, ceil_mode=draw(yes_no), **options)], (
        *draw(sizes),
        draw(small),
    )


@st.composite
def sequences(draw, make):
    """A layer of sequences: `make` draws it from a kernel, what all have, and the padding that it may have."""
    size = draw(small)
    padding = draw(st.one_of(st.integers(0, size - 1), st.tuples(*[st.integers(0, size - 1)] * 2), st.just("same")))
    options = {"stride": draw(small), "padding": padding, "dilation": draw(st.integers(1, 2))}
    channels = draw(st.sampled_from([1, 2, 4]))
    return [make(draw, size, channels, options)], (draw(st.integers(5, 9)), channels)


def conv1d(draw, size, channels, options):
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if channels % g == 0]))
    return nn.Conv1D(groups * draw(st.integers(1, 2)), size, groups=groups, bias=draw(yes_no), **options)


@st.composite
def large_pooling(draw):
    """Windows of many pixels: overlapping, padded, far apart; or side by side, up to the whole image."""
    height, width = draw(st.integers(17, 20)), draw(st.integers(17, 40))
    shape = height, width, draw(st.integers(1, 2))
    if draw(st.booleans()):
        return [nn.MaxPool2D(draw(st.sampled_from([4, (4, 6), 8, (16, 17), 17, (height, width)])))], shape
    size = draw(st.sampled_from([4, 5, (4, 6), 7, (3, 9), (2, 16), (9, 3), (8, 8), 16, (16, 17)]))
    padding, stride = draw(st.sampled_from([0, 1, (1, 0), (0, 1)])), draw(st.sampled_from([1, 3, (2, 5), 17]))
    dilation = draw(st.sampled_from([1, 2])) if size in (5, 7, (8, 8)) else 1
    return [nn.MaxPool2D(size, stride, padding=padding, dilation=dilation, ceil_mode=draw(yes_no))], shape


@st.composite
def options(draw, kind, shapes, **choices):
    return [kind(**{name: draw(values) for name, values in choices.items()})], draw(st.sampled_from(shapes))


def fixed(make, *shapes):
    """Layers without drawn arguments, on each of these shapes."""
    return st.sampled_from(shapes).map(lambda shape: (make(), shape))


ANY = ((4,), (3, 2, 5))
IMAGES = ((4, 3, 2), (5, 5, 3))


def small_cnn():
    return [
        nn.Normalize((1.0, 2.0, 3.0), 2.0),
        nn.Conv2D(4, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Conv2D(6, 2),
        nn.GELU(),
        nn.Flatten(),
        nn.Dense(5),
        nn.Tanh(),
        nn.Dense(3),
    ]


def sequence_net():
    return [
        nn.Conv1D(4, 3, padding="same"),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.Residual(nn.Conv1D(4, 3, padding=1), nn.PReLU(), nn.Concat([], nn.Conv1D(2, 1)), nn.Conv1D(4, 1, groups=2)),
        nn.MaxPool1D(2),
        nn.Flatten(),
        nn.Dense(3),
    ]


def embedding_net():
    return [nn.Embedding(4, 3), nn.Conv1D(4, 3, padding=1), nn.BatchNorm(), nn.Tanh(), nn.GlobalMaxPool1D(), nn.Dense(3)]


def residual_net():
    return [
        nn.Conv2D(4, 3, padding=1, bias=False),
        nn.Residual(
            nn.BatchNorm(), nn.ReLU(), nn.Conv2D(4, 3, padding=1), nn.BatchNorm(), nn.ReLU(), nn.Conv2D(4, 3, padding=1)
        ),
        nn.Residual(
            nn.ReLU(),
            nn.Conv2D(6, 3, stride=2, padding=1),
            nn.Residual(nn.SiLU(), nn.Conv2D(6, 1)),
            nn.BatchNorm(scale=False),
            shortcut=[nn.Conv2D(6, 1, stride=2), nn.BatchNorm()],
        ),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.GlobalAvgPool2D(),
        nn.Dense(4),
        nn.BatchNorm(),
        nn.LeakyReLU(),
        nn.Dense(3),
    ]


def nested():
    inner = nn.Sequential(nn.Dense(6), nn.BatchNorm(), nn.Sequential(nn.ReLU(), nn.Dropout(0.2)))
    return [inner, nn.Residual(nn.Sequential(nn.Dense(6), nn.Sigmoid())), nn.LayerNorm(), nn.Dense(3), nn.Softmax()]


def unet():
    """Branches in branches, one of them the identity, with a barrier inside."""
    inner = [nn.MaxPool2D(2), nn.Conv2D(4, 3, padding=1), nn.BatchNorm(), nn.ReLU(), nn.Upsample2D(2)]
    return [
        nn.Conv2D(3, 3, padding="same"),
        nn.Concat([], inner),
        nn.Residual(
            nn.Concat(nn.Conv2D(3, 1), [nn.BatchNorm(), nn.Concat(nn.ReLU(), nn.Conv2D(1, 3, padding=1))], []),
            shortcut=nn.Conv2D(18, 1),
        ),
        nn.BatchNorm(),
        nn.Tanh(),  # the mean of one normalised image would be 0, whatever the image
        nn.GlobalAvgPool2D(),
        nn.Dense(3),
    ]


class Activation(NamedTuple):
    """y = f(a), value by value.  limits: those of y where a is minus and plus infinity."""

    layer: nn.Layer
    f: Callable[[Any], Any]
    limits: tuple[float, float]


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def Phi(a):
    return np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in a])


def gelu_tanh(a):
    return a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))) / 2


ACTIVATIONS = [
    Activation(nn.ReLU(), lambda a: np.where(a > 0, a, 0), (0, np.inf)),
    Activation(nn.LeakyReLU(), lambda a: np.where(a > 0, a, 0.01 * a), (-np.inf, np.inf)),
    Activation(nn.LeakyReLU(0.3), lambda a: np.where(a > 0, a, 0.3 * a), (-np.inf, np.inf)),
    Activation(nn.LeakyReLU(0.0), lambda a: np.where(a > 0, a, 0), (0, np.inf)),
    Activation(nn.Sigmoid(), sigmoid, (0, 1)),
    Activation(nn.Tanh(), np.tanh, (-1, 1)),
    Activation(nn.GELU(), lambda a: a * Phi(a), (0, np.inf)),
    Activation(nn.GELU("tanh"), gelu_tanh, (0, np.inf)),
    Activation(nn.ELU(), lambda a: np.where(a > 0, a, np.exp(a) - 1), (-1, np.inf)),
    Activation(nn.ELU(0.5), lambda a: np.where(a > 0, a, 0.5 * (np.exp(a) - 1)), (-0.5, np.inf)),
    Activation(nn.Softplus(), lambda a: np.log(1 + np.exp(a)), (0, np.inf)),
    Activation(nn.SiLU(), lambda a: a * sigmoid(a), (0, np.inf)),
]


def forms_of(name):
    """One of the forms of an activation."""
    layers = [row.layer for row in ACTIVATIONS if type(row.layer).__name__ == name]
    drawn = st.sampled_from([layer.config() for layer in layers])
    return st.tuples(drawn, st.sampled_from(ANY)).map(lambda v: ([getattr(nn, name)(**v[0])], v[1]))


CASES = {
    **{name: forms_of(name) for name in dict.fromkeys(type(row.layer).__name__ for row in ACTIVATIONS)},
    "Dense": st.tuples(st.integers(1, 5), st.integers(1, 5), yes_no).map(lambda v: ([nn.Dense(v[0], bias=v[2])], (v[1],))),
    "Conv2D": convolution(),
    "Conv2D depthwise": convolution(depthwise=True),
    "Conv2D 3x3": three_by_three(),
    "Conv2D 1x1": one_by_one(),
    "DepthwiseConv2D": options(
        nn.DepthwiseConv2D, IMAGES, kernel_size=pairs, multiplier=small, padding=st.sampled_from([1, "same"]), bias=yes_no
    ),
    "Conv1D": sequences(conv1d),
    "MaxPool1D": sequences(lambda draw, size, _, options: nn.MaxPool1D(size, ceil_mode=draw(yes_no), **options)),
    "AvgPool1D": sequences(
        lambda draw, size, _, options: nn.AvgPool1D(size, ceil_mode=draw(yes_no), count_padding=draw(yes_no), **options)
    ),
    "GlobalMaxPool1D": fixed(lambda: [nn.GlobalMaxPool1D()], (5, 2), (1, 3), (7, 1)),
    "MaxPool2D": pooling(nn.MaxPool2D),
    "MaxPool2D large": large_pooling(),
    "AvgPool2D": pooling(nn.AvgPool2D),
    "GlobalAvgPool2D": fixed(lambda: [nn.GlobalAvgPool2D()], *IMAGES),
    "GlobalMaxPool2D": fixed(lambda: [nn.GlobalMaxPool2D()], *IMAGES),
    "Softmax": fixed(lambda: [nn.Softmax()], *ANY),
    "Flatten": fixed(lambda: [nn.Flatten()], *ANY),
    "Reshape": fixed(lambda: [nn.Reshape((2, 1, -1))], (4,), (3, 2, 5)),
    "Normalize": options(
        nn.Normalize, ((4, 3, 2), (2,)), mean=st.sampled_from([0.5, (1.0, -1.0)]), std=st.sampled_from([2.0, (0.5, 3.0)])
    ),
    "Dropout": options(nn.Dropout, ANY, rate=st.sampled_from([0.0, 0.3, 0.9])),
    "SpatialDropout2D": options(nn.SpatialDropout2D, IMAGES, rate=st.sampled_from([0.0, 0.3, 0.9])),
    "PReLU": options(nn.PReLU, ANY, slope=st.sampled_from([0.25, -0.5, 1.5]), shared=yes_no),
    "BatchNorm": options(nn.BatchNorm, (*ANY, (3, 2)), scale=yes_no, shift=yes_no),
    "LayerNorm": options(nn.LayerNorm, ANY, scale=yes_no, shift=yes_no),
    "GroupNorm": options(
        nn.GroupNorm, ((4,), (5, 4), (3, 2, 8)), groups=st.sampled_from([1, 2, 4]), scale=yes_no, shift=yes_no
    ),
    "Residual": fixed(lambda: [nn.Residual(nn.Dense(4), nn.Tanh()), nn.Residual(nn.Dense(2), shortcut=nn.Dense(2))], (4,)),
    "Concat": fixed(
        lambda: [
            nn.Concat(nn.Dense(2), [], [nn.Tanh(), nn.Dense(3), nn.Sigmoid()], []),
            nn.Concat([], nn.Dense(2)),
            nn.Dense(2),
        ],
        (4,),
    ),
    "Upsample2D": options(
        nn.Upsample2D, (*IMAGES, (1, 3, 2), (2, 1, 1)), factor=pairs, mode=st.sampled_from(["nearest", "bilinear"])
    ),
    "U-Net": fixed(unet, (2, 4, 2)),
    "sequences": fixed(sequence_net, (9, 2)),
    "Embedding": st.tuples(st.integers(1, 5), small, st.sampled_from([(), (1,), (4,), (2, 3)])).map(
        lambda v: ([nn.Embedding(v[0], v[1])], v[2])
    ),
    "Embedding net": fixed(embedding_net, (6,)),
    "small CNN": fixed(small_cnn, (6, 7, 3)),
    "residual net": fixed(residual_net, (6, 5, 3)),
    "nested": fixed(nested, (4,)),
}
OF_IDS = {"Embedding", "Embedding net"}
OF_REALS = sorted(CASES.keys() - OF_IDS)
