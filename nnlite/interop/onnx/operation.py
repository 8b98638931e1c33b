"""A node of a file: an operator with its attributes."""

from typing import Any

from onnx import NodeProto, helper


class Unsupported(Exception):
    """Why a node has no counterpart here.   nodes: those that have none, if not the one that was read."""

    def __init__(self, why: str, nodes: "tuple[Operation, ...]" = ()) -> None:
        super().__init__(why)
        self.nodes = nodes


class Operation:
    """name, kind: of the node and its operator.   inputs: names, "" for one left out.   version: of the operators."""

    def __init__(self, node: NodeProto, version: int) -> None:
        self.kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        self.inputs, self.outputs, self.version = list(node.input), list(node.output), version
        self.name = node.name or (node.output[0] if node.output else "")
        self._attributes = {attribute.name: attribute for attribute in node.attribute}

    def attribute(self, name: str, default: Any = None) -> Any:
        """Its value; texts as `str`."""
        if name not in self._attributes:
            return default
        value = helper.get_attribute_value(self._attributes[name])
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def has(self, name: str) -> bool:
        """Whether the file gives the attribute."""
        return name in self._attributes
