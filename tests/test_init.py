"""Initialisers: moments, structure, groups, seeds, copies."""

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn

DENSE, CONV = (300, 200), (64, 3, 5, 32)


@pytest.mark.parametrize("shape", [DENSE, CONV])
@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("he", lambda fan_in, fan_out: 2 / fan_in),
        ("glorot", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ("lecun", lambda fan_in, fan_out: 1 / fan_in),
    ],
)
@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_variance(shape, name, variance, law):
    values = getattr(nn.init, f"{name}_{law}")(shape, np.random.default_rng(0))
    fan_in, fan_out = math.prod(shape[1:]), shape[0] * math.prod(shape[1:-1])
    assert values.mean() == pytest.approx(0, abs=0.02 * values.std())
    assert values.var() == pytest.approx(variance(fan_in, fan_out), rel=0.03)
    widest = abs(values).max() / values.std()
    assert widest < math.sqrt(3) + 0.02 if law == "uniform" else widest > 3


VARIANCES = {
    "he": lambda fan_in, fan_out: 2 / fan_in,
    "glorot": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "lecun": lambda fan_in, fan_out: 1 / fan_in,
}


@pytest.mark.parametrize("name", VARIANCES)
@pytest.mark.parametrize("law", ["normal", "uniform"])
@pytest.mark.parametrize(("groups", "filters"), [(1, 96), (4, 96), (96, 96), (96, 384)])
def test_variance_of_groups(name, law, groups, filters):
    """An input reaches only the filters of its group."""
    layer = nn.Conv2D(filters, (3, 5), groups=groups, bias=False, init=f"{name}_{law}")
    nn.Sequential(layer, input_shape=(5, 5, 96))
    fan_in, fan_out = 15 * 96 // groups, 15 * filters // groups
    assert layer.W.var() == pytest.approx(VARIANCES[name](fan_in, fan_out), rel=0.1)


class Transposed(nn.Layer):
    """y = a V, with V (n_in, n_out)"""

    def __init__(self, units, init, declared=True):
        self.units, self.init, self.declared_fans = units, init, declared

    def build(self, in_shape):
        fans = {"fan_in": in_shape[0], "fan_out": self.units} if self.declared_fans else {}
        self.declare("V", (*in_shape, self.units), self.init, **fans)
        return (self.units,)

    def config(self):
        return {}


@pytest.mark.parametrize("name", VARIANCES)
def test_variance_of_a_users_layer(name):
    for declared, fans in ((True, (300, 100)), (False, (100, 300))):
        layer = Transposed(100, f"{name}_normal", declared)
        nn.Sequential(layer, input_shape=(300,))
        assert layer.V.var() == pytest.approx(VARIANCES[name](*fans), rel=0.05)
    for bad in (0, 2.0, "many"):
        with pytest.raises(ValueError, match="a fan must be a whole number"):
            nn.Layer().declare("V", (2, 3), "ones", fan_in=bad)


@pytest.mark.parametrize("groups", [1, 4])
def test_the_fans_of_a_sequence_s_filters(groups):
    layer = nn.Conv1D(8, 5, groups=groups)
    nn.Sequential(layer, input_shape=(9, 4))
    assert nn.init.fans(layer.declared["W"].shape) == (5 * 4 // groups, 5 * 8 // groups)


def test_functions_of_users_hand_the_fans_on():
    seen = []

    def half(shape, rng):
        seen.append((shape, nn.init.fans(shape)))
        return nn.init.glorot_uniform(shape, rng) / 2

    def values(init):
        return nn.Sequential(nn.Conv2D(8, 3, groups=4, init=init, bias=False), input_shape=(5, 5, 8)).params

    np.testing.assert_allclose(2 * values(half), values("glorot_uniform"), rtol=1e-6)
    assert seen == [((8, 3, 3, 2), (18, 18))] and nn.init.fans((8, 3, 3, 2)) == (18, 72)


@pytest.mark.parametrize("name", ["he_normal", "glorot_uniform", "lecun_normal", "orthogonal", "dirac_uniform"])
def test_without_groups_the_values_are_those_of_the_shape_alone(name):
    layer = nn.Conv2D(6, 3, init=name, bias=False)
    nn.Sequential(layer, input_shape=(5, 5, 4), seed=7, dtype="float64")
    assert np.array_equal(layer.W, getattr(nn.init, name)((6, 3, 3, 4), np.random.default_rng(7)))


@pytest.mark.usefixtures("numpy_kernels")
@given(
    groups=st.integers(1, 4), channels=st.integers(1, 3), filters=st.integers(1, 4), kernel=st.sampled_from([1, 2, 3, (3, 5)])
)
def test_dirac_passes_the_channels_of_each_group_on(groups, channels, filters, kernel):
    """Filter d of a group is its channel d, as in PyTorch; with dirac_uniform the filters beyond the channels are drawn."""
    x = np.random.default_rng(0).standard_normal((2, 6, 7, groups * channels)).astype("float32")
    for init in ("dirac", "dirac_uniform"):
        layer = nn.Conv2D(groups * filters, kernel, padding="same", groups=groups, init=init, bias=False)
        z = nn.Sequential(layer, input_shape=x.shape[1:])(x).reshape(2, 6, 7, groups, filters)
        same = min(filters, channels)
        np.testing.assert_allclose(z[..., :same], x.reshape(2, 6, 7, groups, channels)[..., :same], atol=1e-6)
        rest = layer.W.reshape(groups, filters, -1)[:, same:]
        assert (rest != 0).all() if init == "dirac_uniform" else not rest.any()


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (6, 3, 3, 2)])
def test_orthogonal(shape):
    W = nn.init.orthogonal(shape, np.random.default_rng(0)).reshape(shape[0], -1)
    product = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 2, 3, (3, 5)])
def test_dirac_is_the_identity(kernel):
    layer = nn.Conv2D(5, kernel, padding="same", init="dirac", bias=False)
    nn.set_conv_algorithm("direct")  # to the last bit
    model = nn.Sequential(layer, input_shape=(6, 7, 5))
    nn.set_conv_algorithm("auto")
    x = np.random.default_rng(0).standard_normal((2, 6, 7, 5)).astype(np.float32)
    np.testing.assert_array_equal(model(x), x)


def test_dirac_uniform_passes_channels_on_and_draws_the_rest():
    values = nn.init.dirac_uniform((200, 3, 3, 5), np.random.default_rng(0))
    assert np.array_equal(values[:5], nn.init.dirac((5, 3, 3, 5)))
    assert values[5:].var() == pytest.approx(1 / (3 * 45), rel=0.05) and abs(values[5:]).max() < 1 / math.sqrt(45)
    assert np.array_equal(nn.init.dirac_uniform((3, 3, 3, 5), np.random.default_rng(0)), nn.init.dirac((3, 3, 3, 5)))


def test_whitening_makes_patches_uncorrelated():
    """Correlated, differently scaled pixels: the outputs have the identity as their covariance."""
    rng = np.random.default_rng(0)
    images = np.cumsum(rng.standard_normal((300, 12, 12, 3)), axis=2) @ rng.standard_normal((3, 3)) + 5
    layer = nn.Conv2D(24, 2, bias=False, init=nn.init.whitening(images, eps=0))
    model = nn.Sequential(layer, input_shape=(12, 12, 3), dtype="float64")
    z = model(images)
    covariance = np.cov(z.reshape(-1, 24)[:, :12], rowvar=False)
    np.testing.assert_allclose(covariance, np.eye(12), atol=1e-6)
    np.testing.assert_allclose(z[..., 12:], -z[..., :12], rtol=1e-12, atol=1e-9)
    strength = 1 / np.linalg.norm(layer.W.reshape(24, -1)[:12], axis=1)  # square roots of the eigenvalues
    assert (np.diff(strength) < 0).all()
    small = nn.init.whitening(images, eps=1e6)((12, 2, 2, 3))
    assert abs(small).max() < 1e-2


def test_whitening_refuses_what_does_not_fit():
    images = np.zeros((4, 8, 8, 3))
    for shape in ((4, 2, 2, 1), (4, 12)):
        with pytest.raises(ValueError, match="whitening"):
            nn.init.whitening(images)(shape)
    with pytest.raises(ValueError, match="whitening"):
        nn.init.whitening(images[0])((4, 2, 2, 3))
    with pytest.raises(ValueError, match="finite"):
        nn.init.whitening(images + np.nan)((4, 2, 2, 3))


def test_constants_and_functions():
    model = nn.Sequential(nn.Dense(3, init=nn.init.constant(0.25)), input_shape=(2,))
    assert np.all(model[0].W == 0.25)
    assert np.all(model[0].b == 0)
    assert nn.init.zeros((2, 3)).sum() == 0


NAMES = "he_normal he_uniform glorot_normal glorot_uniform lecun_normal lecun_uniform zeros ones orthogonal dirac dirac_uniform"
IMAGES = np.random.default_rng(0).random((20, 6, 6, 2))
INITIALISERS = [*NAMES.split(), *(getattr(nn.init, name) for name in NAMES.split())]
INITIALISERS += [nn.init.constant(0.25), nn.init.whitening(IMAGES), nn.init.whitening(IMAGES.tolist(), eps=0.1)]


@pytest.mark.parametrize("init", INITIALISERS, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_models_are_copied_and_pickled_with_every_initialiser(init, tmp_path):
    model = nn.Sequential(nn.Conv2D(4, 2, groups=1, init=init), input_shape=(6, 6, 2))
    model.save(tmp_path / "m.safetensors")
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), nn.load(tmp_path / "m.safetensors")
    for other in copies:
        assert np.array_equal(other.params, model.params) and not np.shares_memory(other.params, model.params)
    for other in copies[:2]:
        assert repr(other) == repr(model) and len(repr(model)) < 300
    layer = pickle.loads(pickle.dumps(nn.Conv2D(4, 2, init=init)))  # not built yet
    assert np.array_equal(nn.Sequential(layer, input_shape=(6, 6, 2)).params, model.params)


def test_seed_decides_and_dtypes_begin_alike():
    def make(seed, dtype="float32"):
        return nn.Sequential(nn.Dense(5), nn.Dense(4), input_shape=(3,), seed=seed, dtype=dtype).params

    assert np.array_equal(make(1), make(1))
    assert not np.array_equal(make(1), make(2))
    assert np.array_equal(make(1), make(1, "float64").astype(np.float32))


def test_bad_names_and_shapes():
    with pytest.raises(ValueError, match="he_normal"):
        nn.Sequential(nn.Dense(2, init="kaiming"), input_shape=(2,))
    with pytest.raises(ValueError, match="convolutions"):
        nn.Sequential(nn.Dense(2, init="dirac"), input_shape=(2,))


def test_an_init_of_another_shape_is_refused():
    W = np.arange(12.0).reshape(4, 3)  # (n_in, n_out), as Keras has it
    with pytest.raises(nn.ShapeError, match=r"the init of 0.W gave the shape \(4, 3\), not \(3, 4\)"):
        nn.Sequential(nn.Dense(3, init=lambda shape, rng: W), input_shape=(4,))
    assert np.array_equal(nn.Sequential(nn.Dense(3, init=lambda shape, rng: W.T), input_shape=(4,))[0].W, W.T)
