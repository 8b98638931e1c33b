"""Files of Keras, written here by h5py as Keras writes them: what they become, and what is refused."""

import base64
import io
import json
import sys
import warnings
import zipfile

import h5py
import numpy as np
import pytest

import nnlite as nn
from nnlite.interop.keras import load, save

rng = np.random.default_rng(0)


def values(*shape):
    return rng.standard_normal(shape).astype("float32")


def layer(kind, name, *reads, **config):
    entry = {"module": "keras.layers", "class_name": kind, "config": {"name": name, **config}, "registered_name": None}
    tensors = [{"class_name": "__keras_tensor__", "config": {"shape": [None], "keras_history": [read, 0, 0]}} for read in reads]
    calls = [{"args": [tensors] if len(tensors) > 1 else tensors, "kwargs": {}}]
    return entry | ({"name": name, "inbound_nodes": calls if reads else []})


def entrance(*shape, key="batch_shape"):
    return layer("InputLayer", "in", **{key: [None, *shape]})


def chain(*layers, **config):
    return {"class_name": "Sequential", "config": {"name": "s", "layers": list(layers), **config}}


def functional(*layers, end):
    config = {"name": "f", "layers": list(layers), "input_layers": ["in", 0, 0], "output_layers": [end, 0, 0]}
    return {"class_name": "Functional", "config": config}


def hdf5(arrays, names=None):
    """groups: {"layers/dense": [arrays]}"""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for group, own in arrays.items():
            place = file.create_group(f"{group}/vars")
            place.attrs["name"] = (names or {}).get(group, group.rpartition("/")[2])
            for i, array in enumerate(own):
                place[str(i)] = array
    return buffer.getvalue()


def archive(path, config, arrays=None, weights=None):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("metadata.json", "{}")
        file.writestr("config.json", json.dumps(config))
        file.writestr("model.weights.h5", hdf5(arrays or {}) if weights is None else weights)
    return path


def legacy(path, config, layers, chunks=1):
    """layers: {name: {weight name: array}}"""
    with h5py.File(path, "w") as file:
        if config:
            file.attrs["model_config"] = json.dumps(config).encode()
        group = file.create_group("model_weights") if config else file
        names = np.array([name.encode() for name in layers])
        for i, part in enumerate(np.array_split(names, chunks)):
            group.attrs["layer_names" if chunks == 1 else f"layer_names{i}"] = part
        for name, weights in layers.items():
            own = group.create_group(name)
            own.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, array in weights.items():
                own[weight] = array
    return path


CONV = {"filters": 4, "kernel_size": [3, 2], "strides": [2, 1], "padding": "same", "use_bias": True, "activation": "relu"}


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6 * abs(wanted).max())


def correlate(x, kernel, stride, pads):
    """Keras's convolution, by its definition: kernel (h, w, in, out)."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    (h, w), (sh, sw) = kernel.shape[:2], stride
    rows, columns = (x.shape[1] - h) // sh + 1, (x.shape[2] - w) // sw + 1
    z = np.zeros((len(x), rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            z[:, i, j] = np.tensordot(x[:, i * sh : i * sh + h, j * sw : j * sw + w], kernel, 3)
    return z


def test_a_chain_computes_what_keras_does(tmp_path):
    K, b, gamma, beta, mean, var, D, d = (
        values(3, 2, 2, 4),
        values(4),
        *(values(4) for _ in range(3)),
        values(4) ** 2,
        values(20, 20),
        values(20),
    )
    config = chain(
        entrance(5, 5, 2),
        layer("Rescaling", "r", scale=0.5, offset=-1.0),
        layer("Conv2D", "c", **CONV),
        layer("BatchNormalization", "n", momentum=0.99, epsilon=0.001, axis=-1),
        layer("AveragePooling2D", "p", pool_size=[2, 2], strides=[2, 1], padding="same"),
        layer("Flatten", "f"),
        layer("Dropout", "o", rate=0.25),
        layer("Dense", "d1", units=20, activation="linear"),
        layer("Dense", "d2", units=20, use_bias=False, activation="softmax"),
    )
    E = values(20, 20)
    groups = {"layers/conv2d": [K, b], "layers/batch_normalization": [gamma, beta, mean, var], "layers/dense": [D[:40], d]}
    D = values(40, 20)
    groups["layers/dense"][0], groups["layers/dense_1"] = D, [E]
    model = load(archive(tmp_path / "m.keras", config, groups))
    x = values(3, 5, 5, 2)
    z = np.maximum(correlate(x * 0.5 - 1, K, (2, 1), ((1, 1), (0, 1))) + b, 0)
    z = gamma * (z - mean) / np.sqrt(var + 0.001) + beta
    # Windows of 2 x 2 by steps of 2 and 1 on 3 x 5 pixels; zeros beyond the image do not count.
    pooled = [[z[:, 2 * i : 2 * i + 2, j : j + 2].mean((1, 2)) for j in range(5)] for i in range(2)]
    z = np.array(pooled).transpose(2, 0, 1, 3).reshape(3, -1) @ D + d
    e = np.exp(z @ E)
    close(model(x), e / e.sum(1, keepdims=True))
    assert isinstance(model[-1], nn.Softmax) and model[3].momentum == 0.99
    logits = load(tmp_path / "m.keras", logits=True)
    close(logits(x), z @ E)
    before = logits.params.copy()
    nn.Trainer(logits, nn.CrossEntropy(), nn.SGD(0.1)).fit((x, np.arange(3)), epochs=1, progress=False)
    assert (before != logits.params).any()


def test_convolutions_by_channel_and_padded(tmp_path):
    depthwise, separate, pointwise, b, grouped = (
        values(3, 3, 2, 3),
        values(2, 2, 6, 2),
        values(1, 1, 12, 4),
        values(4),
        values(1, 1, 2, 6),
    )
    config = chain(
        entrance(6, 5, 2),
        layer("ZeroPadding2D", "z", padding=[[1, 0], [2, 1]]),
        layer("DepthwiseConv2D", "d", kernel_size=[3, 3], depth_multiplier=3, use_bias=False, padding="valid"),
        layer("SeparableConv2D", "s", filters=4, kernel_size=2, depth_multiplier=2, strides=1, activation="tanh"),
        layer(
            "Conv2D", "g", filters=6, kernel_size=1, groups=2, use_bias=False, activation={"class_name": "ReLU", "config": {}}
        ),
        layer("ZeroPadding2D", "z2", padding=1),
        layer("MaxPooling2D", "m", pool_size=3, strides=2),
        layer("GlobalAveragePooling2D", "a"),
    )
    groups = {
        "layers/depthwise_conv2d": [depthwise], "layers/separable_conv2d": [separate, pointwise, b], "layers/conv2d": [grouped]
    }  # fmt: skip
    model = load(archive(tmp_path / "m.keras", config, groups))
    x = values(2, 6, 5, 2)

    def by_channel(x, kernel, pads=((0, 0), (0, 0))):
        parts = [correlate(x[..., c : c + 1], kernel[:, :, c : c + 1], (1, 1), pads) for c in range(x.shape[-1])]
        return np.concatenate(parts, -1)

    z = by_channel(by_channel(x, depthwise, ((1, 0), (2, 1))), separate)
    z = np.tanh(z @ pointwise[0, 0] + b)
    z = np.maximum(np.concatenate([z[..., :2] @ grouped[0, 0, :, :3], z[..., 2:] @ grouped[0, 0, :, 3:]], -1), 0)
    z = np.pad(z, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = range(0, z.shape[1] - 2, 2), range(0, z.shape[2] - 2, 2)
    close(model(x), np.mean([z[:, i : i + 3, j : j + 3].max((1, 2)) for i in rows for j in columns], 0))


def branching():
    """A residual block, a concatenation and a model inside."""
    inner = chain(entrance(9), layer("Dense", "one", units=3, trainable=False), layer("LeakyReLU", "l", alpha=0.1))
    inner = inner | {
        "config": {**inner["config"], "name": "head"},
        "name": "head",
        "inbound_nodes": layer("", "", "pool")["inbound_nodes"],
    }
    return functional(
        entrance(4, 4, 3),
        layer("Conv2D", "stem", "in", filters=3, kernel_size=3, padding="same"),
        layer("Conv2D", "side", "stem", filters=3, kernel_size=1),
        layer("Conv2D", "main", "stem", filters=3, kernel_size=3, padding="same", activation="relu"),
        layer("Add", "sum", "side", "main"),
        layer("Conv2D", "more", "sum", filters=6, kernel_size=1),
        layer("Concatenate", "cat", "sum", "more", axis=-1),
        layer("GlobalMaxPooling2D", "pool", "cat"),
        inner,
        end="head",
    )


def branching_arrays():
    stem, side, main, more = ([values(k, k, 3, n), values(n)] for k, n in ((3, 3), (1, 3), (3, 3), (1, 6)))
    return stem, side, main, more, [values(9, 3), values(3)]


def branching_output(x, stem, side, main, more, head):
    one = ((1, 1), (1, 1))
    a = correlate(x, stem[0], (1, 1), one) + stem[1]
    z = a @ side[0][0, 0] + side[1] + np.maximum(correlate(a, main[0], (1, 1), one) + main[1], 0)
    z = np.concatenate([z, z @ more[0][0, 0] + more[1]], -1).max((1, 2)) @ head[0] + head[1]
    return np.where(z > 0, z, 0.1 * z)


def test_branches_nest_and_models_inside_models(tmp_path):
    arrays = branching_arrays()
    groups = dict(
        zip(
            ("layers/conv2d", "layers/conv2d_1", "layers/conv2d_2", "layers/conv2d_3", "layers/sequential/layers/dense"),
            arrays,
            strict=True,
        )
    )
    model = load(archive(tmp_path / "m.keras", branching(), groups))
    x = values(2, 4, 4, 3)
    close(model(x), branching_output(x, *arrays))
    assert [type(layer).__name__ for layer in model] == ["Conv2D", "Residual", "Concat", "GlobalMaxPool2D", "Sequential"]
    frozen = model.named_grads().keys() - {slot.name for slot in model.vectors.trained if not slot.frozen}
    assert frozen == {"4.0.W", "4.0.b"}
    names = ("stem", "side", "main", "more")
    layers = {name: {f"{name}_1/kernel:0": W, f"{name}_1/bias:0": b} for name, (W, b) in zip(names, arrays[:4], strict=True)}
    layers["head"] = {"one/kernel:0": arrays[4][0], "one/bias:0": arrays[4][1]}
    close(load(legacy(tmp_path / "m.h5", branching(), layers, chunks=2))(x), branching_output(x, *arrays))
    model.params[...] = 0
    assert load(tmp_path / "m.h5", model) is model
    close(model(x), branching_output(x, *arrays))


def test_old_forms_of_an_architecture(tmp_path):
    """Of Keras before 2.2.3 a chain is a list, and the first layer says the shape."""
    W, b = values(3, 2), values(2)
    config = {
        "class_name": "Sequential",
        "config": [layer("Dense", "d", units=2, batch_input_shape=[None, 3], activation="tanh")],
    }
    x = values(4, 3)
    close(load(legacy(tmp_path / "m.h5", config, {"d": {"d/kernel:0": W, "d/bias:0": b}}))(x), np.tanh(x @ W + b))


def test_an_open_size_is_asked_for(tmp_path):
    config = chain(
        entrance(None, None, 2), layer("Conv2D", "c", filters=3, kernel_size=2), layer("GlobalAveragePooling2D", "g")
    )
    path = archive(tmp_path / "m.keras", config, {"layers/conv2d": [values(2, 2, 2, 3), values(3)]})
    with pytest.raises(nn.FileError, match=r"does not say the size of its input, \[None, None, None, 2\]: give input_shape="):
        load(path)
    assert load(path, input_shape=(5, 4, 2)).out_shape == (3,)


def test_layers_that_compute_value_by_value(tmp_path):
    x = values(5, 4)
    a, b, v = values(4), values(4), values(4) ** 2
    scaled = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 0.001)
    cases = [
        ("layer_normalization", layer("LayerNormalization", "n", axis=[1], epsilon=0.001), [a, b], scaled * a + b),
        ("normalization", layer("Normalization", "n", axis=[-1]), [a, v, np.array(3)], (x - a) / np.sqrt(v)),
        ("normalization", layer("Normalization", "n", mean=[1.0], variance=[4.0]), [], (x - 1) / 2),
        ("re_lu", layer("ReLU", "r", negative_slope=0.5, threshold=0.0), [], np.where(x > 0, x, x / 2)),
        ("elu", layer("ELU", "e", alpha=0.5), [], np.where(x > 0, x, 0.5 * np.expm1(x))),
        ("activation", layer("Activation", "a", activation="leaky_relu"), [], np.where(x > 0, x, 0.2 * x)),
        ("activation", layer("Activation", "a", activation="silu"), [], x / (1 + np.exp(-x))),
        (
            "batch_normalization",
            layer("BatchNormalization", "b", scale=False, epsilon=0.0),
            [b, a, v],
            (x - a) / np.sqrt(v) + b,
        ),
    ]
    for group, entry, arrays, wanted in cases:
        close(load(archive(tmp_path / "m.keras", chain(entrance(4), entry), {f"layers/{group}": arrays}))(x), wanted)


# ---- there and back


def cnn(seed=0):
    model = nn.Sequential(
        nn.Normalize([1, 2, 3], [1, 2, 4]),
        nn.Conv2D(4, 3, padding=((0, 1), (2, 1)), stride=2),
        nn.BatchNorm(momentum=0.75, eps=0.01, scale=False),
        nn.LeakyReLU(0.3),
        nn.Conv2D(8, 3, padding=1, groups=4),
        nn.MaxPool2D(3, 2, padding="same"),
        nn.Flatten(),
        nn.LayerNorm(),
        nn.Dense(8, bias=False),
        nn.Tanh(),
        nn.Dense(8),
        nn.Softmax(),
        input_shape=(9, 8, 3),
        seed=seed,
    )
    return stirred(model)


def branched(seed=0):
    main = nn.Conv2D(4, 3, padding=1, stride=2), nn.BatchNorm(), nn.SiLU(), nn.Conv2D(4, 3, padding=1)
    branches = [], nn.Conv2D(3, 1), [nn.AvgPool2D(3, 1, padding="same", count_padding=False), nn.ELU(0.5)]
    model = nn.Sequential(
        nn.Residual(*main, shortcut=nn.Conv2D(4, 1, stride=2)),
        nn.PReLU(),
        nn.GroupNorm(2),
        nn.DepthwiseConv2D(2, multiplier=2),
        nn.Concat(*branches),
        nn.Upsample2D((2, 1)),
        nn.AvgPool2D(2, padding=1),
        nn.GlobalAvgPool2D(),
        nn.Reshape((-1, 1)),
        nn.Conv1D(4, 3, padding=(2, 0)),
        nn.MaxPool1D(2),
        nn.PReLU(shared=True),
        nn.Flatten(),
        nn.Dense(2),
        input_shape=(8, 8, 4),
        seed=seed,
    )
    return stirred(model)


def of_ids(seed=0):
    layers = nn.Embedding(5, 5), nn.Conv1D(4, 3, padding="same"), nn.ReLU(), nn.GlobalMaxPool1D(), nn.Dense(2)
    return stirred(nn.Sequential(*layers, input_shape=(7,), seed=seed))


def inputs(model, n):
    return rng.integers(0, 5, (n, 7)) if model.plan.takes_integers else values(n, *model.in_shape)


def stirred(model):
    model.params += 0.1 * values(len(model.params))
    model.buffers += rng.random(len(model.buffers)).astype("float32")
    return model


@pytest.mark.parametrize("ending", [".keras", ".h5", ".hdf5"])
@pytest.mark.parametrize("make", [cnn, branched, of_ids])
def test_there_and_back(make, ending, tmp_path):
    model = make()
    save(model, tmp_path / f"m{ending}")
    again = load(tmp_path / f"m{ending}")
    x = inputs(model, 3)
    close(again(x), model(x))
    assert again.named_params().keys() == model.named_params().keys()  # nested alike
    other = make(1)
    load(tmp_path / f"m{ending}", other)
    assert np.array_equal(other.params, model.params) and np.array_equal(other.buffers, model.buffers)
    first = (tmp_path / f"m{ending}").read_bytes()
    save(model, tmp_path / f"m{ending}")
    assert first == (tmp_path / f"m{ending}").read_bytes()


def test_weights_alone_by_name(tmp_path):
    model, other = branched(), branched(1)
    save(model, tmp_path / "m.weights.h5")
    load(tmp_path / "m.weights.h5", other)
    assert np.array_equal(other.params, model.params) and np.array_equal(other.buffers, model.buffers)
    with pytest.raises(nn.FileError, match="holds weights alone: give the model"):
        load(tmp_path / "m.weights.h5")


def test_float64_stays(tmp_path):
    model = nn.Sequential(nn.Dense(3), input_shape=(2,), dtype="float64")
    save(model, tmp_path / "m.keras")
    assert load(tmp_path / "m.keras").params.tolist() == model.params.tolist()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: nn.MaxPool2D(2, padding=1), r"layer 0 MaxPool2D\(2, padding=1\) pools as Keras cannot"),
        (lambda: nn.GELU("tanh"), "GELU is exact"),
        (lambda: Own(), r"layer 0 Own\(\) has no equal in Keras"),
    ],
)
def test_what_keras_has_not(made, message, tmp_path):
    with pytest.raises(nn.StateError, match=message):
        save(nn.Sequential(made(), input_shape=(7, 7, 2)), tmp_path / "m.keras")
    with pytest.raises(ValueError, match="must end in"):
        save(cnn(), tmp_path / "m.pb")


class Own(nn.Layer):
    pass


# ---- weights for a model of one's own


def mine():
    return nn.Sequential(nn.Conv2D(4, 2), nn.BatchNorm(), nn.Conv2D(4, 1), nn.Flatten(), nn.Dense(3), input_shape=(3, 3, 2))


def mine_arrays():
    return {
        "layers/conv2d": [values(2, 2, 2, 4), values(4)],
        "layers/batch_normalization": [values(4), values(4), values(4), values(4) ** 2],
        "layers/conv2d_1": [values(1, 1, 4, 4), values(4)],
        "layers/dense": [values(16, 3), values(3)],
    }


def test_weights_by_order_and_shape(tmp_path):
    arrays, model = mine_arrays(), mine()
    (tmp_path / "m.weights.h5").write_bytes(hdf5(arrays))
    load(tmp_path / "m.weights.h5", model)
    close(model[4].W, arrays["layers/dense"][0].T)
    close(model[2].W[:, 0, 0], arrays["layers/conv2d_1"][0][0, 0].T)
    model = mine()
    kinds = {
        "conv2d": ("kernel", "bias"),
        "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
        "dense": ("kernel", "bias"),
    }
    layers = {}
    for group, own in arrays.items():
        name = group.rpartition("/")[2]
        layers[name] = {f"{name}/{kind}:0": array for kind, array in zip(kinds[name.removesuffix("_1")], own, strict=True)}
    load(legacy(tmp_path / "w.h5", None, layers), model)
    close(model[1].running_var, arrays["layers/batch_normalization"][3])


def test_numbers_of_groups_are_numbers(tmp_path):
    """conv2d_10 is behind conv2d_9."""
    arrays = {f"layers/dense{f'_{i}' if i else ''}": [np.full((2, 2), i, "float32"), values(2)] for i in range(12)}
    (tmp_path / "m.weights.h5").write_bytes(hdf5(arrays))
    model = load(tmp_path / "m.weights.h5", nn.Sequential(*(nn.Dense(2) for _ in range(12)), input_shape=(2,)))
    assert [layer.W[0, 0] for layer in model] == list(range(12))


def test_weights_that_do_not_fit_are_listed_on_both_sides(tmp_path):
    arrays, model = mine_arrays(), mine()
    arrays["layers/dense"][0] = values(15, 3)
    (tmp_path / "m.weights.h5").write_bytes(hdf5(arrays))
    before = model.params.copy()
    with pytest.raises(nn.FileError, match=r"there 4 layers,.* dense \(15, 3\) \(3,\); here 4 layers, .*4 \(3, 16\) \(3,\)"):
        load(tmp_path / "m.weights.h5", model)
    assert np.array_equal(before, model.params)
    del arrays["layers/conv2d_1"]
    (tmp_path / "m.weights.h5").write_bytes(hdf5(arrays))
    with pytest.raises(nn.FileError, match=r"there 3 layers.*here 4 layers"):
        load(tmp_path / "m.weights.h5", model)
    wrong = {"layers/dense": [values(3, 3), values(4)]}
    with pytest.raises(nn.FileError, match=r"0\.b \(dense/1 in the file\) has shape \(4,\), here \(3,\)"):
        load(archive(tmp_path / "m.keras", chain(entrance(3), layer("Dense", "d", units=3)), wrong))
    with pytest.raises(nn.FileError, match=r"there 1 layers, d \(3, 3\) \(4,\); here 1 layers, 0 \(900, 3\) \(900,\)"):
        load(archive(tmp_path / "m.keras", chain(entrance(3), layer("Dense", "d", units=900)), wrong))


def test_what_fits_in_two_ways_is_refused(tmp_path):
    (tmp_path / "m.weights.h5").write_bytes(
        hdf5({"layers/dense": [values(2, 2)], "layers/sequential/layers/dense": [values(2, 2)]})
    )
    two = nn.Sequential(nn.Dense(2, bias=False), nn.Dense(2, bias=False), input_shape=(2,))
    with pytest.raises(nn.FileError, match="does not say which of dense, dense is layer 0: both fit"):
        load(tmp_path / "m.weights.h5", two)
    twins = nn.Sequential(nn.Residual(nn.Dense(2), nn.ReLU(), shortcut=nn.Dense(2)), input_shape=(2,))
    (tmp_path / "m.weights.h5").write_bytes(
        hdf5({"layers/dense": [values(2, 2), values(2)], "layers/dense_1": [values(2, 2), values(2)]})
    )
    with pytest.raises(nn.FileError, match=r"which of its layers are 0.0 and 0.shortcut.0: their shapes are equal"):
        load(tmp_path / "m.weights.h5", twins)


def test_weights_of_an_architecture_that_nnlite_has_not(tmp_path):
    config = chain(entrance(3), layer("RandomFlip", "f"), layer("Dense", "d", units=2))
    W, b = values(3, 2), values(2)
    path = archive(tmp_path / "m.keras", config, {"layers/dense": [W, b]})
    close(load(path, nn.Sequential(nn.Dense(2), input_shape=(3,)))(np.eye(3)), W + b)


# ---- what is refused

PICKLED = {
    "class_name": "__lambda__",
    "config": {"code": base64.b64encode(b"code").decode(), "defaults": None, "closure": None},
}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([layer("LSTM", "l"), layer("Attention", "a"), layer("LSTM", "m")], "nnlite cannot build LSTM, Attention$"),
        ([layer("Lambda", "l", function=PICKLED)], "nnlite cannot build Lambda$"),
        ([layer("Dense", "d", units=2, activation=PICKLED)], "cannot build Dense 'd' .activation .*__lambda__"),
        ([{**layer("Dense", "d", units=2), "registered_name": "mine>Dense"}], "cannot build Dense$"),
        ([{**layer("Dense", "d", units=2), "module": "mine"}], "cannot build Dense$"),
        ([layer("Activation", "a", activation="mish"), layer("ReLU", "r", max_value=6)], "activation 'mish'.$"),
        ([layer("BatchNormalization", "b", axis=1)], "BatchNormalization 'b' .axis 1."),
        ([layer("Conv2D", "c", filters=2, kernel_size=1, data_format="channels_first")], "channels first"),
        ([layer("ZeroPadding2D", "z"), layer("MaxPooling2D", "m")], "padded zeros before it"),
        ([layer("ZeroPadding2D", "z")], "ends with padded zeros"),
        ([layer("Conv2D", "c", filters=2, kernel_size=9)], "Conv2D 'c' .the kernel covers"),
        ([layer("Conv2D", "c", filters=2)], "Conv2D 'c' .'kernel_size'"),
    ],
)  # fmt: skip
def test_layers_that_nnlite_has_not_are_listed(layers, message, tmp_path):
    with pytest.raises(nn.FileError, match=message):
        load(archive(tmp_path / "m.keras", chain(entrance(4, 4, 2), *layers)))


def twice(entry):
    return {**entry, "inbound_nodes": entry["inbound_nodes"] * 2}


def with_outputs(config, *ends):
    return {**config, "config": {**config["config"], "output_layers": [[end, 0, 0] for end in ends]}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (functional(entrance(3), layer("Multiply", "m", "in", "in"), end="m"), "cannot build Multiply$"),
        (functional(entrance(3), layer("Dense", "d", "in", "in", units=3), end="d"), "Dense 'd' .several inputs"),
        (functional(entrance(3), entrance(2), end="in"), "a model of 2 inputs"),
        (with_outputs(functional(entrance(3), end="in"), "in", "in"), "a model of 2 outputs"),
        (functional(entrance(3), twice(layer("Dense", "d", "in", units=3)), end="d"), "is called 2 times"),
    ],
)
def test_graphs_that_nnlite_has_not(config, message, tmp_path):
    with pytest.raises(nn.FileError, match=message):
        load(archive(tmp_path / "m.keras", config))


def dense_file(make):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        make(file.create_group("layers/dense/vars"))
    return buffer.getvalue()


def external(group):
    group.create_dataset("0", (3, 2), "float32", external=[("/etc/passwd", 0, 24)])


def linked(group):
    group["0"] = h5py.ExternalLink("other.h5", "/secret")


def virtual(group):
    layout = h5py.VirtualLayout((3, 2), "float32")
    layout[...] = h5py.VirtualSource("other.h5", "secret", (3, 2))
    group.create_virtual_dataset("0", layout)


def packed(group):
    group.create_dataset("0", (3_000, 200_000), "float32", chunks=(1, 200_000), compression="gzip")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (external, "in another file"),
        (virtual, "in another file"),
        (linked, "there 0 layers"),
        (packed, "more bytes than the file"),
    ],
)
def test_values_of_other_files_and_bombs(make, message, tmp_path):
    config = chain(entrance(3), layer("Dense", "d", units=2, use_bias=False))
    with pytest.raises(nn.FileError, match=message):
        load(archive(tmp_path / "m.keras", config, weights=dense_file(make)))


def test_archives_that_are_bombs(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", " " * 10_000_000)
    with pytest.raises(nn.FileError, match=r"config\.json in the archive would have 10000000 bytes"):
        load(tmp_path / "m.keras")


@pytest.mark.parametrize("data", [b"", b"PK", b"\x89HDF\r\n\x1a\n", b"import os", b"\x80\x04pickled"])
def test_other_files(data, tmp_path):
    (tmp_path / "m.keras").write_bytes(data)
    with pytest.raises(nn.FileError, match=r"m\.keras"):
        load(tmp_path / "m.keras")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.keras")
    with pytest.raises(nn.FileError):
        load(tmp_path)


def test_arguments(tmp_path):
    save(cnn(), tmp_path / "m.keras")
    with pytest.raises(TypeError, match="model must be a Sequential"):
        load(tmp_path / "m.keras", "model")
    with pytest.raises(ValueError, match="logits must be True or False"):
        load(tmp_path / "m.keras", logits=1)
    with pytest.raises(nn.ShapeError, match="input_shape must be"):
        load(tmp_path / "m.keras", input_shape=3)
    with pytest.raises(nn.StateError, match="no input_shape"):
        load(tmp_path / "m.keras", nn.Sequential(nn.Dense(2)))


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_damaged_files_raise_nnlites_errors_only(ending, tmp_path):
    save(branched(), tmp_path / f"m{ending}")
    whole, draw = (tmp_path / f"m{ending}").read_bytes(), np.random.default_rng(1)
    longest = 0
    for i in range(150):
        data = bytearray(whole)
        if i % 3 == 0:
            data = data[: draw.integers(len(data))]
        for _ in range(draw.integers(1, 6)):
            if data:
                data[draw.integers(min(len(data), 12_000 if i % 2 else len(data)))] = draw.integers(256)
        (tmp_path / f"d{ending}").write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                load(tmp_path / f"d{ending}")
        except nn.FileError as error:
            longest = max(longest, len(str(error)))
    assert 0 < longest <= 600


@pytest.mark.parametrize("text", [b"a long name of a layer", b"GCOL"])
def test_texts_that_lie_are_not_read(text, tmp_path):
    """HDF5 would reserve 4 GB."""
    whole = hdf5({"layers/dense": [values(2, 2), values(2)]}, {"layers/dense": text.decode() if text != b"GCOL" else "a name"})
    heap = whole.find(b"GCOL").to_bytes(8, "little")
    at = next(at for at in range(0, len(whole), 4) if whole[at : at + 8] == heap and whole[at - 4 : at] != bytes(4))
    data = bytearray(whole)
    if text == b"GCOL":
        data[at : at + 8] = b"\xff" * 8  # no heap is there
    data[at - 4 : at] = b"\xf0\xff\xff\xff"
    (tmp_path / "m.weights.h5").write_bytes(data)
    with pytest.raises(nn.FileError, match=r"claims to be longer|of the 1 texts in it 1 are missing"):
        load(tmp_path / "m.weights.h5", nn.Sequential(nn.Dense(2), input_shape=(2,)))


def test_without_h5py_the_install_line_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("nnlite.interop.keras")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.delattr(nn.interop, "keras", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'nnlite-numpy\[keras\]'"):
        _ = nn.interop.keras
