"""ONNX files: onnxruntime gives what nnlite gives."""

from contextlib import nullcontext, suppress

import numpy as np
import pytest
from cases import CASES
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import nnlite as nn

pytest.importorskip("onnx", minversion="1.17")
onnxruntime = pytest.importorskip("onnxruntime")

import onnx  # noqa: E402

from nnlite.interop.onnx import export, to_onnx  # noqa: E402

rng = np.random.default_rng(0)
ZOO = {
    "tutorial": nn.zoo.tutorial_cnn,
    "vgg": lambda: nn.zoo.vgg_small((8, 16)),
    "resnet": lambda: nn.zoo.resnet(20),
    "airbench": lambda: nn.zoo.airbench(widths=(8, 16, 16)),
    "mlp": lambda: nn.zoo.mlp((20, 16, 3)),
}


def infer(path, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def settle(model):
    """Parameters and running statistics that are not those of the beginning."""
    model.buffers += rng.random(len(model.buffers)).astype(model.dtype)
    for name, values in model.named_params().items():
        if name.endswith(("gamma", "beta", "b")):
            values += 0.1 * rng.standard_normal(values.shape).astype(model.dtype)
    return model


def agree(model, path, layout="NHWC"):
    export(model, path, layout=layout)
    is_image, turned = len(model.in_shape) == 3, len(model.out_shape) == 3
    for n in (1, 7):
        x = rng.standard_normal((n, *model.in_shape)).astype("float32")
        x = rng.integers(0, model[0].n, x.shape) if model.plan.takes_integers else x
        given = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if is_image and layout == "NCHW" else x
        z = infer(path, given)
        z = z.transpose(0, 2, 3, 1) if turned and layout == "NCHW" else z
        expected = model(x)
        np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5 * max(1, abs(expected).max()))


@pytest.mark.parametrize("case", sorted(CASES))
@given(data=st.data(), layout=st.sampled_from(["NHWC", "NCHW"]))
@settings(max_examples=8)
def test_every_layer(case, data, layout, tmp_path_factory):
    layers, shape = data.draw(CASES[case])
    model = settle(nn.Sequential(*layers, input_shape=shape))
    assume(not pads_more_than_onnxruntime_takes(model))
    with suppress(nn.StateError) if case == "AvgPool2D" else nullcontext():  # see test_what_rounding_up_adds
        agree(model, tmp_path_factory.mktemp("onnx") / "model.onnx", layout)


def pads_more_than_onnxruntime_takes(model):
    """A dilated window may have padding as large as its kernel."""
    pools = (nn.MaxPool2D, nn.AvgPool2D, nn.MaxPool1D, nn.AvgPool1D)
    windows = [getattr(layer, "inner", layer).plan.window for layer in model.layers if type(layer) in pools]
    return any(max(pads) >= k for window in windows for pads, k in zip(window.padding, window.kernel, strict=True))


def test_what_rounding_up_adds(tmp_path):
    """onnxruntime averages over as many zeros as nnlite does. ONNX has no word for one more output along one axis only."""
    model = nn.Sequential(nn.AvgPool2D(3, 2, padding=1, ceil_mode=True), input_shape=(6, 8, 2))
    assert model.out_shape == (4, 5, 2)
    agree(model, tmp_path / "m.onnx")
    with pytest.raises(nn.StateError, match=r"layer 0 AvgPool2D\(2, padding=.* rounds up along one axis only"):
        to_onnx(nn.Sequential(nn.AvgPool2D(2, padding=(1, 0), ceil_mode=True), input_shape=(3, 3, 1)))


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_networks_of_the_zoo(name, layout, tmp_path):
    agree(settle(ZOO[name]()), tmp_path / "model.onnx", layout)


def transposes(model):
    return sum(node.op_type == "Transpose" for node in to_onnx(model).graph.node)


def test_one_transpose_at_the_border():
    """Behind Flatten the columns of the next Dense are permuted instead."""
    assert transposes(nn.zoo.tutorial_cnn()) == 1
    assert transposes(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Dropout(0.1), nn.Dense(2), input_shape=(3, 4, 2))) == 1
    for layer in (nn.BatchNorm(), nn.PReLU(), nn.Normalize([0.5] * 24, 2)):  # they know which column is which
        assert transposes(nn.Sequential(nn.Flatten(), layer, nn.Dense(2), input_shape=(3, 4, 2))) == 2


def test_versions_are_those_that_runtimes_read():
    made = to_onnx(nn.zoo.mlp((4, 2)))
    assert made.ir_version == 10 and [opset.version for opset in made.opset_import] == [20]


def test_a_model_in_float64(tmp_path):
    model = nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(2), input_shape=(3,), dtype="float64")
    export(model, tmp_path / "m.onnx")
    x = rng.standard_normal((5, 3))
    np.testing.assert_allclose(infer(tmp_path / "m.onnx", x), model(x), rtol=1e-12)


def test_what_cannot_be_exported(tmp_path):
    class Own(nn.Layer):
        """y = a"""

        def forward(self, a, ctx):
            return a

    with pytest.raises(nn.StateError, match=r"layer 1 Own.* has no ONNX operator"):
        export(nn.Sequential(nn.Dense(2), Own(), input_shape=(3,)), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="layout"):
        export(nn.zoo.mlp((4, 2)), tmp_path / "m.onnx", layout="HWC")
    assert not list(tmp_path.iterdir())


def test_a_file_is_whole(tmp_path):
    export(nn.zoo.mlp((4, 2)), tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx").producer_name == "nnlite"
