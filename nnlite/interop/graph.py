"""A directed graph of layers as layers inside layers: what other libraries' functional models become.

    nodes = [
        Node("conv", ("image",), nn.Conv2D(8, 3, padding=1)),
        Node("relu", ("conv",), nn.ReLU()),
        Node("sum", ("image", "relu"), add),
    ]
    nn.Sequential(*nest(nodes, "image", "sum"), input_shape=(32, 32, 8))        # Residual(Conv2D(8, 3, padding=1), ReLU())

A node is a layer, which reads one value, or a join, which reads several. Its value bears its name. Joins are associative:
inputs that share layers are joined among themselves first, for `add` in any order, for others if they are neighbours.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from itertools import groupby
from typing import NamedTuple

from nnlite.arguments import shortened
from nnlite.errors import FileError
from nnlite.layers import Concat, Normalize, Residual
from nnlite.layers.base import Layer

Join = Callable[[list[list[Layer]]], list[Layer]]  # from branches, of which each is empty or a chain, to a chain


class Node(NamedTuple):
    """A value, what it is made from, and the layer or the join that makes it."""

    name: str
    inputs: tuple[str, ...]
    makes: Layer | Join


def add(branches: list[list[Layer]]) -> list[Layer]:
    """The join of a sum: y = f_1(a) + f_2(a) + ..., where an empty branch is a itself."""
    bodies = [branch for branch in branches if branch]
    same = len(branches) - len(bodies)
    rest: list[Layer] = [Normalize(0, 1 / same)] if same > 1 else [] if same else bodies.pop()
    for body in reversed(bodies):
        rest = [Residual(*body, shortcut=rest)]
    return rest


def concat(branches: list[list[Layer]]) -> list[Layer]:
    """The join of channels: y = [f_1(a), f_2(a), ...], where an empty branch is a itself."""
    return [Concat(*branches)] if len(branches) > 1 else branches[0]


def nest(nodes: Iterable[Node], start: str, end: str) -> list[Layer]:
    """The layers from the value `start`, which no node makes, to the value `end`, one after another, joined branches nested.

    nodes: each behind those that it reads; what does not lead to `end` is left out. Raises FileError, naming the node, for
    one that reads an unknown value, and for branches that share a layer: nested layers cannot show them.
    """
    return _Graph(nodes, start).chain(start, end, set())


class _Graph:
    """above: of each value the last one before it on all ways from the start; depth: how many there are."""

    def __init__(self, nodes: Iterable[Node], start: str) -> None:
        self.nodes: dict[str, Node] = {}
        self.above: dict[str, str] = {}
        self.depth = {start: 0}
        for node in nodes:
            self._enter(node)

    def _enter(self, node: Node) -> None:
        unknown = [name for name in node.inputs if name not in self.depth]
        if unknown or not node.inputs:
            raise FileError(f"{shortened(node.name)} reads {shortened(unknown or 'nothing')}: no node before it makes that")
        above = reduce(self._last_before_both, node.inputs)
        self.nodes[node.name], self.above[node.name], self.depth[node.name] = node, above, self.depth[above] + 1

    def _last_before_both(self, a: str, b: str) -> str:
        while a != b:
            a, b = (self.above[a], b) if self.depth[a] >= self.depth[b] else (a, self.above[b])
        return a

    def chain(self, start: str, end: str, used: set[str]) -> list[Layer]:
        """The layers from one value to another that each way from the start to it passes.  used: nodes that have a place."""
        links = list[list[Layer]]()
        while end != start:
            if end in used:
                raise FileError(
                    f"{shortened(end)} is read by branches that are joined in different places: nnlite nests branches, "
                    "which share no layer"
                )
            used.add(end)
            node, end = self.nodes.get(end), self.above.get(end, "")
            if node is None:
                raise FileError("the outputs do not depend on the inputs")
            if isinstance(node.makes, Layer):
                links.append([node.makes])
            else:
                links.append(self._joined(node.makes, end, node.inputs, used))
        return [layer for link in reversed(links) for layer in link]

    def _joined(self, join: Join, start: str, ends: Sequence[str], used: set[str]) -> list[Layer]:
        """The join of what leads from a value to others, of which those that share layers become one branch."""
        below = {end: self._below(start, end) for end in ends}
        places = {end: i for i, end in enumerate(below.values())}
        ends = sorted(ends, key=lambda end: places[below[end]]) if join is add else ends
        branches = list[list[Layer]]()
        for first, group in groupby(ends, below.__getitem__):
            inner = list(group)
            if first == start or len(inner) == 1:
                branches += [self.chain(start, end, used) for end in inner]
            else:
                last = reduce(self._last_before_both, inner)
                branches.append(self.chain(start, last, used) + self._joined(join, last, inner, used))
        return join(branches)

    def _below(self, start: str, end: str) -> str:
        """The first value behind the start that all ways to the end pass."""
        first = end
        while end != start:
            first, end = end, self.above[end]
        return first
