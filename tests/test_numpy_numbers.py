"""Numbers of NumPy's are numbers: the same bits as with Python's, whatever their kind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn

rng = np.random.default_rng(0)
X, T = rng.standard_normal((6, 4)).astype("float32"), rng.integers(0, 3, 6)
NUMPY_INTEGERS = st.sampled_from([np.int8, np.uint8, np.int32, np.int64, np.uint64])
NUMPY_REALS = st.sampled_from([np.float16, np.float32, np.float64])

# Models that use every number that a layer takes, from whole numbers n and k and a real number r.
NETWORKS = {
    "dense": lambda n, k, r: (
        nn.Dense(n),
        nn.LeakyReLU(r),
        nn.BatchNorm(momentum=r, eps=r),
        nn.LayerNorm(eps=r),
        nn.Dropout(r),
    ),
    "images": lambda n, k, r: (
        nn.Reshape((n, n, -1)),
        nn.Normalize([r, r, r], r),
        nn.Conv2D(k, (k, 1), padding=(k, 1), stride=(1, k), groups=1),
        nn.MaxPool2D(k, 1, padding=1),
        nn.AvgPool2D((k, k), k, padding=(0, 1)),
        nn.Flatten(),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@given(integer=NUMPY_INTEGERS, real=NUMPY_REALS)
def test_numbers_of_numpy_are_numbers(name, integer, real):
    x, r = rng.standard_normal((3, 48)).astype("float32"), float(real(0.3))
    results = []
    for whole, number in ((int, float), (integer, real)):
        layers = NETWORKS[name](whole(4), whole(2), number(r))
        model = nn.Sequential(*layers, input_shape=(whole(48),), seed=whole(3))
        z = model.forward(x, training=True)
        results.append((z.copy(), model.backward(np.ones_like(z)), model.grads, model.buffers, model(x)))
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == np.float32 and np.array_equal(ours, expected)


@given(integer=NUMPY_INTEGERS, real=NUMPY_REALS)
def test_numbers_of_numpy_in_losses_schedules_and_augmentation(integer, real):
    z, r = rng.standard_normal((6, 3)).astype("float32"), float(real(0.3))
    images, index = rng.integers(0, 256, (4, 8, 8, 3)).astype("uint8"), np.arange(4)

    def results(whole, number):
        yield from nn.Huber(number(r))(z, z[::-1])
        yield from nn.BinaryCrossEntropy(pos_weight=number(r), class_weight={whole(1): number(r)})(z, z > 0)
        yield from nn.CrossEntropy(label_smoothing=number(r), class_weight=[number(r)] * 3, ignore_index=whole(2))(z, T)
        for schedule in (
            nn.schedules.step(r, whole(5)),
            nn.schedules.linear(r, whole(5)),
            nn.schedules.warmup(lambda i: r, whole(5)),
        ):
            yield from map(schedule, (0, 4, 1000))
        for augmentation in (
            nn.data.RandomCrop(whole(2)),
            nn.data.RandomCrop(whole(2), mode="reflect"),
            nn.data.Cutout(whole(5)),
        ):
            yield augmentation(images, index, 0, 0)
        yield next(nn.data.Dataset(X, T).batches(whole(4), epoch=whole(1), seed=whole(2), start=whole(1)))[0]

    for ours, expected in zip(results(integer, real), results(int, float), strict=True):
        assert np.asarray(ours).dtype == np.asarray(expected).dtype and np.array_equal(ours, expected)


OPTIMISERS = {
    "SGD": lambda n, r: nn.SGD(r, momentum=r, weight_decay=r, clip_norm=r),
    "Adam": lambda n, r: nn.Adam(r, betas=[r, r], eps=r, weight_decay=r),
    "AdamW": lambda n, r: nn.AdamW(r, weight_decay=r),
    "RMSProp": lambda n, r: nn.RMSProp(r, alpha=r, eps=r),
    "Muon": lambda n, r: nn.Muon(r, momentum=r, weight_decay=r, iterations=n(3)),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@given(integer=NUMPY_INTEGERS, real=NUMPY_REALS)
def test_numbers_of_numpy_in_optimisers(name, integer, real):
    results = []
    for whole, number in ((int, float), (integer, real)):
        model = nn.Sequential(nn.Dense(3, bias=False), input_shape=(4,))
        optimizer = OPTIMISERS[name](whole, number(real(0.3)))
        for _ in range(3):
            model.loss_and_grad(X, T, nn.CrossEntropy())
            optimizer.step(model)
        results.append(model.params.copy())
    assert np.array_equal(*results)


def test_arguments_of_lists_and_arrays_come_back_from_a_file(tmp_path):
    layers = nn.Normalize(np.array([1.0, 2.0]), np.float64(3)), nn.Conv2D(np.int64(3), [3, 3], bias=np.bool(True)), nn.Flatten()
    model = nn.Sequential(*layers, input_shape=[np.int64(5), 5, 2])
    model.save(tmp_path / "m.safetensors")
    x = rng.standard_normal((2, 5, 5, 2))
    assert np.array_equal(nn.load(tmp_path / "m.safetensors")(x), model(x))
