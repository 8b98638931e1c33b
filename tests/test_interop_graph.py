"""A graph of layers becomes layers inside layers, or is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlite as nn
from nnlite.interop.graph import Node, add, concat, nest

rng = np.random.default_rng(0)


def dense(name, reads, units=3):
    return Node(name, (reads,), nn.Dense(units, init="lecun_normal"))


def value(node, a):
    """What a node makes of its inputs: the reference."""
    if node.makes in (add, concat):
        return sum(a) if node.makes is add else np.concatenate(a, axis=-1)
    return a[0] @ node.makes.W.T + node.makes.b


def agree(nodes, end):
    model = nn.Sequential(*nest(nodes, "x", end), input_shape=(3,), dtype="float64")
    x = rng.standard_normal((5, 3))
    values = {"x": x}
    for node in nodes:
        values[node.name] = value(node, [values[name] for name in node.inputs]) if used(node, model) else None
    np.testing.assert_allclose(model(x), values[end], rtol=1e-12)
    return model


def used(node, model):
    return node.makes in (add, concat) or "W" in node.makes.__dict__


def test_a_chain():
    model = agree([dense("a", "x"), dense("b", "a"), dense("not read", "a")], "b")
    assert [type(layer) for layer in model.layers] == [nn.Dense, nn.Dense]


def test_a_sum_is_a_residual():
    model = agree([dense("a", "x"), Node("s", ("a", "x"), add), dense("b", "s")], "b")
    assert repr(model.layers[0]) == "Residual(Dense(3, init='lecun_normal'))"


def test_branches_inside_branches():
    nodes = [
        dense("a", "x"),
        dense("b", "a"),
        dense("c", "a"),
        Node("inner", ("b", "c"), add),
        dense("d", "inner"),
        Node("middle", ("d", "a", "a"), add),
        Node("outer", ("x", "middle"), add),
    ]
    agree(nodes, "outer")


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_a_value_added_to_itself(n):
    agree([dense("a", "x"), Node("s", ("a",) * n, add)], "s")


def test_a_sum_of_many():
    nodes = [dense(name, "x") for name in "abcd"]
    agree([*nodes, Node("s", ("a", "x", "b", "c", "x", "d"), add)], "s")


def test_inputs_that_share_layers_are_joined_first():
    nodes = [dense("a", "x"), dense("b", "a"), dense("c", "x"), dense("d", "b"), Node("s", ("b", "c", "a", "d", "a", "x"), add)]
    agree(nodes, "s")
    nodes[-1] = Node("s", ("x", "a", "b", "d", "c"), concat)
    agree(nodes, "s")
    nodes[-1] = Node("s", ("a", "c", "b"), concat)
    with pytest.raises(nn.FileError, match="'a' is read by branches"):
        nest(nodes, "x", "s")


@st.composite
def series_parallel(draw):
    """A chain of layers and of sums whose branches are such chains, and the nodes in order."""
    nodes = []

    def chain(start, depth):
        for _ in range(draw(st.integers(0, 3))):
            name = f"v{len(nodes)}"
            if depth and draw(st.booleans()):
                ends = tuple(chain(start, depth - 1) for _ in range(draw(st.integers(1, 3))))
                name = f"v{len(nodes)}"
                nodes.append(Node(name, ends, add))
            else:
                nodes.append(dense(name, start))
            start = name
        return start

    end = chain(chain("x", 2), 2)
    nodes.append(dense("end", end))
    return nodes


@given(series_parallel())
@settings(max_examples=50)
def test_whatever_is_nested(nodes):
    agree(nodes, "end")


def test_branches_that_cross_are_refused():
    nodes = [
        dense("a", "x"),
        dense("b", "a"),
        Node("s", ("a", "b"), add),
        dense("c", "x"),
        Node("t", ("c", "b"), add),
        Node("u", ("s", "t"), add),
    ]
    with pytest.raises(nn.FileError, match="'b' is read by branches that are joined in different places"):
        nest(nodes, "x", "u")


def test_unknown_values_are_refused():
    with pytest.raises(nn.FileError, match=r"'b' reads \['a'\]: no node before it"):
        nest([dense("b", "a"), dense("a", "x")], "x", "b")
    with pytest.raises(nn.FileError, match="'b' reads 'nothing'"):
        nest([Node("b", (), add)], "x", "b")
    with pytest.raises(nn.FileError, match="do not depend"):
        nest([dense("a", "x")], "x", "z")
