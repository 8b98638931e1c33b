"""ONNX's own tests of single nodes, for the operators that are read: they pass, or have one of a few reasons."""

import re
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import nnlite as nn

pytest.importorskip("onnx", minversion="1.17")

import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from nnlite.interop.onnx import from_onnx

OPERATORS = {
    "Conv", "Gemm", "MatMul", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization",
    "LayerNormalization", "Relu", "LeakyRelu", "PRelu", "Elu", "Softplus", "Sigmoid", "Tanh", "Gelu", "Swish", "Softmax",
    "Flatten", "Reshape", "Transpose", "Add", "Sum", "Concat", "Resize", "Upsample", "Mul", "Dropout", "Identity", "Constant",
    "ConstantOfShape", "Unsqueeze", "Pad",
}  # fmt: skip


class Case(NamedTuple):
    """A model, and pairs of inputs and outputs."""

    name: str
    model: Any
    data_sets: list


def stored(case):
    """A case whose model and arrays earlier versions of onnx have in files; other things than arrays are None."""
    if case.model is not None:
        return Case(case.name, case.model, case.data_sets)
    folder = Path(case.model_dir)
    data_sets = [
        tuple([arrays(path) for path in sorted(part.glob(f"{kind}_*.pb"))] for kind in ("input", "output"))
        for part in folder.glob("test_data_set_*")
    ]
    return Case(case.name, onnx.load(folder / "model.onnx"), data_sets)


def arrays(path):
    with suppress(Exception):
        return numpy_helper.to_array(onnx.load_tensor(path))


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its generators divide by zero
    CASES = {case.name: case for case in map(stored, load_model_tests(kind="node"))}
CASES = {name: case for name, case in CASES.items() if {node.op_type for node in case.model.graph.node} <= OPERATORS}


REASONS = {  # why a case is refused, by what the error says
    "it uses the axis of the batch as an ordinary one": "axis of the batch|over the batch|before the batch|samples by column",
    "it has several inputs of samples": "a constant of shape|is a constant|is no matrix|sample to sample|of such inputs",
    "it has no input, or one that is no array": r"the inputs \[\]|no array|unless its inputs are constants",
    "it is in training mode": "training mode",
    "it pools over three axes of pixels": "3 axes of pixels",
    "it resizes by factors that are not whole, or other pixels": "not whole|Upsample2D|aspect ratio",
    "it adds a border that no window takes up": "of one number|padded",
    "no layer computes its function": "no layer computes this function",
}
COUNTS = {  # of each reason and of those that pass, by the version of onnx
    "1.23": dict(zip((*REASONS, "it passes"), (25, 40, 6, 8, 10, 35, 6, 1, 122), strict=True))
}


def loaded(case, names, rank, others):
    """The model for the likelier layout, and whether it is NCHW: rank 3 is rather (N, L, C)."""
    inputs = dict(zip(names[1:], others, strict=True))
    first, second = ("NCHW", "NHWC") if rank == 4 else ("NHWC", "NCHW")
    try:
        return from_onnx(case.model, inputs=inputs, layout=first), first == "NCHW"
    except nn.FileError:
        return from_onnx(case.model, inputs=inputs, layout=second), second == "NCHW"


def attempt(case):
    """Run a case: its first input is x, the others are weights; images have their channels last here."""
    names = [entry.name for entry in case.model.graph.input]
    for given, (expected, *_) in case.data_sets:
        x, *others = given or [np.zeros(1)]
        model, turned = loaded(case, names, np.ndim(x), others)
        x = np.moveaxis(x, 1, -1) if turned and x.ndim > 2 else x
        z = model(x.reshape(len(x), *model.in_shape))
        z = np.moveaxis(z, -1, 1) if turned and expected.ndim > 2 and "transpose" not in case.name else z
        np.testing.assert_allclose(z.reshape(expected.shape), expected, rtol=1e-3, atol=1e-6)


def reason(case):
    """ "it passes", or why it is refused; of other errors all that they say."""
    try:
        attempt(case)
    except nn.FileError as error:
        found = [why for why, says in REASONS.items() if re.search(says, str(error))]
        return found[0] if found else f"{case.name}: {error}"
    return "it passes"


def test_all_nodes_pass_or_have_a_reason():
    counts = Counter(reason(case) for case in CASES.values())
    assert counts["it passes"] >= 98
    version = ".".join(onnx.__version__.split(".")[:2])
    assert dict(counts) == COUNTS.get(version, {why: n for why, n in counts.items() if why in (*REASONS, "it passes")})
