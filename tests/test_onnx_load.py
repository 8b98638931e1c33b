"""ONNX files become models that compute what onnxruntime computes, and train; what cannot be read is refused."""

from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlite as nn

pytest.importorskip("onnx", minversion="1.17")
onnxruntime = pytest.importorskip("onnxruntime")

import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from test_onnx import ZOO, settle  # noqa: E402

from nnlite.interop.onnx import export, from_onnx, load, to_onnx  # noqa: E402

rng = np.random.default_rng(0)
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def normal(*shape):
    return rng.standard_normal(shape).astype("float32")


def graph(shape, nodes, opset=17, output=None, **constants):
    """A file's model of one input "x". nodes: (operator, inputs, output, attributes)."""
    made = [helper.make_node(kind, inputs.split(), [out], **attributes) for kind, inputs, out, attributes in nodes]
    arrays = [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])
    z = helper.make_tensor_value_info(output or nodes[-1][2], TensorProto.FLOAT, None)
    whole = helper.make_graph(made, "g", [x], [z], arrays)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def infer(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def agree(model, shape=None, n=3, tolerance=1e-5, **options):
    """The loaded model, which gives what onnxruntime gives; images (N, C, H, W) there."""
    loaded = from_onnx(model, **options)
    x = normal(n, *(shape or [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]))
    z = infer(model, x)
    ours = loaded(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x)
    z = z.transpose(0, 2, 3, 1) if z.ndim == 4 else z
    assert ours.shape == z.shape
    np.testing.assert_allclose(ours, z, rtol=1e-4, atol=tolerance * max(1, abs(z).max()))
    return loaded


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


# ---- there and back


def returns(model, layout):
    back = from_onnx(to_onnx(model, layout))
    assert back.in_shape == model.in_shape and back.out_shape == model.out_shape
    x = normal(5, *model.in_shape)
    z = model(x)
    np.testing.assert_allclose(back(x), z, rtol=0, atol=1e-6 * max(1, abs(z).max()))
    return back


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_networks_of_the_zoo_return(name, layout):
    model = settle(ZOO[name]())
    back = returns(model, layout)
    assert kinds(back) == kinds(model)


@pytest.mark.parametrize("case", sorted(CASES))
@given(data=st.data(), layout=st.sampled_from(["NHWC", "NCHW"]))
@settings(max_examples=8)
def test_every_layer_returns(case, data, layout):
    layers, shape = data.draw(CASES[case])
    model = settle(nn.Sequential(*layers, input_shape=shape))
    try:
        made = to_onnx(model, layout)
    except nn.StateError:
        return  # no operator for it
    assert len(shape) != 3 or from_onnx(made, layout=layout).in_shape == shape
    if len(shape) != 3 or layout == "NHWC" or any(isinstance(layer, nn.Conv2D) for layer in layers):
        returns(model, layout)


def test_a_file_returns_and_trains(tmp_path):
    model = settle(nn.zoo.resnet(8))
    export(model, tmp_path / "m.onnx")
    back = load(tmp_path / "m.onnx")
    x, t = rng.integers(0, 256, (64, 32, 32, 3)).astype("uint8"), np.arange(64) % 2
    np.testing.assert_allclose(back(x), model(x), rtol=0, atol=1e-5)
    history = nn.Trainer(back, nn.CrossEntropy(), nn.Adam(1e-2)).fit((x, t), epochs=8, batch_size=16, progress=False)
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def test_a_model_in_float64_returns():
    model = nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(2), input_shape=(3,), dtype="float64")
    assert returns(model, "NHWC").dtype == "float64"


# ---- what trains


CLASSIFIER = [("Gemm", "x W b", "z", {"transB": 1}), ("Softmax", "z", "p", {"axis": 1})]


def test_logits_leave_probabilities_out():
    weights = {"W": normal(3, 4), "b": normal(3)}
    model = agree(graph((4,), CLASSIFIER, **weights))
    with pytest.raises(ValueError, match="logits=True"):
        nn.Trainer(model, nn.CrossEntropy(), nn.Adam())
    logits = from_onnx(graph((4,), CLASSIFIER, **weights), logits=True)
    assert kinds(logits) == ["Dense"]
    nn.Trainer(logits, nn.CrossEntropy(), nn.Adam())
    for kind in ("Sigmoid", "LogSoftmax"):
        nodes = [CLASSIFIER[0], (kind, "z", "p", {}), ("Identity", "p", "q", {})]
        assert kinds(from_onnx(graph((4,), nodes[: 2 + (kind == "Sigmoid")], **weights), logits=True)) == ["Dense"]
    nodes = [*CLASSIFIER, ("Reshape", "p s", "q", {})]
    assert kinds(from_onnx(graph((4,), nodes, s=np.array([0, 3, 1]), **weights), logits=True)) == ["Dense", "Reshape"]


# ---- files that others made


def randomised(name):
    """One of onnx's own networks, with random weights in place of constants."""
    model = onnx.load(DATA / f"{name}.onnx")
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "ConstantOfShape"]:
        shape = tuple(256 if n == 4096 else int(n) for n in shapes[node.input[0]])  # of VGG: half a minute less
        if len(shape) > 1:
            values = np.resize(normal(99_991), shape) * np.float32(1.4 * np.prod(shape[1:]) ** -0.5)
        else:
            values = 0.5 + 0.5 * rng.random(shape, dtype="float32")
        model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        model.graph.node.remove(node)
    names = {tensor.name for tensor in model.graph.initializer}
    weights = [entry for entry in model.graph.input if entry.name in names]
    model.ir_version = 8  # from 4 on, weights need not be inputs
    for entry in weights:
        model.graph.input.remove(entry)
    return model


@pytest.mark.parametrize("name", ["vgg19", "resnet50", "squeezenet", "inception_v2", "densenet121", "shufflenet"])
def test_networks_of_onnx(name):
    model = randomised(f"light_{name}")
    last = model.graph.node[-1]
    if last.op_type == "Softmax":  # before it, differences are seen
        model.graph.output[0].name = last.input[0]
        model.graph.node.remove(last)
    agree(model, n=1, tolerance=1e-4)


def test_a_network_with_an_unknown_operator_is_refused_by_name():
    with pytest.raises(nn.FileError, match=r"2 of 40 nodes cannot be read: 'n2' \(LRN\), 'n6' \(LRN\): nnlite has no layer"):
        load(DATA / "light_bvlc_alexnet.onnx")
