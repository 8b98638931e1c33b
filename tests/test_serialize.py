"""Saving and loading: the same bytes, the same bits, clear errors, no half files."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nnlite as nn

X = np.random.default_rng(0).standard_normal((5, 6, 6, 3)).astype(np.float32)


def make(units=4, extra=()):
    return nn.Sequential(
        nn.Normalize((1, 2, 3), 2.5),
        nn.Conv2D(3, (3, 2), padding="same"),
        nn.BatchNorm(momentum=0.7),
        nn.Residual(nn.Conv2D(3, 1), nn.GELU("tanh"), shortcut=nn.Conv2D(3, 1)),
        *extra,
        nn.Sequential(nn.Flatten(), nn.Dense(units, init="orthogonal")),
        input_shape=(6, 6, 3),
        seed=3,
    )


def test_round_trip(tmp_path):
    model = make()
    model.forward(X, training=True)
    model.freeze("3.*")
    model.save(tmp_path / "a.safetensors")
    loaded = nn.load(tmp_path / "a.safetensors")
    assert repr(loaded) == repr(model)
    assert np.array_equal(loaded(X), model(X)) and np.array_equal(loaded.buffers, model.buffers)
    assert loaded.passes == 1 and loaded.dtype == "float32"
    assert loaded.summary() is None
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert [s.frozen for s in loaded.vectors.trained] == [s.frozen for s in model.vectors.trained]


def test_the_file_is_plain_safetensors_with_one_key(tmp_path):
    from safetensors import safe_open

    make().save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "numpy") as file:
        assert list(file.metadata()) == ["nnlite"]
        text = file.metadata()["nnlite"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert "1.W" in load_file(tmp_path / "m.safetensors")


class Twice(nn.Layer):
    """y = 2 a"""

    def forward(self, a, ctx):
        return 2 * a

    def backward(self, delta, ctx):
        return 2 * delta


def test_a_users_layer_is_given_not_imported(tmp_path):
    model = make(extra=[Twice()])
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(nn.FileError, match=r"layers=\[Twice"):
        nn.load(tmp_path / "m.safetensors")
    assert np.array_equal(nn.load(tmp_path / "m.safetensors", layers=[Twice])(X), model(X))


def test_an_initialiser_that_is_a_function(tmp_path):
    model = nn.Sequential(nn.Dense(2, init=nn.init.constant(0.5)), input_shape=(3,))
    model.save(tmp_path / "m.safetensors")
    assert np.all(nn.load(tmp_path / "m.safetensors")[0].W == 0.5)


class Wavy(nn.Layer):
    """y = function(a)."""

    def __init__(self, function=np.tanh, options=None):
        self.function, self.options = function, options

    def forward(self, a, ctx):
        return self.function(a)


@pytest.mark.parametrize("layer", [Wavy(np.sin), Wavy(), Wavy(None, {"a": 1})])
def test_what_cannot_be_saved_is_refused(tmp_path, layer):
    model = nn.Sequential(layer, input_shape=(3,))
    with pytest.raises(nn.StateError, match=r"Wavy cannot be saved: its argument (function|options) is"):
        model.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_model_of_a_class_of_its_own_comes_back_as_its_layers(tmp_path):
    class Net(nn.Sequential):
        def __init__(self, hidden=8):
            super().__init__(nn.Dense(hidden), nn.Tanh(), nn.Dense(2), input_shape=(4,))
            self.hidden = hidden

    model, x = Net(5), np.ones((2, 4))
    model.save(tmp_path / "m.safetensors")
    assert np.array_equal(nn.load(tmp_path / "m.safetensors")(x), model(x))


class Branches(nn.Residual):
    """A Residual with an argument before its layers."""

    def __init__(self, width, *layers):
        super().__init__(*layers)
        self.width = width


def test_arguments_before_the_layers(tmp_path):
    model = nn.Sequential(Branches(3, nn.Tanh(), nn.Dense(4)), input_shape=(4,))
    model.save(tmp_path / "m.safetensors")
    assert np.array_equal(nn.load(tmp_path / "m.safetensors", layers=[Branches])(np.ones((2, 4))), model(np.ones((2, 4))))


def test_strict_and_lenient_weights(tmp_path):
    path = tmp_path / "m.safetensors"
    make().save(path)
    same, other = make(), make(units=7, extra=[nn.Conv2D(3, 1)])
    same.params += 1
    assert len(same.load_weights(path)) == len(same.named_params()) + len(same.named_buffers())
    assert np.array_equal(same(X), make()(X))
    before = other.params.copy()
    words = r"extra 4.1.W.*missing 4.W.*missing 5.1.W"
    with pytest.raises(nn.FileError, match=words):
        other.load_weights(path)
    assert np.array_equal(other.params, before), "nothing is taken when something does not fit"
    with pytest.raises(nn.FileError, match=r"4.1.W has shape \(4, 108\), here \(7, 108\)"):
        make(units=7).load_weights(path)
    taken = other.load_weights(path, strict=False)
    assert "1.W" in taken and "2.running_mean" in taken and "5.1.W" not in taken
    assert np.array_equal(other[1].W, make()[1].W)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "no key", "other json", "wrong class", "format"])
def test_damaged_files(tmp_path, damage):
    path = tmp_path / "m.safetensors"
    make().save(path)
    data, arrays = path.read_bytes(), load_file(path)
    good = {"format": 1, "frozen": [], "passes": 0, "model": {"class": "Sequential"}}
    texts = {
        "other json": "[1]",
        "wrong class": json.dumps(good | {"model": {"class": "Dense", "units": "many"}}),
        "format": json.dumps(good | {"format": 99}),
    }
    if damage in texts:
        save_file(arrays, path, metadata={"nnlite": texts[damage]})
    elif damage == "no key":
        save_file(arrays, path)
    else:
        path.write_bytes({"truncated": data[:-100], "garbage": os.urandom(500), "empty": b""}[damage])
    with pytest.raises(nn.FileError, match=r"m\.safetensors"):
        nn.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        nn.load(tmp_path / "nothing")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    make().save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        make(units=9).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
