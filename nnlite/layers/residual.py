"""The residual connection."""

from collections.abc import Sequence
from typing import Any

from nnlite.arguments import shortened
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


class Sum(Layer):
    """y = a_1 + a_2      dJ/da_1 = dJ/da_2 = delta"""

    elementwise, keeps, shares_memory = True, None, False

    def forward(self, a: Array, ctx: Context) -> Array:
        return self.xp.add(*a, out=ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return delta, delta


class Residual(Layer):
    """y = f(a) + s(a),  f = layers, one after another, s = shortcut, the identity where it is empty.

    Backward: dJ/da = f'(delta) + s'(delta), each branch's own backward pass.

    layers: at least one.  shortcut: a layer or a list or tuple of layers, typically Conv2D(n, 1, stride=2), for branches that
    change the shape. Raises ShapeError if the shapes of the branches differ.  Source: He et al. 2015, equations 1 and 2.
    """

    def __init__(self, *layers: Layer, shortcut: Layer | Sequence[Layer] = ()) -> None:
        check_layers("Residual", layers)
        check_layers("the shortcut of Residual", shortcut if isinstance(shortcut, list | tuple) else [shortcut], least=0)
        self.layers, self.shortcut = list(layers), shortcut

    def main_branch(self) -> dict[str, Layer]:
        """The layers of f by name: "0", "1", ..."""
        return {str(i): layer for i, layer in enumerate(self.layers)}

    def shortcut_branch(self) -> dict[str, Layer]:
        """The layers of s by name: "shortcut.0", ..."""
        layers = [self.shortcut] if isinstance(self.shortcut, Layer) else self.shortcut
        return {f"shortcut.{i}": layer for i, layer in enumerate(layers)}

    def children(self) -> dict[str, Layer]:
        return self.main_branch() | self.shortcut_branch()

    def sum(self) -> Sum:
        """The layer that adds the branches."""
        total: Sum = Sum()
        total.backend, total.in_shape, total.out_shape = self.backend, self.out_shape, self.out_shape
        return total

    def build(self, in_shape: Shape) -> Shape:
        f, s = build_chain(self.main_branch(), in_shape), build_chain(self.shortcut_branch(), in_shape)
        if f != s:
            raise ShapeError(f"the branches give {shortened(f)} and, on the shortcut, {shortened(s)}")
        return f
