"""Weights between models: other names, what is left out, and what is refused while the model is as it was."""

import copy
import pickle
from fnmatch import fnmatchcase

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import nnlite as nn
from nnlite.serialize import renamed


def net(*head, seed=0):
    return nn.Sequential(nn.Dense(6), nn.BatchNorm(), nn.ReLU(), *head, input_shape=(4,), seed=seed)


def nested(*head, seed=1):
    """The same behind a name of its own."""
    backbone = nn.Sequential(nn.Dense(6), nn.BatchNorm(), nn.ReLU())
    return nn.Sequential(backbone, *head, input_shape=(4,), seed=seed)


@pytest.fixture
def path(tmp_path):
    net(nn.Dense(3)).save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


X = np.random.default_rng(0).standard_normal((5, 4))


def test_values_of_other_names(path):
    model = nested(nn.Dense(3))
    taken = model.load_weights(path, names={"3.*": "1.*", "*": "0.*"})
    assert taken == [*model.named_params(), *model.named_buffers()] and not taken.left_out
    assert np.array_equal(model(X), net(nn.Dense(3))(X))
    assert repr(taken) == "8 values taken: 0.0.W, 0.0.b, 0.1.gamma, 0.1.beta, 1.W and 3 more"


def test_the_other_way_round_and_one_by_one(tmp_path):
    nested(nn.Dense(3)).save(tmp_path / "m.safetensors")
    for names in (
        {"0.*": "*", "1.*": "3.*"},
        {"0.*": "*", "1.W": "3.W", "1.b": "3.b"},
        {"1.*b": "3.*b", "1.W": "3.W", "0.*": "*"},
    ):
        model = net(nn.Dense(3))
        assert model.load_weights(tmp_path / "m.safetensors", names=names) == [*model.named_params(), *model.named_buffers()]
        assert np.array_equal(model(X), nested(nn.Dense(3))(X))


def test_what_does_not_fit_is_left_out_and_said(path):
    model, before = nested(nn.Dense(2), nn.Dense(2)), nested(nn.Dense(2), nn.Dense(2))
    with pytest.raises(nn.FileError, match=r"1\.W \(3\.W in the file\) has shape \(3, 6\), here \(2, 6\)"):
        model.load_weights(path, names={"3.*": "1.*", "*": "0.*"})
    assert np.array_equal(model.params, before.params)
    taken = model.load_weights(path, strict=False, names={"3.*": "1.*", "1.beta": "7.beta", "*": "0.*"})
    assert taken == ["0.0.W", "0.0.b", "0.1.gamma", "0.1.running_mean", "0.1.running_var"]
    assert taken.left_out == [
        "missing 0.1.beta",
        "1.W (3.W in the file) has shape (3, 6), here (2, 6)",
        "1.b (3.b in the file) has shape (3,), here (2,)",
        "missing 2.W",
        "missing 2.b",
        "extra 7.beta (1.beta in the file)",
    ]
    assert "5 values taken: 0.0.W, " in repr(taken) and "; left out: missing 0.1.beta, 1.W (3.W in " in repr(taken)
    assert np.array_equal(model[0][0].W, net(nn.Dense(3))[0].W) and np.array_equal(model[1].W, before[1].W)
    for twin in (copy.deepcopy(taken), pickle.loads(pickle.dumps(taken))):
        assert twin == taken and twin.left_out == taken.left_out


def test_whole_numbers_are_no_weights(path):
    arrays = load_file(path)
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    save_file(arrays | {"0.b": arrays["0.b"].astype(int)}, path, metadata)
    assert net(nn.Dense(3)).load_weights(path, strict=False).left_out == ["0.b is int64"]


@pytest.mark.parametrize("strict", [True, False])
def test_where_nothing_fits_at_all_it_is_refused(path, strict):
    model = nn.Sequential(nn.Dense(9), nn.Dense(9), input_shape=(9,))
    with pytest.raises(nn.FileError, match=r"m\.safetensors does not fit this model: 0\.W has shape"):
        model.load_weights(path, strict=strict)


NAMES = {
    "*": {"*": "0"}, "* ": {"0": "*"}, "two": {"*.*": "*.*"}, "no text": {3: "*"}, "no texts": {"*": None}, "no dict": ["*"],
    "text": "0.*", "strange": {"x" * 3000: "*"},
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_names_that_make_no_sense(tmp_path, kind):
    """Before the file is opened."""
    with pytest.raises(ValueError, match="names must be") as caught:
        net().load_weights(tmp_path / "no file", names=NAMES[kind])
    assert len(str(caught.value)) <= 600


@pytest.mark.parametrize("strict", [True, False])
def test_names_that_nothing_has_and_two_for_one(path, strict):
    model = net(nn.Dense(3), seed=1)
    before = model.params.copy()
    with pytest.raises(ValueError, match=r"names: nothing in the file is called old\.\*, it has 0\.W, 0\.b, 1\.beta"):
        model.load_weights(path, strict, names={"*": "*", "old.*": "new.*"})
    with pytest.raises(ValueError, match=r"names: '0\.W' and '3\.W' would both be '3\.W' here"):
        model.load_weights(path, strict, names={"0.*": "3.*"})
    assert np.array_equal(model.params, before)


@pytest.mark.parametrize("n", [2, 300])
def test_messages_stay_short(tmp_path, n):
    folder = tmp_path / "/".join(["long" * 20] * (n // 20))
    folder.mkdir(parents=True, exist_ok=True)
    nn.Sequential(*(nn.Dense(2) for _ in range(n)), input_shape=(2,)).save(folder / "m.safetensors")
    other = nn.Sequential(*(nn.Dense(2) for _ in range(n)), nn.Dense(3), input_shape=(2,))
    taken = other.load_weights(folder / "m.safetensors", strict=False, names={"0.*": "x" * 99 + "*"})
    assert len(repr(taken)) <= 600
    for names in ({"0.*": "x" * 99 + "*"}, {"y" * 999: "z"}, {f"{i}.*": "*" for i in range(n)}):
        with pytest.raises(ValueError) as caught:
            other.load_weights(folder / "m.safetensors", names=names)
        assert len(str(caught.value)) <= 600


words = st.text("ab.", max_size=4)


@given(name=st.text("ab.", min_size=1, max_size=7), before=words, behind=words, star=st.sampled_from(["*", ""]), here=words)
def test_a_pattern_fits_as_that_of_fnmatch(name, before, behind, star, here):
    pattern, arrays = before + star + behind, {name: np.zeros(1)}
    if not fnmatchcase(name, pattern):
        with pytest.raises(ValueError, match="nothing in the file is called"):
            renamed(arrays, {pattern: here + star})
        return
    (new,) = renamed(arrays, {pattern: here + star})
    assert new == here + (name[len(before) : len(name) - len(behind)] if star else "")
