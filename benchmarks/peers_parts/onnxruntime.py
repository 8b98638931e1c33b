"""Inference of `peers.py` in onnxruntime, of a model written with `onnx.helper`. Images are (N, C, H, W) there."""

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from peers_parts import tasks as net
from peers_parts.tasks import Built, Shape, Task


def build(task: Task, batches: list[tuple[Any, Any]], threads: int, system: str) -> Built:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    model = export(task)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    data = [np.ascontiguousarray(x.transpose(0, 3, 1, 2)) for x, _ in batches]
    parameters = sum(int(np.prod(values.dims)) for values in model.graph.initializer)
    return Built({"run": lambda i: session.run(None, {"a0": data[i]})}, parameters)


def export(task: Task) -> onnx.ModelProto:
    """The network with random weights. The value after layer i is called a<i + 1>."""
    nodes, weights, shape = [], [], task.in_shape
    for i, layer in enumerate(task.network):
        operator, attributes, values = translate(layer, shape)
        names = [f"w{i}.{j}" for j in range(len(values))]
        weights += [numpy_helper.from_array(value, name) for value, name in zip(values, names, strict=True)]
        nodes.append(helper.make_node(operator, [f"a{i}", *names], [f"a{i + 1}"], **attributes))
        shape = net.out_shape(layer, shape)
    height, width, channels = task.in_shape
    inputs = [helper.make_tensor_value_info("a0", onnx.TensorProto.FLOAT, ["n", channels, height, width])]
    outputs = [helper.make_tensor_value_info(f"a{len(nodes)}", onnx.TensorProto.FLOAT, ["n", *shape])]
    graph = helper.make_graph(nodes, task.name, inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def translate(layer: net.Layer, shape: Shape) -> tuple[str, dict[str, Any], list[Any]]:
    """The operator, its attributes and its weights."""
    match layer:
        case net.Conv():
            values = [random(layer.filters, shape[2], layer.kernel, layer.kernel), random(layer.filters)]
            return "Conv", {"strides": [layer.stride] * 2, "pads": [layer.padding] * 4}, values
        case net.Dense():
            return "Gemm", {"transB": 1}, [random(layer.units, shape[0]), random(layer.units)]
        case net.ReLU():
            return "Relu", {}, []
        case net.MaxPool():
            return "MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}, []
        case net.Flatten():
            return "Flatten", {}, []
    raise ValueError(f"no translation of {layer}")


_seeds = itertools.count()


def random(*shape: int) -> Any:
    scale = np.float32((2 / max(1, np.prod(shape[1:]))) ** 0.5)
    return scale * np.random.default_rng(next(_seeds)).standard_normal(shape, dtype=np.float32)
