"""Branches that read the same values: the residual connection, and concatenation."""

from collections.abc import Sequence
from typing import Any

from nnlite.arguments import listing, shortened
from nnlite.backend import Array
from nnlite.errors import ShapeError
from nnlite.layers.base import Context, Layer, Shape


def build_chain(layers: dict[str, Layer], in_shape: Shape) -> Shape:
    """Build layers one after another; a ShapeError names the layer that raised it."""
    shape = in_shape
    for name, layer in layers.items():
        try:
            shape = layer.declare_shapes(shape)
        except ShapeError as error:
            shown = type(layer).__name__ if layer.children() else shortened(layer)
            raise ShapeError(f"layer {name} {shown}: {error}") from None
    return shape


def check_layers(owner: str, layers: Sequence[Any], least: int = 1) -> None:
    """Raise TypeError for anything but layers, ShapeError for fewer than `least`."""
    for layer in layers:
        if not isinstance(layer, Layer):
            raise TypeError(f"{owner} expects layers, such as nn.ReLU(), not {shortened(layer)}")
    if len(layers) < least:
        raise ShapeError(f"{owner} needs at least one layer")


class Branching(Layer):
    """Branches that read the same input, and a layer that joins what they give."""

    def branches_by_name(self) -> list[dict[str, Layer]]:
        """The layers of each branch by name, one after another; the identity where there are none."""
        raise NotImplementedError

    def children(self) -> dict[str, Layer]:
        return {name: layer for branch in self.branches_by_name() for name, layer in branch.items()}

    def join(self) -> Layer:
        """The layer that reads what the branches give, in their order."""
        raise NotImplementedError

    def _joining(self, layer: Layer) -> Layer:
        layer.backend, layer.in_shape, layer.out_shape = self.backend, self.out_shape, self.out_shape
        return layer


class Sum(Layer):
    """y = a_1 + a_2      dJ/da_1 = dJ/da_2 = delta"""

    elementwise, keeps, shares_memory = True, None, False

    def forward(self, a: Array, ctx: Context) -> Array:
        return self.xp.add(*a, out=ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return delta, delta


class Residual(Branching):
    """y = f(a) + s(a),  f = layers, one after another, s = shortcut, the identity where it is empty.

    Backward: dJ/da = f'(delta) + s'(delta), each branch's own backward pass.

    layers: at least one.  shortcut: a layer or a list or tuple of layers, typically Conv2D(n, 1, stride=2), for branches that
    change the shape. Raises ShapeError if the shapes of the branches differ.  Source: He et al. 2015, equations 1 and 2.
    """

    def __init__(self, *layers: Layer, shortcut: Layer | Sequence[Layer] = ()) -> None:
        check_layers("Residual", layers)
        check_layers("the shortcut of Residual", _listed(shortcut), least=0)
        self.layers, self.shortcut = list(layers), shortcut

    def branches_by_name(self) -> list[dict[str, Layer]]:
        """f: "0", "1", ..., and s: "shortcut.0", ..."""
        return [_named("", self.layers), _named("shortcut.", _listed(self.shortcut))]

    def join(self) -> Layer:
        return self._joining(Sum())

    def build(self, in_shape: Shape) -> Shape:
        f, s = (build_chain(branch, in_shape) for branch in self.branches_by_name())
        if f != s:
            raise ShapeError(f"the branches give {shortened(f)} and, on the shortcut, {shortened(s)}")
        return f


class Joined(Layer):
    """y = [a_1, a_2, ...], along the channels.     dJ/da_k: the channels of delta that a_k became     channels: of each a_k"""

    keeps, shares_memory, images = None, False, None

    def __init__(self, channels: Sequence[int]) -> None:
        self.channels = channels

    def forward(self, a: Array, ctx: Context) -> Array:
        return self.xp.concatenate(a, axis=-1, out=ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        """In memory of each branch's own: layers read what is in one piece faster."""
        parts, first = [], 0
        room = ctx.persist if delta.flags.c_contiguous else ctx.persist_batch
        for k, channels in enumerate(self.channels):
            parts.append(room(f"delta {k}", (*delta.shape[:-1], channels), delta.dtype))
            parts[k][...] = delta[..., first : first + channels]
            first += channels
        return parts


class Concat(Branching):
    """y = [f_1(a), f_2(a), ...], one after another along the channels.     f_k(a): (N, ..., C_k)   y: (N, ..., sum of C_k)

    Backward: dJ/da = sum over k of f_k'(the channels of delta that f_k gave), each branch's own backward pass.

    branches: at least two, each a layer or a list or tuple of layers, one after another; the identity where it is empty.
    Raises ShapeError if their shapes differ in more than the channels.  Source: Szegedy et al. 2015, figure 2; with an identity
    Huang et al. 2017, equation 2.
    """

    def __init__(self, *branches: Layer | Sequence[Layer]) -> None:
        for branch in branches:
            check_layers("a branch of Concat", _listed(branch), least=0)
        if len(branches) < 2:
            raise ShapeError("Concat needs at least two branches, each a layer or a list of layers")
        self.branches = [branch if isinstance(branch, Layer) else list(branch) for branch in branches]

    def branches_by_name(self) -> list[dict[str, Layer]]:
        """f_1: "0.0", "0.1", ..., f_2: "1.0", ..."""
        return [_named(f"{k}.", _listed(branch)) for k, branch in enumerate(self.branches)]

    def join(self) -> Layer:
        return self._joining(Joined(self.channels))

    def build(self, in_shape: Shape) -> Shape:
        shapes = [build_chain(branch, in_shape) for branch in self.branches_by_name()]
        if any(not shape or shape[:-1] != shapes[0][:-1] for shape in shapes):
            raise ShapeError(f"the branches give {listing(shapes)}, which differ in more than the last axis, the channels")
        self.channels = [shape[-1] for shape in shapes]
        return (*shapes[0][:-1], sum(self.channels))


def _listed(branch: Layer | Sequence[Layer]) -> Sequence[Layer]:
    return branch if isinstance(branch, list | tuple) else [branch]  # type: ignore[list-item]


def _named(prefix: str, layers: Sequence[Layer]) -> dict[str, Layer]:
    return {f"{prefix}{i}": layer for i, layer in enumerate(layers)}
