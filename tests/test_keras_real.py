"""Files that Keras itself writes and reads; skipped where it is not installed."""

import numpy as np
import pytest

import nnlite as nn
from nnlite.interop.keras import load, save

keras = pytest.importorskip("keras", reason="Keras is in the bench extra")
L = keras.layers
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*structure of `inputs`"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),
    pytest.mark.filterwarnings("ignore:Argument `alpha` is deprecated"),  # the name of Keras 2
]
rng = np.random.default_rng(0)


def tutorial():
    return [
        L.Rescaling(1 / 255),
        L.Conv2D(8, 3, activation="relu"),
        L.MaxPooling2D(2),
        L.Conv2D(12, 3, activation="relu"),
        L.Flatten(),
        L.Dense(16, activation="relu"),
        L.Dense(5, activation="softmax"),
    ]


def padded():
    """Everything that pads."""
    return [
        L.ZeroPadding2D(((1, 2), (0, 3))),
        L.Conv2D(6, (3, 2), strides=2, use_bias=False),
        L.BatchNormalization(),
        L.ReLU(),
        L.ZeroPadding2D(1),
        L.MaxPooling2D(3, 2),
        L.Conv2D(8, 3, strides=2, padding="same", activation="leaky_relu"),
        L.ZeroPadding2D(((1, 0), (0, 1))),
        L.AveragePooling2D(2),
        L.AveragePooling2D((3, 2), strides=1, padding="same"),
        L.UpSampling2D((2, 3), interpolation="bilinear"),
        L.UpSampling2D(),
        L.GlobalMaxPooling2D(keepdims=True),
        L.Dense(4),
        L.Flatten(),
    ]


def separable():
    return [
        L.SeparableConv2D(6, 3, depth_multiplier=2, strides=2, padding="same", activation="elu"),
        L.DepthwiseConv2D(3, depth_multiplier=3, dilation_rate=2, padding="same", use_bias=False),
        L.LayerNormalization(),
        L.Activation("gelu"),
        L.Conv2D(8, 1, groups=2),
        L.BatchNormalization(scale=False, momentum=0.9),
        L.LeakyReLU(),
        L.Dropout(0.1),
        L.GlobalAveragePooling2D(),
        L.BatchNormalization(center=False),
        L.Dense(4, activation="tanh", use_bias=False),
        L.Dense(4, activation="silu"),
        L.Reshape((2, 2)),
        L.Flatten(),
        L.Dense(1, activation="sigmoid"),
    ]


def sequences():
    return [
        L.Reshape((16, 39)),
        L.Conv1D(8, 3, dilation_rate=2, padding="causal"),
        L.PReLU(shared_axes=[1]),
        L.ZeroPadding1D((1, 2)),
        L.Conv1D(9, 2, strides=2),
        L.BatchNormalization(),
        L.AveragePooling1D(2, padding="same"),
        L.Dense(6),
        L.ReLU(),
        L.ZeroPadding1D(1),
        L.MaxPooling1D(2, strides=1),
        L.GlobalAveragePooling1D(),
        L.PReLU(),
        L.Dense(3),
    ]


def grouped():
    return [
        L.Conv2D(8, 3),
        L.GroupNormalization(4),
        L.PReLU(shared_axes=[1, 2]),
        L.SpatialDropout2D(0.3),
        L.GroupNormalization(-1, scale=False),
        L.PReLU(shared_axes=[1, 2, 3]),
        L.Flatten(),
        L.Dense(3),
    ]


def settled(model):
    """With values as after training."""
    for variable in model.weights:
        value = np.asarray(variable)
        if value.dtype.kind == "f":
            noise = rng.random(value.shape) if "variance" in variable.path else rng.standard_normal(value.shape) * 0.1
            variable.assign(value + noise.astype(value.dtype))
    return model


def chain(layers):
    return settled(keras.Sequential([L.Input((16, 13, 3)), *layers()]))


def residual():
    a = L.Input((12, 12, 3))
    x = L.Conv2D(8, 3, padding="same", activation="relu")(a)
    for stride in (1, 2):
        y = L.Conv2D(8, 3, strides=stride, padding="same")(x)
        y = L.BatchNormalization()(y)
        y = L.Activation("relu")(y)
        y = L.Conv2D(8, 3, padding="same")(y)
        side = x if stride == 1 else L.Conv2D(8, 1, strides=2)(x)
        x = L.ReLU()(L.Add()([y, side]))
    head = keras.Sequential([L.Input((8,)), L.Dense(6, activation="relu"), L.Dropout(0.2), L.Dense(3)], name="head")
    return settled(keras.Model(a, head(L.GlobalAveragePooling2D()(x))))


def densely():
    a = L.Input((12, 12, 3))
    x = L.Conv2D(4, 3, padding="same", activation="relu")(a)
    for _ in range(2):
        x = L.Concatenate()([x, L.Conv2D(4, 3, padding="same")(L.ReLU()(L.BatchNormalization()(x)))])
    return settled(keras.Model(a, L.Dense(3)(L.GlobalAveragePooling2D()(x))))


def same(theirs, model):
    x = (rng.random((5, *model.in_shape)) * 2 - 1).astype("float32")
    x = rng.integers(0, model[0].n, x.shape) if model.plan.takes_integers else x
    np.testing.assert_allclose(model(x), np.asarray(theirs(x)).reshape(5, -1), atol=2e-5, rtol=1e-5)


def of_ids():
    a = keras.Input((7,), dtype="int32")
    return settled(keras.Model(a, L.Dense(3)(L.GlobalMaxPooling1D()(L.Conv1D(4, 3, activation="relu")(L.Embedding(6, 6)(a))))))


MODELS = {
    "ids": of_ids,
    "tutorial": lambda: chain(tutorial),
    "padded": lambda: chain(padded),
    "separable": lambda: chain(separable),
    "sequences": lambda: chain(sequences),
    "grouped": lambda: chain(grouped),
    "residual": residual,
    "densely": densely,
}


@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_keras_models_give_the_same(make, ending, tmp_path):
    theirs = make()
    theirs.save(tmp_path / f"m{ending}")
    model = load(tmp_path / f"m{ending}")
    same(theirs, model)
    theirs.save_weights(tmp_path / "m.weights.h5")
    if make is not residual:
        for part in ("params", "buffers"):
            getattr(model, part)[...] = 0
        load(tmp_path / "m.weights.h5", model)
        same(theirs, model)


def ours(*layers, shape=(13, 12, 4)):
    model = nn.Sequential(*layers, input_shape=shape)
    model.params += 0.1 * rng.standard_normal(len(model.params)).astype("float32")
    model.buffers += rng.random(len(model.buffers)).astype("float32")
    return model


OURS = {
    "ids": lambda: ours(
        nn.Embedding(6, 6), nn.Conv1D(4, 3, padding="same"), nn.ReLU(), nn.GlobalMaxPool1D(), nn.Dense(2), shape=(7,)
    ),
    "plain": lambda: ours(
        nn.Normalize([1, 2, 3, 4], [1, 2, 1, 2]),
        nn.Conv2D(6, 3, padding=1),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Conv2D(8, (3, 2), stride=2, padding="same", groups=2),
        nn.LeakyReLU(),
        nn.LayerNorm(),
        nn.Conv2D(16, 3, padding=1, groups=8),
        nn.GELU(),
        nn.AvgPool2D(2, padding=1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Dense(6),
        nn.Tanh(),
        nn.Dense(3),
        nn.Softmax(),
    ),
    "sequences": lambda: ours(
        nn.Conv1D(6, 3, padding=(2, 0)),
        nn.GroupNorm(3),
        nn.PReLU(),
        nn.MaxPool1D(2),
        nn.Conv1D(4, 3, padding="same", groups=2),
        nn.AvgPool1D(3, 1, padding=1),
        nn.PReLU(shared=True),
        nn.Flatten(),
        nn.PReLU(),
        nn.Dense(2),
        shape=(9, 4),
    ),
    "branches": lambda: ours(
        nn.Conv2D(8, 3, padding=((0, 2), (1, 1)), bias=False),
        nn.ELU(),
        nn.DepthwiseConv2D(3, multiplier=1),
        nn.PReLU(),
        nn.GroupNorm(2),
        nn.SpatialDropout2D(0.1),
        nn.Residual(nn.Conv2D(8, 3, padding=1), nn.BatchNorm(scale=False), nn.SiLU(), nn.Conv2D(8, 3, padding=1)),
        nn.Residual(nn.Conv2D(4, 3, stride=2, padding="same"), shortcut=nn.Conv2D(4, 1, stride=2)),
        nn.Softplus(),
        nn.Concat([], nn.Conv2D(3, 1), [nn.Conv2D(3, 1), nn.Tanh()]),
        nn.Upsample2D((2, 1)),
        nn.GlobalAvgPool2D(),
        nn.Dense(3),
        nn.Sigmoid(),
    ),
}


@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_keras_reads_ours(make, ending, tmp_path):
    model = make()
    save(model, tmp_path / f"m{ending}")
    theirs = keras.models.load_model(tmp_path / f"m{ending}", compile=False)
    same(theirs, model)
    for variable in theirs.weights:
        variable.assign(np.zeros_like(variable))
    save(model, tmp_path / "m.weights.h5")
    theirs.load_weights(tmp_path / "m.weights.h5")
    same(theirs, model)
