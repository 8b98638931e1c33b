"""What predictions rest on: the maps add up, are those of their formulas, and depend on what the model has learnt."""

import numpy as np
import pytest

import nnlite as nn
from nnlite.engine import cut
from nnlite.insight.explain import grad_cam, integrated_gradients, occlusion, saliency

pytestmark = pytest.mark.usefixtures("both_kernels")
rng = np.random.default_rng(0)
DATA = nn.data.shapes(300, seed=0)
X, T = DATA.train.images[:240, ::2, ::2] / np.float32(255), DATA.train.labels[:240]
MAPS = (
    saliency,
    lambda model, x, classes: integrated_gradients(model, x, classes, steps=8),
    lambda model, x, classes: grad_cam(model, x, "4", classes),
    lambda model, x, classes: occlusion(model, x, 5, classes),
)


def trained(*layers, x=X, t=T, dtype="float64"):
    """A model after a few steps, so that its biases and statistics are not those of the beginning."""
    model = nn.Sequential(*layers, input_shape=x.shape[1:], dtype=dtype)
    nn.Trainer(model, nn.CrossEntropy(), nn.Adam(3e-3)).fit((x, t), epochs=2, batch_size=32, progress=False)
    return model


def smooth(activation):
    convolution = nn.Conv2D(6, 3, stride=2), nn.BatchNorm(), activation(), nn.AvgPool2D(2)
    return *convolution, nn.Flatten(), nn.Dense(12), activation(), nn.Dropout(0.3), nn.Dense(10)


def rectified():
    convolution = nn.Conv2D(6, 3), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(2), nn.Conv2D(8, 3), nn.ReLU(), nn.MaxPool2D(2)
    return *convolution, nn.Flatten(), nn.Dense(10)


def gap(model, x, classes, baseline, steps):
    """By how much attributions miss the difference of the outputs, of the sum of their absolute values."""
    found = integrated_gradients(model, x, classes, baseline=baseline, steps=steps).reshape(len(x), -1)
    zero = np.broadcast_to(np.asarray(baseline, model.dtype), x.shape)
    rise = (model(x) - model(zero))[np.arange(len(x)), classes]
    assert abs(rise).min() > 1e-3
    return (abs(found.sum(axis=1) - rise) / abs(found).sum(axis=1)).max()


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
def test_integrated_gradients_of_smooth_models_add_up(activation):
    x, classes = X[:6], rng.integers(0, 10, 6)
    model = trained(*smooth(activation))
    assert gap(model, x, classes, X[100:106], 64) < 1e-8
    assert gap(model, x, classes, 0.4, 64) < 1e-8 < gap(model, x, classes, 0.4, 2)


def test_integrated_gradients_of_rectified_models_nearly_add_up():
    x, classes = X[:3], rng.integers(0, 10, 3)
    assert gap(trained(*rectified()), x, classes, X[100], 300) < 0.02


@pytest.mark.parametrize("threads", [1, 2])
def test_grad_cam_is_that_of_a_model_cut_in_two(threads, monkeypatch):
    nn.set_num_threads(threads)
    for name, value in (("BUDGET", 1), ("WORTH_CUTTING", 0)):  # many shards
        monkeypatch.setattr(cut, name, value)
    model, x = trained(*rectified(), dtype="float32"), X[:100]
    found, classes = grad_cam(model, x, "5"), model(x).argmax(axis=1)
    layers = model.layers
    A = nn.Sequential(*layers[:6], input_shape=x.shape[1:])(x)
    back = nn.Sequential(*layers[6:], input_shape=A.shape[1:])
    delta = back.input_gradient(A, np.eye(10)[classes])
    expected = np.maximum(np.einsum("nk,nhwk->nhw", delta.mean(axis=(1, 2)), A), 0)
    assert found.shape == A.shape[:3] and (expected > 0).any() and (expected == 0).any()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_nothing_of_the_model_changes():
    model, x = trained(*rectified()), X[:4]
    z = model.forward(x, training=True)
    before = model.plan, model.params.copy(), model.buffers.copy(), model.grads.copy(), model.passes
    for explain in MAPS:
        assert np.isfinite(explain(model, x, None)).all()
    assert model.plan is before[0] and model.passes == before[4]
    assert all(map(np.array_equal, before[1:4], (model.params, model.buffers, model.grads)))
    assert model.backward(np.ones_like(z)).shape == x.shape


def test_each_sample_has_its_own_map_and_class():
    model, x, classes = trained(*rectified()), X[:5], [3, 1, 0, 9, 9]
    for explain in MAPS:
        whole = explain(model, x, classes)
        alone = [explain(model, x[i : i + 1], int(c))[0] for i, c in enumerate(classes)]
        np.testing.assert_allclose(whole, alone, rtol=1e-9, atol=1e-12)
        best = explain(model, x, model(x).argmax(axis=1))
        assert not np.allclose(whole, best) and np.array_equal(explain(model, x, None), best)


@pytest.mark.parametrize("explain", [saliency, integrated_gradients, occlusion, grad_cam], ids=lambda f: f.__name__)
def test_random_weights_change_the_map(explain):
    """A map that stays the same shows edges of the input, not what the model has learnt."""
    model, x = trained(*rectified()), X[:20]
    options = {occlusion: {"window": 4}, grad_cam: {"layer": "4"}}.get(explain, {})
    before = explain(model, x, classes=2, **options)
    model.params[...] = nn.Sequential(*rectified(), input_shape=x.shape[1:], seed=9, dtype="float64").params
    after = explain(model, x, classes=2, **options)
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(before, after, strict=True) if a.any() and b.any()]
    assert len(alike) > 4 and np.median(alike) < 0.7


def test_vectors():
    """Of a linear model every map is known."""
    x = rng.standard_normal((4, 5))
    model = nn.Sequential(nn.Dense(3), input_shape=(5,), dtype="float64")
    model[0].b = rng.standard_normal(3)
    w = model[0].W[1]
    np.testing.assert_allclose(saliency(model, x, 1), np.broadcast_to(abs(w), x.shape))
    np.testing.assert_allclose(integrated_gradients(model, x, 1, baseline=0.5, steps=1), (x - 0.5) * w)
    np.testing.assert_allclose(occlusion(model, x, 1, 1, fill=0.5), (x - 0.5) * w)
    pair = (x * w)[:, 1:] + (x * w)[:, :-1]
    mean = np.column_stack([pair[:, :1], (pair[:, 1:] + pair[:, :-1]) / 2, pair[:, -1:]])
    np.testing.assert_allclose(occlusion(model, x, 2, 1, stride=1), mean)
    three = np.repeat((x * w)[:, :3].sum(axis=1)[:, None], 5, axis=1)
    three[:, 3:] = (x * w)[:, 3:].sum(axis=1)[:, None]
    np.testing.assert_allclose(occlusion(model, x, 3, 1), three)  # the last window is cut


def test_occlusion_covers_all_channels_of_a_window():
    model, x = trained(*rectified()), X[:3]
    found = occlusion(model, x, (4, 8), 2, fill=0.5)
    other = x.copy()
    other[:, 4:8, 8:16] = 0.5
    expected = (model(x) - model(other))[:, 2]
    assert found.shape == (3, 16, 16) and abs(expected).max() > 0
    np.testing.assert_allclose(found[:, 4:8, 8:16], np.broadcast_to(expected[:, None, None], (3, 4, 8)), rtol=1e-9)


def test_sequences_and_integers():
    x = rng.integers(0, 255, (3, 12, 2)).astype("uint8")
    model = nn.Sequential(nn.Conv1D(4, 3), nn.Tanh(), nn.Flatten(), nn.Dense(3), input_shape=(12, 2))
    assert grad_cam(model, x, "1").shape == (3, 10) and occlusion(model, x, 3).shape == (3, 12)
    assert np.array_equal(integrated_gradients(model, x), integrated_gradients(model, x.astype("float32")))
    model = nn.Sequential(nn.Embedding(300, 4), nn.Flatten(), nn.Dense(3), input_shape=(12,))
    ids = x[..., 0]  # bytes, which have no 299
    assert np.array_equal(occlusion(model, ids, 3, fill=299), occlusion(model, ids.astype("int64"), 3, fill=299))
    for fill, words in ((0.5, "fill must be an id"), (-1, "these are from -1"), (300, "to 300")):
        with pytest.raises(nn.DataError, match=words):
            occlusion(model, ids, 3, fill=fill)


def test_what_does_not_fit_is_refused():
    model, x = nn.Sequential(*rectified(), input_shape=(16, 16, 3)), X[:3]
    with pytest.raises(ValueError, match=r"no layer '9': there are 0 Conv2D\(6, 3\), 1 BatchNorm\(\), .* 8 Dense\(10\)"):
        grad_cam(model, x, "9")
    assert np.array_equal(grad_cam(model, x, 4), grad_cam(model, x, "4"))
    with pytest.raises(nn.ShapeError, match=r"layer 7 Flatten\(\) gives vectors"):
        grad_cam(model, x, "7")
    refused = {10: "no class 10: they are 0 to 9", -1: "no class -1", (0, 1): "one for each of 3 samples", 0.5: "whole"}
    for classes, said in refused.items():
        for explain in MAPS:
            with pytest.raises(nn.DataError, match=said):
                explain(model, x, classes)
    with pytest.raises(nn.ShapeError, match="layer 0"):
        saliency(model, x[:, 1:])
    with pytest.raises(nn.ShapeError, match=r"baseline must be a number or have shape \(16, 16, 3\)"):
        integrated_gradients(model, x, baseline=np.zeros((16, 16)))
    with pytest.raises(ValueError, match="steps"):
        integrated_gradients(model, x, steps=0)
    for options in ({"window": 17}, {"window": (3, 3, 3)}, {"window": 3, "stride": 4}, {"window": 3, "stride": (1, 2, 3)}):
        with pytest.raises(nn.ShapeError, match=r"window|stride"):
            occlusion(model, x, **options)
    for window in (0, 2.5, "3"):
        with pytest.raises(ValueError, match="window must be"):
            occlusion(model, x, window)
    with pytest.raises(nn.ShapeError, match="a place for each class"):
        saliency(nn.Sequential(nn.Conv2D(2, 1), input_shape=(4, 4, 1)), np.zeros((1, 4, 4, 1)))


# ---- against PyTorch, where it is installed


@pytest.fixture
def theirs():
    """A model of both libraries with the same weights, images (N, H, W, C) and (N, C, H, W)."""
    torch = pytest.importorskip("torch", reason="PyTorch is in the environment of the benchmarks only")
    convolution = torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Conv2d(6, 8, 3), torch.nn.Tanh()
    model = torch.nn.Sequential(*convolution, torch.nn.Flatten(), torch.nn.Linear(200, 4)).double()
    layers = nn.Conv2D(6, 3), nn.ReLU(), nn.MaxPool2D(2), nn.Conv2D(8, 3), nn.Tanh(), nn.Flatten(), nn.Dense(4)
    ours = nn.Sequential(*layers, input_shape=(16, 16, 3), dtype="float64")
    nn.interop.torch.load(model.state_dict(), ours)
    return ours, model, X[:4].astype("float64"), torch.tensor(X[:4].astype("float64")).permute(0, 3, 1, 2)


def test_pytorch_finds_the_same(theirs):
    import torch

    ours, model, x, there = theirs

    def gradient(a):
        a = a.clone().requires_grad_()
        return torch.autograd.grad(model(a)[:, 1].sum(), a)[0]

    def same(found, expected):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-9, atol=1e-12)

    same(saliency(ours, x, 1), gradient(there).abs().permute(0, 2, 3, 1))
    places, weights = np.polynomial.legendre.leggauss(20)
    mean = sum(w / 2 * gradient(0.3 + (1 + p) / 2 * (there - 0.3)) for p, w in zip(places, weights, strict=True))
    same(integrated_gradients(ours, x, 1, baseline=0.3, steps=20), ((there - 0.3) * mean).permute(0, 2, 3, 1))
    A = model[:4](there)
    dA = torch.autograd.grad(model[4:](A)[:, 1].sum(), A)[0]
    same(grad_cam(ours, x, "3", 1), torch.relu((dA.mean(dim=(2, 3), keepdim=True) * A).sum(dim=1)))


def test_captum_finds_the_same(theirs):
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    ours, model, x, there = theirs

    def same(found, expected):
        """To float32: captum weighs steps and adds windows in it."""
        expected = expected.detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * abs(expected).max())

    by_steps = captum.IntegratedGradients(model).attribute(there, target=1, n_steps=20, method="gausslegendre")
    same(integrated_gradients(ours, x, 1, steps=20), by_steps.permute(0, 2, 3, 1))
    cam = captum.LayerGradCam(model, model[3]).attribute(there, target=1, relu_attributions=True)
    same(grad_cam(ours, x, "3", 1), cam[:, 0])
    covered = captum.Occlusion(model).attribute(there, sliding_window_shapes=(3, 5, 4), strides=(3, 2, 3), target=1)
    same(occlusion(ours, x, (5, 4), 1, stride=(2, 3)), covered[:, 0])
