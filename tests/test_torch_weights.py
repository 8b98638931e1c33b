"""Weights of PyTorch's models: names, layouts, and what does not fit. With PyTorch where it is installed."""

import copy

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nnlite as nn
from nnlite.interop.torch import load, save, state_dict

rng = np.random.default_rng(0)


def cnn(seed=0):
    return nn.Sequential(
        nn.Conv2D(4, 3, padding=1),
        nn.BatchNorm(momentum=0.9),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Conv2D(6, (3, 2), groups=2),
        nn.Flatten(),
        nn.BatchNorm(),
        nn.Tanh(),
        nn.Dense(7),
        nn.Dense(3, bias=False),
        input_shape=(8, 7, 3),
        seed=seed,
    )


def settled(seed=0):
    model = cnn(seed)
    model.params += 0.1 * rng.standard_normal(len(model.params)).astype("float32")
    model.buffers += rng.random(len(model.buffers)).astype("float32")
    return model


def same(model, other):
    return np.array_equal(model.params, other.params) and np.array_equal(model.buffers, other.buffers)


def test_there_and_back(tmp_path):
    model, other = settled(), cnn(1)
    assert len(load(state_dict(model), other)) == len(state_dict(model)) and same(model, other)
    save(model, tmp_path / "w.safetensors")
    other = cnn(2)
    load(tmp_path / "w.safetensors", other)
    assert same(model, other)


def test_layouts_are_pytorchs():
    model = settled()
    theirs = state_dict(model)
    assert {name: array.shape for name, array in theirs.items() if "0." in name[:2] or "8." in name[:2]} == {
        "0.weight": (4, 3, 3, 3),
        "0.bias": (4,),
        "8.weight": (7, 24),
        "8.bias": (7,),
    }
    # Behind Flatten, column (c, i, j) there is column (i, j, c) here.
    h, w, c = model[5].in_shape
    there, here = theirs["8.weight"].reshape(7, c, h, w), model[8].W.reshape(7, h, w, c)
    assert np.array_equal(there.transpose(0, 2, 3, 1), here)
    assert np.array_equal(theirs["6.running_var"].reshape(c, h, w).transpose(1, 2, 0).ravel(), model[6].running_var)


def test_counters_of_batches_are_left_out():
    theirs = state_dict(settled()) | {"1.num_batches_tracked": np.array(5)}
    load(theirs, cnn())


def test_other_names_go_by_order_or_by_patterns():
    model = settled()
    theirs = state_dict(model)
    modules = list(dict.fromkeys(name.split(".")[0] for name in theirs))
    renamed = {f"net.block{modules.index(name.split('.')[0])}.{name.split('.')[1]}": array for name, array in theirs.items()}
    other = cnn(1)
    load(renamed, other)
    assert same(model, other)
    prefixed = {f"features.{name}": array for name, array in theirs.items()}
    other = cnn(2)
    load(prefixed, other, names={"features.*": "*"})
    assert same(model, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {name: a for name, a in w.items() if not name.startswith("9.")}, "other layers: there 5 modules.*here 6"),
        (
            lambda w: {**w, "8.weight": w["8.weight"][:, 1:]},
            r"8\.W .8\.weight in the file. has shape \(7, 23\), here \(7, 24\)",
        ),
        (lambda w: {**w, "20.weight": np.zeros(3)}, "extra 20.weight"),
        (lambda w: {**w, "0.bias": np.array(["a"])}, "weights must be real numbers"),
        (lambda w: 5, "expects a dict of weights or the path"),
    ],
)
def test_what_does_not_fit_changes_nothing(change, message):
    model = cnn(1)
    before = model.params.copy()
    with pytest.raises(nn.FileError, match=message):
        load(change(state_dict(settled())), model)
    assert np.array_equal(model.params, before)


def test_a_pickled_file_is_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"PK not safetensors")
    with pytest.raises(nn.FileError, match=r"torch\.load"):
        load(tmp_path / "w.pth", cnn())


def test_any_tool_reads_the_file(tmp_path):
    save(settled(), tmp_path / "w.safetensors")
    arrays = load_file(tmp_path / "w.safetensors")
    assert arrays["4.weight"].shape == (6, 2, 3, 2)
    save_file(arrays, tmp_path / "again.safetensors")
    load(str(tmp_path / "again.safetensors"), cnn())


def test_pytorch_gives_the_same():
    torch = pytest.importorskip("torch")
    from torch import nn as t

    theirs = t.Sequential(
        t.Conv2d(3, 4, 3, padding=1), t.BatchNorm2d(4), t.ReLU(), t.MaxPool2d(2), t.Conv2d(4, 6, (3, 2), groups=2), t.Flatten(),
        t.BatchNorm1d(24), t.Tanh(), t.Linear(24, 7), t.Linear(7, 3, bias=False),
    )  # fmt: skip
    x = rng.standard_normal((5, 8, 7, 3)).astype("float32")
    turned = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    theirs(turned)  # running statistics
    theirs.eval()
    model = cnn()
    load(theirs.state_dict(), model)
    np.testing.assert_allclose(model(x), theirs(turned).detach().numpy(), atol=1e-5)
    model = settled(3)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in state_dict(model).items()}, strict=False)
    np.testing.assert_allclose(model(x), theirs(turned).detach().numpy(), atol=1e-5)


def sequence_net(seed=0):
    layers = nn.Conv1D(4, 3, padding=1), nn.BatchNorm(), nn.PReLU(), nn.GroupNorm(2), nn.MaxPool1D(2), nn.Flatten()
    return nn.Sequential(*layers, nn.PReLU(shared=True), nn.PReLU(), nn.Dense(3), input_shape=(9, 2), seed=seed)


def test_sequences():
    """There (N, C, T), also where they are flattened; here (N, T, C)."""
    model, other = sequence_net(), sequence_net(1)
    model.params += rng.standard_normal(len(model.params)).astype("float32")
    theirs = state_dict(model)
    assert {name: array.shape for name, array in theirs.items() if array.ndim > 1} == {
        "0.weight": (4, 2, 3),
        "8.weight": (3, 16),
    }
    assert np.array_equal(theirs["8.weight"].reshape(3, 4, 4).transpose(0, 2, 1), model[8].W.reshape(3, 4, 4))
    assert np.array_equal(theirs["7.weight"].reshape(4, 4).T.ravel(), model[7].slopes)
    load(theirs, other)
    assert same(model, other)


def test_flattened_rows_that_are_no_sequences_keep_their_order():
    model = nn.Sequential(nn.Flatten(), nn.Dense(2), input_shape=(3, 4))
    assert np.array_equal(state_dict(model)["1.weight"], model[1].W)


def test_pytorch_gives_the_same_for_sequences():
    torch = pytest.importorskip("torch")
    from torch import nn as t

    theirs = t.Sequential(
        t.Conv1d(2, 4, 3, padding=1), t.BatchNorm1d(4), t.PReLU(4), t.GroupNorm(2, 4), t.MaxPool1d(2), t.Flatten(),
        t.PReLU(), t.PReLU(16), t.Linear(16, 3),
    )  # fmt: skip
    for p in theirs.parameters():
        p.data += torch.randn(p.shape)
    x, model = rng.standard_normal((5, 9, 2)).astype("float32"), sequence_net()
    load(theirs.state_dict(), model)
    turned = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 2, 1)))
    np.testing.assert_allclose(model(x), theirs.eval()(turned).detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("before", [[], [nn.ReLU()]])
@pytest.mark.parametrize("branches", [nn.Residual(nn.Dense(12)), nn.Concat(nn.Dense(4), [])])
def test_branches_of_flattened_images_are_refused(before, branches):
    """Columns can be permuted, what a shortcut adds to other units cannot."""
    model = nn.Sequential(nn.Flatten(), *before, copy.deepcopy(branches), nn.Dense(2), input_shape=(2, 2, 3))
    with pytest.raises(nn.StateError, match=r"layer . joins flattened images"):
        state_dict(model)
