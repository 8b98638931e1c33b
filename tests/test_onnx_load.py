"""ONNX files become models that compute what onnxruntime computes, and train; what cannot be read is refused."""

from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from hypothesis import assume, given, settings
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
    made = [
        helper.make_node(kind, inputs.split(" ") if inputs else [], [out], **attributes)
        for kind, inputs, out, attributes in nodes
    ]
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
    x = rng.integers(0, model[0].n, (5, *model.in_shape)) if model.plan.takes_integers else normal(5, *model.in_shape)
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
    assume(shape)  # ids without an axis return as vectors of one
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


def ids_of(shape, nodes, kind=TensorProto.INT64, **constants):
    """A file's model of ids, of which there are six."""
    model = graph(shape, nodes, **{"W": normal(6, 3)} | constants)
    model.graph.input[0].type.tensor_type.elem_type = kind
    return model


ENDS = [("Transpose", "a", "b", {"perm": [0, 2, 1]}), ("GlobalMaxPool", "b", "c", {}), ("Flatten", "c", "y", {})]
GATHER = "Gather", "W x", "a", {}


@pytest.mark.parametrize(
    ("shape", "nodes", "made"),
    [
        ((4,), [GATHER, *ENDS], ["Embedding", "GlobalMaxPool1D"]),
        ((4,), [GATHER, ("ReduceMax", "a", "y", {"axes": [1], "keepdims": 0})], ["Embedding", "GlobalMaxPool1D"]),
        ((4,), [("Cast", "x", "i", {"to": 6}), ("Gather", "W i", "a", {}), *ENDS], ["Embedding", "GlobalMaxPool1D"]),
        ((4,), [("Transpose", "x", "u", {"perm": [0, 1]}), ("Gather", "W u", "y", {"axis": -2})], ["Embedding"]),
        ((2, 4), [GATHER, ("Reshape", "a s", "b", {}), ("MatMul", "b V", "y", {})], ["Embedding", "Flatten", "Dense"]),
        ((2, 2, 2), [("Gather", "W x", "y", {})], ["Embedding"]),
    ],
)
@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
def test_ids_are_read_by_an_embedding(shape, nodes, made, kind):
    model = ids_of(shape, nodes, kind, s=np.array([0, -1]), V=normal(24, 2))
    loaded = from_onnx(model)
    ids = rng.integers(0, 6, (5, *shape)).astype(helper.tensor_dtype_to_np_dtype(kind))
    assert kinds(loaded) == made and loaded.in_shape == shape and loaded[0].config() == nn.Embedding(6, 3).config()
    np.testing.assert_allclose(loaded(ids), infer(model, ids), rtol=1e-5, atol=1e-6)
    nn.Trainer(loaded, nn.MSE(), nn.SGD(0.1)).fit((ids, loaded(ids)), epochs=1, progress=False)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("Gather", "x zero", "y", {"axis": 1})], "'x' depends on the samples"),
        ([("Gather", "V x", "y", {})], r"of shape \(2, 2, 2\) than rows"),
        ([("Gather", "W x", "y", {"axis": 1})], "than rows of a matrix"),
        ([("Relu", "x", "r", {}), ("Gather", "W r", "y", {})], "ids from elsewhere"),
        ([("Cast", "x", "c", {"to": 7}), ("Relu", "c", "r", {}), ("Gather", "W r", "y", {})], "ids from elsewhere"),
        ([("Cast", "x", "c", {"to": 7}), ("Relu", "c", "y", {})], "no layer computes this function"),
        ([("Cast", "x", "c", {"to": 9}), ("Gather", "W c", "y", {})], "other than numbers"),
        (
            [GATHER, ("Flatten", "a", "f", {}), ("Relu", "x", "r", {}), ("Concat", "f r", "y", {"axis": 1})],
            "numbers for another",
        ),
    ],
)
def test_ids_that_no_embedding_reads_are_refused(nodes, message):
    refused(ids_of((4,), nodes, V=normal(2, 2, 2), zero=np.array(0)), message)


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


# ---- each operator as its version says


IMAGE = (3, 6, 8)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 20])
def test_softmax_ran_over_all_axes_before_opset_13(opset):
    last = agree(graph(IMAGE, [("Softmax", "x", "p", {"axis": 1})], opset))
    assert kinds(last) == (["Softmax"] if opset >= 13 else ["Flatten", "Softmax", "Reshape"])
    agree(graph((4,), [("Softmax", "x", "p", {})], opset))


@pytest.mark.parametrize("opset", [7, 10, 12, 13, 17])
def test_dropout_has_its_rate_as_an_attribute_before_opset_12(opset):
    old = [("Dropout", "x", "y", {"ratio": 0.25})]
    model = from_onnx(
        graph((4,), old, opset) if opset < 12 else graph((4,), [("Dropout", "x r", "y", {})], opset, r=np.float32(0.25))
    )
    assert repr(model.layers[0]) == "Dropout(0.25)"
    training = graph((4,), [("Dropout", "x r t", "y", {})], 13, r=np.float32(0.25), t=np.True_)
    refused(training, "training mode")


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 18])
def test_pads_and_axes_are_attributes_in_earlier_versions(opset):
    """Pad before 11, Squeeze, Unsqueeze before 13, ReduceMean before 18."""
    pads, constants = [0, 0, 1, 2, 0, 0, 0, 1], {"W": normal(4, 3, 3, 3), "V": normal(2, 4), "z": normal(1)}

    def either(first, kind, inputs, output, name, values, **attributes):
        if opset < first:
            return kind, inputs, output, {name: values, **attributes}
        constants[f"{output}_{name}"] = np.array(values)
        return kind, f"{inputs} {output}_{name}", output, attributes

    nodes = [
        either(11, "Pad", "x", "a", "pads", pads),
        ("Conv", "a W", "b", {"pads": [1, 1, 1, 1]}),
        either(18, "ReduceMean", "b", "c", "axes", [2, 3], keepdims=1),
        either(13, "Squeeze", "c", "d", "axes", [2, 3]),
        either(13, "Unsqueeze", "d", "e", "axes", [2]),
        either(13, "Squeeze", "e", "f", "axes", [2]),
        ("Gemm", "f V z", "g", {"transB": 1, "alpha": 0.5}),
    ]
    model = agree(graph(IMAGE, nodes, opset, **constants))
    assert kinds(model) == ["Conv2D", "GlobalAvgPool2D", "Dense"]
    assert model[0].padding == ((2, 1), (3, 2))


@pytest.mark.parametrize("opset", [7, 11, 13])
def test_clip_has_its_bounds_as_attributes_before_opset_11(opset):
    bounded = [("Clip", "x", "y", {"min": 0.0})] if opset < 11 else [("Clip", "x low", "y", {})]
    assert kinds(agree(graph((4,), bounded, opset, **({} if opset < 11 else {"low": np.float32(0)})))) == ["ReLU"]
    six = graph((4,), [("Clip", "x low high", "y", {})], 13, low=np.float32(0), high=np.float32(6))
    refused(six, r"'y' \(Clip\): no layer computes this function")


SCALES = {"s": np.array([1, 1, 2, 3], "float32"), "roi": np.zeros(0, "float32"), "none": np.zeros(0, "float32")}
FLOOR = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 18])
def test_upsampling(opset):
    """Of nearest pixels before 11, where Resize says nothing of places; then of whatever places."""
    kind, inputs, places = ("Upsample" if opset == 9 else "Resize"), "x s", {}
    if opset > 10:
        inputs, places = "x roi s", FLOOR
    agree(graph(IMAGE, [(kind, inputs, "y", places)], opset, **SCALES))
    if opset > 10:
        sizes = graph(IMAGE, [(kind, "x roi none n", "y", {"mode": "linear"})], opset, **SCALES, n=np.array([3, 3, 12, 24]))
        sizes.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
        assert agree(sizes)[0].mode == "bilinear"
        refused(graph(IMAGE, [(kind, "x roi s", "y", {"mode": "cubic"})], opset, **SCALES), "cubic")
        refused(graph(IMAGE, [(kind, "x roi s", "y", {"nearest_mode": "ceil"})], opset, **SCALES), "pixels from elsewhere")


def test_upsampling_of_opset_7_has_its_scales_as_an_attribute():
    model = from_onnx(graph(IMAGE, [("Upsample", "x", "y", {"scales": [1.0, 1.0, 2.0, 2.0]})], 7))
    assert repr(model.layers) == "[Upsample2D(2)]"


def test_batch_norm_of_each_pixel_is_refused():
    values = {name: np.ones(3, "float32") for name in "gbmv"}
    refused(graph(IMAGE, [("BatchNormalization", "x g b m v", "y", {"spatial": 0})], 7, **values), "spatial=0")
    agree(graph(IMAGE, [("BatchNormalization", "x g b m v", "y", {"epsilon": 0.1})], 7, **values))


@pytest.mark.parametrize("opset", [6, 99])
def test_other_opsets_are_refused(opset):
    model = graph((4,), [("Relu", "x", "y", {})])
    model.opset_import[0].version = opset
    refused(model, f"its opset is {opset}: opsets 7 to")
    del model.opset_import[:]
    refused(model, "its opset is none")


def refused(model, message, **options):
    with pytest.raises(nn.FileError, match=message):
        from_onnx(model, **options)


# ---- one function, many spellings

HALF, ONE, SQRT2, THREE = (np.float32(v) for v in (0.5, 1, 2**0.5, 3))
SPELLINGS = {
    "GELU": [
        [
            ("Div", "x r", "a", {}), ("Erf", "a", "b", {}), ("Add", "b one", "c", {}),
            ("Mul", "x c", "d", {}), ("Mul", "d h", "y", {}),
        ],
        [
            ("Mul", "x h", "m", {}), ("Div", "x r", "a", {}), ("Erf", "a", "b", {}), ("Add", "one b", "c", {}),
            ("Mul", "c m", "y", {}),
        ],
    ],
    "GELU tanh": [
        [
            ("Pow", "x three", "a", {}), ("Mul", "a k", "b", {}), ("Add", "x b", "c", {}), ("Mul", "c p", "d", {}),
            ("Tanh", "d", "e", {}), ("Add", "e one", "f", {}), ("Mul", "x h", "g", {}), ("Mul", "g f", "y", {}),
        ]
    ],
    "SiLU": [
        [("Sigmoid", "x", "a", {}), ("Mul", "x a", "y", {})],
        [("Neg", "x", "a", {}), ("Exp", "a", "b", {}), ("Add", "b one", "c", {}), ("Div", "x c", "y", {})],
    ],
    "Sigmoid": [[("Neg", "x", "a", {}), ("Exp", "a", "b", {}), ("Add", "one b", "c", {}), ("Reciprocal", "c", "y", {})]],
    "ReLU": [[("Max", "x zero", "y", {})], [("Greater", "x zero", "a", {}), ("Where", "a x zero", "y", {})]],
    "LeakyReLU": [[("Mul", "x h", "a", {}), ("Max", "x a", "y", {})]],
    "Softplus": [[("Exp", "x", "a", {}), ("Add", "a one", "b", {}), ("Log", "b", "y", {})]],
    "LayerNorm": [
        [
            ("ReduceMean", "x", "m", {"axes": [-1]}), ("Sub", "x m", "c", {}), ("Mul", "c c", "q", {}),
            ("ReduceMean", "q", "v", {"axes": [-1]}), ("Add", "v eps", "w", {}), ("Sqrt", "w", "s", {}),
            ("Div", "c s", "n", {}), ("Mul", "n gamma", "o", {}), ("Add", "o beta", "y", {}),
        ]
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_functions_are_recognised(name):
    constants = {"h": HALF, "one": ONE, "r": SQRT2, "three": THREE, "zero": np.float32(0), "k": np.float32(0.044715)}
    constants |= {"p": np.float32((2 / np.pi) ** 0.5), "eps": np.float32(1e-5), "gamma": normal(5), "beta": normal(5)}
    for nodes in SPELLINGS[name]:
        model = agree(graph((5,), nodes, 13, **constants))
        assert kinds(model) == name.split()[:1]


def test_dense_with_an_affine_map_behind_is_one_layer():
    nodes = [("MatMul", "x W", "a", {}), ("Add", "b a", "c", {}), ("Mul", "c s", "d", {}), ("Sub", "d t", "y", {})]
    weights = {"W": normal(4, 3), "b": normal(3), "s": -normal(3), "t": normal(1, 3)}
    assert kinds(agree(graph((4,), nodes, **weights))) == ["Dense"]
    conv = [("Conv", "x W", "a", {}), ("Mul", "a s", "c", {}), ("Add", "c t", "y", {})]
    assert kinds(agree(graph(IMAGE, conv, W=normal(2, 3, 3, 3), s=normal(2, 1, 1), t=normal(1, 2, 1, 1)))) == ["Conv2D"]


def test_a_layer_that_others_read_keeps_its_values():
    nodes = [("MatMul", "x W", "a", {}), ("Identity", "a", "i", {}), ("Mul", "i s", "b", {}), ("Add", "a b", "y", {})]
    agree(graph((4,), nodes, W=normal(4, 3), s=normal(3)))


def test_arithmetic_with_constants():
    for nodes in (
        [("Mul", "x s", "y", {})],
        [("Sub", "c x", "y", {})],
        [("Div", "x p", "y", {})],
        [("Add", "x m", "y", {})],
        [("Neg", "x", "a", {}), ("Add", "a one", "y", {})],
        [("Sub", "x c", "a", {}), ("Div", "a p", "y", {})],
    ):
        constants = {
            "s": normal(3, 1, 1),
            "c": normal(1, 3, 1, 1),
            "p": 1 + normal(3, 1, 1) ** 2,
            "m": normal(6, 8),
            "one": ONE,
        }
        model = agree(graph(IMAGE, nodes, **constants))
    assert kinds(model) == ["Normalize"]


def test_shapes_that_are_computed():
    """As PyTorch 1 writes x.view(x.size(0), -1)."""
    nodes = [
        ("Conv", "x W", "a", {}),
        ("Shape", "a", "s", {}),
        ("Gather", "s zero", "n", {"axis": 0}),
        ("Unsqueeze", "n", "m", {"axes": [0]}),
        ("Concat", "m rest", "t", {"axis": 0}),
        ("Reshape", "a t", "f", {}),
        ("Gemm", "f V", "y", {"transB": 1}),
    ]
    constants = {"W": normal(2, 3, 3, 3), "V": normal(4, 48), "zero": np.array(0), "rest": np.array([-1])}
    assert kinds(agree(graph(IMAGE, nodes, 11, **constants))) == ["Conv2D", "Flatten", "Dense"]


def test_transposes_vanish():
    nodes = [
        ("Conv", "x W", "a", {}),
        ("Transpose", "a", "b", {"perm": [0, 2, 3, 1]}),
        ("LayerNormalization", "b g", "c", {"axis": -1}),
        ("Reshape", "c s", "d", {}),
        ("MatMul", "d V", "e", {}),
        ("Transpose", "e", "f", {"perm": [0, 2, 1]}),
        ("ReduceMean", "f", "y", {"axes": [2], "keepdims": 0}),
    ]
    constants = {"W": normal(4, 3, 3, 3), "g": normal(4), "s": np.array([0, -1, 4]), "V": normal(4, 5)}
    model = agree(graph(IMAGE, nodes, **constants))
    assert kinds(model) == ["Conv2D", "LayerNorm", "Conv2D", "GlobalAvgPool2D"]


def test_values_in_another_order_are_shuffled_by_weights():
    def flattened(*shape):
        return graph(shape, [("Transpose", "x", "a", {"perm": [0, 1, 3, 2]}), ("Flatten", "a", "y", {})])

    agree(flattened(*IMAGE))
    refused(flattened(3, 40, 40), "another order of 4,800 values")


def test_channels_are_shuffled():
    nodes = [
        ("Reshape", "x s", "a", {}),
        ("Transpose", "a", "b", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", "b t", "c", {}),
        ("Conv", "c D", "d", {"group": 6}),
        ("Conv", "d W", "y", {"group": 2}),
    ]
    constants = {"s": np.array([0, 2, 3, 4, 5]), "t": np.array([0, -1, 4, 5]), "D": normal(6, 1, 2, 2), "W": normal(4, 3, 1, 1)}
    agree(graph((6, 4, 5), nodes, **constants))


def test_a_border_of_zeros_joins_the_pooling():
    pads = {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    for nodes in (
        [("Relu", "x", "r", {}), ("Pad", "r p", "a", {}), ("MaxPool", "a", "y", {"kernel_shape": [3, 3], "strides": [2, 2]})],
        [("Pad", "x p", "a", {}), ("AveragePool", "a", "y", {"kernel_shape": [2, 2], "strides": [3, 3]})],
        [("Pad", "x p", "a", {}), ("Conv", "a W", "y", {"auto_pad": "SAME_LOWER", "strides": [2, 3]})],
    ):
        agree(graph(IMAGE, nodes, 13, W=normal(2, 3, 3, 2), **pads))
    refused(
        graph(IMAGE, [("Pad", "x p", "a", {}), ("MaxPool", "a", "y", {"kernel_shape": [3, 3]})], 13, **pads), "padded with 0"
    )
    refused(
        graph(IMAGE, [("Pad", "x p", "a", {}), ("Relu", "a", "y", {})], 13, **pads), "which only a convolution or a pooling"
    )


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("kind", ["Conv", "MaxPool", "AveragePool"])
def test_padding_that_is_computed(auto_pad, kind):
    options = {"kernel_shape": [3, 2], "strides": [2, 3], "auto_pad": auto_pad}
    inputs = "x W" if kind == "Conv" else "x"
    agree(graph(IMAGE, [(kind, inputs, "y", options)], W=normal(4, 3, 3, 2)))


# ---- branches


def test_branches():
    nodes = [
        ("Conv", "x W", "a", {"pads": [1, 1, 1, 1]}),
        ("Relu", "a", "b", {}),
        ("Conv", "b V", "c", {}),
        ("Concat", "x a b c", "d", {"axis": 1}),
        ("Conv", "d U", "e", {}),
        ("Tanh", "e", "f", {}),
        ("Elu", "f", "g", {}),
        ("Sum", "g e f g", "h", {}),
        ("Add", "h h", "y", {}),
    ]
    model = agree(graph(IMAGE, nodes, W=normal(2, 3, 3, 3), V=normal(4, 2, 1, 1), U=normal(4, 11, 1, 1)), tolerance=1e-4)
    assert "Concat" in repr(model) and "Residual" in repr(model)


def test_dense_nets_are_nested():
    """Each layer joins all before it, as torchvision writes it."""
    nodes, weights, joined = [], {}, "x"
    for i in range(3):
        weights[f"W{i}"] = normal(2, 3 + 2 * i, 3, 3)
        nodes += [("Concat", joined, f"c{i}", {"axis": 1})] if i else []
        nodes += [("Conv", f"{f'c{i}' if i else 'x'} W{i}", f"d{i}", {"pads": [1, 1, 1, 1]})]
        joined += f" d{i}"
    agree(graph(IMAGE, [*nodes, ("Concat", joined, "y", {"axis": 1})], **weights), tolerance=1e-4)


def test_branches_that_cross_are_refused_by_name():
    nodes = [
        ("Relu", "x", "a", {}),
        ("Tanh", "a", "b", {}),
        ("Sigmoid", "a", "c", {}),
        ("Concat", "b c", "d", {"axis": 1}),
        ("Elu", "c", "e", {}),
        ("Concat", "d e", "y", {"axis": 1}),
    ]
    refused(graph(IMAGE, nodes), "'c' is read by branches that are joined in different places")


# ---- what cannot be read


def test_all_nodes_that_cannot_be_read_are_listed():
    nodes = [
        ("Conv", "x W", "a", {}),
        ("Clip", "a low high", "b", {}),
        ("HardSigmoid", "b", "c", {}),
        ("Conv", "c V", "d", {}),
        ("Clip", "d low high", "e", {}),
        ("Slice", "e i j", "f", {}),
        ("Softmax", "f", "g", {}),
        ("Einsum", "g g", "y", {"equation": "nchw,nchw->n"}),
    ]
    constants = {"low": np.float32(0), "high": np.float32(6), "i": np.array([0]), "j": np.array([1])}
    with pytest.raises(nn.FileError) as caught:
        from_onnx(graph(IMAGE, nodes, W=normal(4, 3, 1, 1), V=normal(4, 4, 1, 1), **constants))
    message = str(caught.value)
    assert message.startswith("5 of 8 nodes cannot be read")
    for name in ("'b' (Clip)", "'e' (Clip)", "'c' (HardSigmoid)", "'f' (Slice)", "'y' (Einsum)"):
        assert message.count(name) == 1


W1, ONES = np.ones((2, 3, 1, 1), "float32"), np.ones(3, "float32")
BAD = {
    "operators of others": ([("Relu", "x", "y", {"domain": "com.microsoft"})], {}, r"\(com.microsoft.Relu\): nnlite has"),
    "three axes of pixels": ([("Conv", "x W", "y", {})], {"W": np.ones((2, 3, 1, 1, 1), "float32")}, "3 axes|do not fit"),
    "filters of other channels": ([("Conv", "x W", "y", {})], {"W": np.ones((2, 4, 1, 1), "float32")}, "do not fit 3 channels"),
    "filters that are no constant": ([("Conv", "x x", "y", {})], {}, "'x' depends on the samples"),
    "a kernel of another shape": ([("Conv", "x W", "y", {"kernel_shape": [2, 2]})], {"W": W1}, "kernel_shape"),
    "negative pads": ([("Conv", "x W", "y", {"pads": [-1, 0, 0, 0]})], {"W": W1}, "pads"),
    "padding like no other": ([("MaxPool", "x", "y", {"kernel_shape": [1, 1], "auto_pad": "SOME"})], {}, "auto_pad=SOME"),
    "a window that does not fit": ([("MaxPool", "x", "y", {"kernel_shape": [9, 9]})], {}, "covers|window"),
    "weights for another size": ([("Flatten", "x", "f", {}), ("Gemm", "f W", "y", {})], {"W": W1[0, :, 0].T}, "are for 1 "),
    "columns as samples": ([("Flatten", "x", "f", {}), ("Gemm", "f W", "y", {"transA": 1})], {"W": W1[0, :, :, 0]}, "transA"),
    "a product of samples": ([("MatMul", "x x", "y", {})], {}, "depends on the samples"),
    "a moved batch": ([("Transpose", "x", "y", {"perm": [1, 0, 2, 3]})], {}, "moves the axis of the batch"),
    "a joined batch": ([("Reshape", "x s", "y", {})], {"s": np.array([-1, 8])}, "joins the axis of the batch"),
    "a batch that is summed": ([("ReduceMean", "x", "y", {"axes": [0]})], {}, "over the batch"),
    "constants by sample": ([("Add", "x c", "y", {})], {"c": np.ones((2, 3, 1, 1), "float32")}, "does not fit samples"),
    "a wider constant": ([("Add", "x c", "y", {})], {"c": np.ones((1, 1, 3, 1, 1), "float32")}, "more axes"),
    "gates": ([("GlobalAveragePool", "x", "a", {}), ("Mul", "x a", "y", {})], {}, "of such inputs"),
    "other channels to add": ([("Conv", "x W", "a", {}), ("Add", "x a", "y", {})], {"W": W1}, "have the shapes"),
    "norms of another size": ([("BatchNormalization", "x c c c d", "y", {})], {"c": ONES, "d": ONES[:2]}, "shapes"),
    "texts": ([("Cast", "x", "y", {"to": 8})], {}, "other than numbers"),
    "a missing input": ([("Relu", "nobody", "y", {})], {}, "nothing before it makes 'nobody'"),
    "too many constants": ([("ConstantOfShape", "s", "y", {})], {"s": np.array([1 << 20, 1 << 20])}, "more than"),
    "too large a border": ([("Conv", "x W", "y", {"pads": [1 << 20, 0, 1 << 20, 1 << 20]})], {"W": W1}, "more than"),
    "cycles": ([("Add", "x b", "a", {}), ("Relu", "a", "b", {}), ("Add", "a b", "y", {})], {}, "nothing before it makes 'b'"),
    "no way from x to y": ([("Relu", "c", "y", {})], {"c": ONES}, "is a constant"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_refused(what):
    nodes, constants, message = BAD[what]
    refused(graph(IMAGE, nodes, **constants), message)


def test_inputs_and_outputs():
    model = graph((4,), [("Gemm", "x W", "a", {}), ("Relu", "a", "y", {})])
    model.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [4, 2]))
    refused(model, r"the inputs \['x', 'W'\] and the outputs \['y'\].*inputs=\{name: values\}")
    W, x = normal(4, 2), normal(3, 4)
    np.testing.assert_allclose(from_onnx(model, inputs={"W": W})(x), np.maximum(x @ W, 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(from_onnx(model, inputs={"W": W}, output="a")(x), x @ W, rtol=1e-4, atol=1e-6)
    model.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
    refused(model, "output= chooses", inputs={"W": W})
    refused(model, "does not depend on its input", inputs={"W": W}, output="other")


def test_an_open_shape_is_given():
    model = graph(IMAGE, [("GlobalAveragePool", "x", "y", {})])
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "size"
    refused(model, r"'x' has the shape \[3, 0, 0\]: give input_shape=")
    assert from_onnx(model, input_shape=(5, 7, 3)).in_shape == (5, 7, 3)
    refused(model, "has 4 axes", input_shape=(5, 7))
    model.graph.node[0].op_type = "GlobalLpPool"
    refused(model, "GlobalLpPool")  # all the same
    with pytest.raises(ValueError, match="layout"):
        from_onnx(model, layout="CHW")


def test_images_whose_channels_are_last_in_the_file():
    nodes = [
        ("Transpose", "x", "a", {"perm": [0, 3, 1, 2]}),
        ("Relu", "a", "b", {}),
        ("Transpose", "b", "y", {"perm": [0, 2, 3, 1]}),
    ]
    model = from_onnx(graph((6, 8, 3), nodes))
    assert model.in_shape == model.out_shape == (6, 8, 3)
    plain = graph((6, 8, 3), [("Relu", "x", "y", {})])
    assert from_onnx(plain).in_shape == (8, 3, 6) and from_onnx(plain, layout="NHWC").in_shape == (6, 8, 3)


# ---- files


def external(tmp_path, location, **entries):
    """A file whose weights are in another file."""
    model = graph((4,), [("Gemm", "x W", "y", {})], W=normal(4, 2))
    tensor = model.graph.initializer[0]
    (tmp_path / "weights").write_bytes(bytes(8) + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 8, "length": 32, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir(exist_ok=True)
    onnx.save(model, path)
    return path


def test_external_data(tmp_path):
    (tmp_path / "model").mkdir()
    path = external(tmp_path / "model", "weights").replace(tmp_path / "model" / "m.onnx")
    assert load(path)(np.ones((1, 4))).shape == (1, 2)
    with pytest.raises(nn.FileError, match="load the model by its path"):
        from_onnx(onnx.load(path, load_external_data=False))
    for name in ("../weights", str(tmp_path / "weights"), "../model/../weights"):
        with pytest.raises(nn.FileError, match="outside the folder of the model"):
            load(external(tmp_path, name))
    (tmp_path / "model" / "link").symlink_to(tmp_path / "weights")
    with pytest.raises(nn.FileError, match="outside the folder of the model"):
        load(external(tmp_path, "link"))
    for wrong in ({"offset": 16}, {"length": 16}, {"offset": -8}, {"offset": "x"}, {}):
        path = external(tmp_path, "inside" if wrong else "nothing", **wrong)
        (tmp_path / "model" / "inside").write_bytes((tmp_path / "weights").read_bytes())
        with pytest.raises(nn.FileError, match=r"32 bytes from|is damaged"):
            load(path)


def test_damaged_files(tmp_path):
    path = tmp_path / "m.onnx"
    export(nn.zoo.mlp((4, 3, 2)), path)
    data = path.read_bytes()
    for broken in (b"", b"no ONNX", data[: len(data) // 2], data[:-1]):
        path.write_bytes(broken)
        with pytest.raises(nn.FileError, match=r"m\.onnx"):
            load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.onnx")
    with pytest.raises(nn.FileError):
        load(tmp_path)
