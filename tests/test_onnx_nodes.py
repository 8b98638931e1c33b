"""ONNX's own tests of single nodes, for the operators that are read: they pass, or have one of a few reasons."""

import warnings

import numpy as np
import pytest

pytest.importorskip("onnx", minversion="1.17")

from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from nnlite.interop.onnx import from_onnx

OPERATORS = {
    "Conv", "Gemm", "MatMul", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization",
    "LayerNormalization", "Relu", "LeakyRelu", "PRelu", "Elu", "Softplus", "Sigmoid", "Tanh", "Gelu", "Swish", "Softmax",
    "Flatten", "Reshape", "Transpose", "Add", "Sum", "Concat", "Resize", "Upsample", "Mul", "Dropout", "Identity", "Constant",
    "ConstantOfShape", "Unsqueeze", "Pad",
}  # fmt: skip


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its generators divide by zero
    CASES = {case.name: case for case in load_model_tests(kind="node")}
CASES = {name: case for name, case in CASES.items() if {node.op_type for node in case.model.graph.node} <= OPERATORS}


def attempt(case):
    """Run a case: the first input is x, the others are constants."""
    graph = case.model.graph
    for given, expected in case.data_sets:
        given = [v if isinstance(v, np.ndarray | np.generic | list) else numpy_helper.to_array(v) for v in given]
        x, *others = given
        names = [entry.name for entry in graph.input]
        model = from_onnx(case.model, inputs=dict(zip(names[1:], others, strict=True)))
        if x.ndim == 1 + len(model.in_shape) and x.shape[1:] != model.in_shape:
            x = np.moveaxis(x, 1, -1)
        z = model(x.reshape(len(x), *model.in_shape))
        t = np.asarray(expected[0])
        if z.shape != t.shape and t.ndim > 2:
            z = np.moveaxis(z, -1, 1)
        np.testing.assert_allclose(z.reshape(t.shape), t, rtol=1e-3, atol=1e-6)
