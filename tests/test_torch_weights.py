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


def test_a_state_dict_stays_what_it_was():
    model = settled()
    theirs, before = state_dict(model), model.params.copy()
    model.params[...] = 0
    load(theirs, model)
    assert np.array_equal(model.params, before)


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


def test_pytorch_gives_the_same_for_ids():
    torch = pytest.importorskip("torch")
    from torch import nn as t

    vectors, rest = (
        t.Embedding(7, 3),
        (t.Conv1d(3, 4, 3, padding=1), t.Tanh(), t.AdaptiveMaxPool1d(1), t.Flatten(), t.Linear(4, 2)),
    )
    there, ids = t.Sequential(vectors, *rest), rng.integers(0, 7, (5, 6))
    layers = nn.Embedding(7, 3), nn.Conv1D(4, 3, padding=1), nn.Tanh(), nn.GlobalMaxPool1D(), nn.Dense(2)
    model = nn.Sequential(*layers, input_shape=(6,))
    load(there.state_dict(), model)
    z = t.Sequential(*rest)(vectors(torch.from_numpy(ids)).transpose(1, 2))
    np.testing.assert_allclose(model(ids), z.detach().numpy(), rtol=1e-5, atol=1e-6)
    vectors.load_state_dict({"weight": 2 * torch.from_numpy(state_dict(model)["0.weight"])})
    np.testing.assert_array_equal(vectors.weight.detach().numpy(), 2 * model[0].W)


def test_flattened_rows_that_are_no_sequences_keep_their_order():
    model = nn.Sequential(nn.Flatten(), nn.Dense(2), input_shape=(3, 4))
    assert np.array_equal(state_dict(model)["1.weight"], model[1].W)
    for shape in ((5,), (2, 5), (2, 2, 5)):
        of_ids = nn.Sequential(nn.Embedding(4, 3), nn.Tanh(), nn.Flatten(), nn.Dense(2), input_shape=shape)
        assert np.array_equal(state_dict(of_ids)["3.weight"], of_ids[3].W)
    images = nn.Sequential(nn.Embedding(4, 3), nn.Conv2D(2, 1), nn.Flatten(), nn.Dense(2), input_shape=(4, 5))
    turned = images[3].W.reshape(2, 4, 5, 2).transpose(0, 3, 1, 2).reshape(2, -1)
    assert np.array_equal(state_dict(images)["3.weight"], turned)


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


# ---- names of ResNets, and modules without an order


def resnet_names(model, side="downsample", dense="fc", prefix=""):
    """{name here: name there}, by the structure of the model."""
    names, stage, place, width = {}, 0, 0, None
    outside = {"Conv2D": "conv1", "BatchNorm": "bn1", "Dense": dense}
    for path, layer in model.children().items():
        if not isinstance(layer, nn.Residual):
            names |= {f"{path}.": f"{prefix}{outside.get(type(layer).__name__)}."}
            continue
        stage, place = (stage, place + 1) if layer.out_shape == width else (stage + 1, 0)
        width, counts = layer.out_shape, {"conv": 0, "bn": 0}
        for name, inner in layer.branches_by_name()[0].items():
            if inner.declared:
                kind = "conv" if isinstance(inner, nn.Conv2D) else "bn"
                counts[kind] += 1
                names[f"{path}.{name}."] = f"{prefix}layer{stage}.{place}.{kind}{counts[kind]}."
        for i in range(2):
            names[f"{path}.shortcut.{i}."] = f"{prefix}layer{stage}.{place}.{side}.{i}."
    return names


def as_resnet(model, **options):
    names = resnet_names(model, **options)
    modules = {name: f"{name.rpartition('.')[0]}." for name in state_dict(model)}
    return {names[modules[name]] + name.rpartition(".")[2]: array for name, array in state_dict(model).items()}


@pytest.mark.parametrize("order", [sorted, list])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: nn.zoo.resnet(14, preactivation=False), {}),
        (lambda: nn.zoo.resnet(14), {"side": "shortcut", "dense": "linear", "prefix": "module."}),
        (lambda: nn.zoo.imagenet_resnet(50, size=32, classes=3), {}),
    ],
)
def test_resnets_by_their_names(make, options, order):
    model = make()
    model.buffers += rng.random(len(model.buffers)).astype("float32")
    params, buffers, theirs = model.params.copy(), model.buffers.copy(), as_resnet(model, **options)
    model.params[...] = model.buffers[...] = 0
    load({name: theirs[name] for name in order(theirs)}, model)
    assert np.array_equal(model.params, params) and np.array_equal(model.buffers, buffers)


def test_resnets_whose_shortcuts_have_no_weights():
    model = nn.zoo.resnet(8, preactivation=False, projection=False)
    theirs = {
        name: array for name, array in as_resnet(model, side="shortcut", dense="linear").items() if "shortcut" not in name
    }
    load(theirs, model)
    W = model[6].shortcut[0].W[:, 0, 0]
    assert W.shape == (32, 16) and np.array_equal(W[8:24], np.eye(16)) and not W[:8].any() and not W[24:].any()
    with pytest.raises(nn.FileError, match=r"missing 6\.shortcut\.0\.W"):
        load(theirs, nn.zoo.resnet(8, preactivation=False))


def deep(seed):
    return nn.Sequential(*(nn.Dense(3) for _ in range(12)), input_shape=(3,), seed=seed)


def test_a_file_keeps_no_order_but_numbers_have_one(tmp_path):
    model, other = deep(1), deep(2)
    save_file({f"features.{name}": array for name, array in state_dict(model).items()}, tmp_path / "w.safetensors")
    load(tmp_path / "w.safetensors", other)
    assert same(model, other)
    mixed = {f"{'ab'[int(name.partition('.')[0]) % 2]}.{name}": array for name, array in state_dict(model).items()}
    with pytest.raises(nn.FileError, match=r"which of a\.0, a\.2, .* is layer 0\? They fit, in no order; give names="):
        load({name: mixed[name] for name in sorted(mixed)}, deep(2))
    with pytest.raises(nn.FileError, match=r"there 5 modules, x.0.weight \(4, 3, 3, 3\), .*here 12 layers, 0.weight \(3, 3\)"):
        load({f"x.{name}": array for name, array in state_dict(settled()).items() if not name.startswith("9")}, deep(2))


def test_pytorch_resnets_give_the_same():
    torch = pytest.importorskip("torch", reason="PyTorch is in the bench extra")
    from torch import nn as t
    from torch.nn import functional as F

    class Block(t.Module):
        def __init__(self, before, width, stride, pads):
            super().__init__()
            self.conv1 = t.Conv2d(before, width, 3, stride, 1, bias=False)
            self.bn1 = t.BatchNorm2d(width)
            self.conv2 = t.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = t.BatchNorm2d(width)
            self.pads, self.changes = pads, before != width
            if self.changes and not pads:
                self.downsample = t.Sequential(t.Conv2d(before, width, 1, stride, bias=False), t.BatchNorm2d(width))

        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if self.changes and self.pads:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, len(y[0]) // 4, len(y[0]) // 4))
            elif self.changes:
                x = self.downsample(x)
            return F.relu(x + y)

    class ResNet(t.Module):
        def __init__(self, pads):
            super().__init__()
            self.conv1, self.bn1 = t.Conv2d(3, 16, 3, padding=1, bias=False), t.BatchNorm2d(16)
            for i, (before, width) in enumerate([(16, 16), (16, 32), (32, 64)], 1):
                stride = 1 if before == width else 2
                blocks = [Block(before, width, stride, pads), Block(width, width, 1, pads)]
                setattr(self, f"layer{i}", t.Sequential(*blocks))
            self.linear = t.Linear(64, 10)

        def forward(self, x):
            x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
            return self.linear(x.mean((2, 3)))

    x = rng.standard_normal((4, 32, 32, 3)).astype("float32")
    turned = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    for pads in (True, False):
        theirs = ResNet(pads)
        theirs(turned)
        theirs.eval()
        model = nn.zoo.resnet(14, preactivation=False, projection=not pads, mean=(0, 0, 0), std=(1, 1, 1))
        load({f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}, model)
        np.testing.assert_allclose(model(x), theirs(turned).detach().numpy(), atol=2e-5)
