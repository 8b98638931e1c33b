"""On a pretended device that refuses what CuPy refuses, models, losses, optimisers, trainer and files agree with the CPU."""

import copy
import inspect
import threading
import warnings

import fake_cupy
import numpy as np
import pytest
from cases import CASES
from fake_cupy import count
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layers import draw_batch, draw_model

import nnlite as nn
from nnlite.backend import get_backend
from nnlite.backend.cpu.numpy import NumpyBackend
from nnlite.backend.cuda.cupy import CupyBackend
from nnlite.backend.native.backend import NativeBackend
from nnlite.backend.operations import Operations

pytestmark = pytest.mark.usefixtures("cuda")
TOLERANCE = {"float32": 2e-4, "float64": 1e-10}
each_case = pytest.mark.parametrize("case", CASES)
few = settings(max_examples=5)


def lies_on_device(x):
    return hasattr(x, "__cuda_array_interface__")


def host(x):
    return x.get() if lies_on_device(x) else np.asarray(x)


def close(ours, expected, dtype="float64"):
    a, b = host(ours), host(expected)
    np.testing.assert_allclose(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * (1 + abs(b).max(initial=0)))


@each_case
@few
@given(data=st.data())
def test_gradient(case, data):
    model, _ = draw_model(data, case)
    x, _ = draw_batch(data, model, n=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # x may be moved off a kink
        nn.gradcheck(model.to("cuda"), x)


@each_case
@few
@given(data=st.data(), dtype=st.sampled_from(["float32", "float64"]))
def test_the_same_values_as_on_the_cpu(case, data, dtype):
    model, _ = draw_model(data, case, dtype)
    x, delta = draw_batch(data, model)
    moved = copy.deepcopy(model).to("cuda")
    assert moved.device == "cuda" and model.device == "cpu"
    for ours, expected in zip(everything(moved, x, delta), everything(model, x, delta), strict=True):
        assert lies_on_device(ours)
        close(ours, expected, dtype)


def everything(model, x, delta):
    """All that a pass gives."""
    z = model.forward(x, training=True, pass_id=1)
    kept = z.copy()
    return [kept, model.backward(delta), model.grads.copy(), model.buffers.copy(), model(x)]


def small_cnn(seed=0):
    return nn.Sequential(
        nn.Normalize(100.0, 50.0),
        nn.Conv2D(6, 3, padding=1),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Dropout(0.2),
        nn.Residual(nn.Conv2D(6, 3, padding=1, groups=2), nn.GELU("tanh")),
        nn.GlobalMaxPool2D(),
        nn.Dense(3),
        input_shape=(8, 8, 3),
        seed=seed,
    )


def pictures(n=40):
    rng = np.random.default_rng(0)
    return nn.data.Dataset(rng.integers(0, 256, (n, 8, 8, 3)).astype("uint8"), rng.integers(0, 3, n))


def test_relu_is_fused_into_what_is_before_it():
    layers = [nn.Conv2D(4, 3), nn.ReLU(), nn.BatchNorm(), nn.ReLU(), nn.Conv2D(4, 3, groups=4), nn.ReLU(), nn.Flatten()]
    layers += [nn.Dense(5), nn.ReLU(), nn.Dense(3, bias=False), nn.ReLU()]
    model = nn.Sequential(*layers, input_shape=(8, 8, 2)).to("cuda")
    steps = [type(step.layer).__name__ for run in model.plan.training for step in run.steps]
    assert steps.count("_DoneReLU") == 3 and steps.count("ReLU") == 2
    rng = np.random.default_rng(0)
    x, delta = rng.standard_normal((6, 8, 8, 2)).astype("float32"), rng.standard_normal((6, 3)).astype("float32")
    before = model.snapshot()
    fused = everything(model, x, delta)
    model.rewrite = False
    model.restore(before)
    for ours, expected in zip(fused, everything(model, x, delta), strict=True):
        close(ours, expected, "float32")


CRITERIA = [
    nn.CrossEntropy(),
    nn.CrossEntropy(label_smoothing=0.1, class_weight=[1.0, 2.0, 0.5], ignore_index=1),
    nn.CrossEntropy(class_weight={2: 3}),
    nn.MSE(),
    nn.MAE(),
    nn.Huber(0.5),
    nn.BinaryCrossEntropy(),
    nn.BinaryCrossEntropy(pos_weight=2.0, class_weight={0: 0.5}),
    nn.BinaryCrossEntropy(pos_weight=[1.0, 2.0, 0.5]),
]
each_criterion = pytest.mark.parametrize("criterion", CRITERIA, ids=repr)


def outputs_and_targets(criterion, positions=()):
    rng, shape = np.random.default_rng(0), (5, *positions, 3)
    z = rng.standard_normal(shape).astype("float32")
    t = rng.integers(0, 3, shape[:-1]) if isinstance(criterion, nn.CrossEntropy) else rng.random(shape).astype("float32")
    return z, t, rng.random(5)


@each_criterion
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("positions", [(), (4,), (2, 3)])
def test_losses(criterion, weighted, positions):
    z, t, w = outputs_and_targets(criterion, positions)
    w = w if weighted else None
    loss, delta = criterion(get_backend("cuda").asarray(z), t, sample_weight=w)
    assert lies_on_device(loss) and loss.shape == ()
    for ours, expected in zip((loss, delta), criterion(z, t, sample_weight=w), strict=True):
        close(ours, expected, "float32")


@pytest.mark.parametrize("criterion", [nn.CrossEntropy(ignore_index=-100), nn.CrossEntropy(class_weight=[1, 2, 3]), nn.MSE()])
@pytest.mark.parametrize("on_device", [False, True])
def test_samples_of_weight_zero_are_not_there(criterion, on_device):
    """Their outputs, targets and labels may be anything; nothing is read back to find that out."""
    rng, labels = np.random.default_rng(0), isinstance(criterion, nn.CrossEntropy)
    z, w = rng.standard_normal((6, 3)).astype("float32"), np.array([1, 0, 2, 0.5, 0, 1])
    t = rng.integers(0, 3, 6) if labels else rng.standard_normal((6, 3))
    if getattr(criterion, "ignore_index", None):
        t[0] = -100
    expected = criterion(z, t, w)
    z[1], z[4], t[1] = np.nan, np.inf, 99 if labels else np.nan
    move = get_backend("cuda").asarray if on_device else np.asarray
    before = fake_cupy.counter["reads"]
    loss, delta = criterion(get_backend("cuda").asarray(z), move(t), move(w))
    assert fake_cupy.counter["reads"] - before == (1 if on_device else 0)  # the total of weights that lie there
    for ours, wanted in zip((loss, delta), expected, strict=True):
        close(ours, wanted, "float32")


@each_criterion
@pytest.mark.parametrize("weighted", [False, True])
def test_no_loss_reads_the_device(pretended, criterion, weighted):
    z, t, w = outputs_and_targets(criterion, (2, 3))
    z = get_backend("cuda").asarray(z)
    assert count("reads", lambda: criterion(z, t, sample_weight=w if weighted else None)) == 0


@pytest.mark.parametrize("filters", [1, 3])
def test_a_label_for_each_pixel(filters):
    rng, model = np.random.default_rng(0), nn.Sequential(nn.Conv2D(filters, 3), input_shape=(5, 6, 2))
    criterion = (
        nn.BinaryCrossEntropy(class_weight=[1, 2]) if filters == 1 else nn.CrossEntropy(class_weight={1: 2}, ignore_index=0)
    )
    x, t, w = rng.standard_normal((7, 5, 6, 2)).astype("float32"), rng.integers(0, max(2, filters), (7, 3, 4)), rng.random(7)
    moved = copy.deepcopy(model).to("cuda")
    for ours, expected in (
        (moved.loss_and_grad(x, t, criterion, w), model.loss_and_grad(x, t, criterion, w)),
        (moved.grads, model.grads),
    ):
        close(ours, expected, "float32")


METRICS = [
    nn.Accuracy(),
    nn.Accuracy(ignore_index=1),
    nn.F1(),
    nn.ConfusionMatrix(),
    nn.metrics.ROCAUC(),
    nn.metrics.AveragePrecision(),
]


@pytest.mark.parametrize("metric", METRICS, ids=repr)
@pytest.mark.parametrize("shape", [(9,), (9, 1), (9, 3), (9, 4, 3), (9, 2, 3, 1), (9, 2, 2, 3)])
@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_as_on_the_cpu(metric, shape, weighted):
    rng, device = np.random.default_rng(0), get_backend("cuda").asarray
    z, t = rng.standard_normal(shape).astype("float32"), rng.integers(0, max(2, shape[-1] % 9), shape[: max(1, len(shape) - 1)])
    w, results = rng.random(9) if weighted else None, []
    for outputs, labels in ((z, t), (device(z), t), (device(z), device(t))):
        metric.reset()
        metric.update(outputs, labels, w)
        results.append(host(metric.result()))
    np.testing.assert_allclose(results[1:], [results[0]] * 2, rtol=1e-6)


OPTIMISERS = [
    lambda: nn.SGD(0.05, weight_decay=0.01),
    lambda: nn.SGD(0.05, momentum=0.9, nesterov=True, clip_norm=0.5),
    lambda: nn.Adam(0.01, weight_decay=0.01),
    lambda: nn.AdamW(nn.schedules.linear(0.01, 100)),
    lambda: nn.RMSProp(0.01),
    lambda: nn.ParameterGroups({"8.W": nn.Adam(), "*.W": nn.Muon(0.05, renormalize=True), "*": nn.SGD(0.1)}, clip_norm=1.0),
]


@pytest.mark.parametrize("make", OPTIMISERS)
def test_training_as_on_the_cpu(make):
    augmentations = (nn.data.RandomFlip(), nn.data.AlternatingFlip(), nn.data.RandomCrop(2), nn.data.Cutout(3))
    rows = []
    for device in ("cpu", "cuda"):
        model = small_cnn().to(device)
        model.freeze("1.b")
        trainer = nn.Trainer(model, nn.CrossEntropy(), make(), metrics=[nn.Accuracy(), nn.TopK(2)])
        data = pictures().augmented(*augmentations)
        trainer.fit(data, epochs=2, batch_size=16, validation=pictures(11), progress=False)
        prediction = trainer.predict(pictures(5).images, augment=nn.data.views(1))
        rows.append((trainer.history, host(model.params), host(model.buffers), prediction, trainer.evaluate(pictures(9))))
    cpu, gpu = rows
    for name in ("loss", "val_loss", "accuracy", "top2_accuracy"):
        np.testing.assert_allclose(gpu[0][name], cpu[0][name], rtol=2e-3, atol=1e-6)
    for ours, expected in zip(gpu[1:4], cpu[1:4], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0.05, atol=0.02)
    assert gpu[4] == pytest.approx(cpu[4], rel=1e-2)


@pytest.mark.parametrize("reflect", ["zeros", "reflect"])
def test_augmentation_on_the_device_gives_the_same_pictures(reflect):
    data = pictures().augmented(nn.data.RandomCrop(2, mode=reflect), nn.data.RandomFlip(), nn.data.Cutout(3))
    pairs = zip(data.on(get_backend("cuda")).batches(7, epoch=3), data.batches(7, epoch=3), strict=True)
    for ours, expected in pairs:
        assert all(np.array_equal(host(a), b) and a.dtype == b.dtype for a, b in zip(ours, expected, strict=True))


def test_no_step_waits_for_the_device(pretended):
    trainer = nn.Trainer(small_cnn().to("cuda"), nn.CrossEntropy(), nn.Adam(clip_norm=1.0), metrics=[nn.Accuracy()])
    reads = []
    for n in (32, 320):
        data, before = pictures(n), fake_cupy.counter["reads"]
        trainer.fit(data, batch_size=16, progress=False)
        reads.append(fake_cupy.counter["reads"] - before)
    assert reads[0] == reads[1] <= 5  # an epoch's loss and metrics, however many steps it has


@pytest.mark.parametrize("make", [lambda: nn.SGD(0.05, momentum=0.9), lambda: nn.RMSProp(0.01, eps=0.1)])
def test_after_a_bad_loss_nothing_is_updated(make):
    data = pictures(48)
    images = data.images.astype("float32")
    images[17] = np.nan
    results = []
    for device in ("cpu", "cuda"):
        model = small_cnn().to(device)
        trainer = nn.Trainer(model, nn.CrossEntropy(), make())
        with pytest.raises(nn.NonFiniteError, match=r"at step 1 "):
            trainer.fit((images, data.labels), batch_size=16, shuffle=False, progress=False)
        assert trainer.steps == 1
        results.append(host(model.params))
    assert np.isfinite(results[1]).all()
    np.testing.assert_allclose(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_weights_go_there_and_back(tmp_path):
    model = small_cnn()
    before, x = model.params.copy(), pictures(4).images
    z = model(x)
    model.to("cuda").save(tmp_path / "m.safetensors")
    close(nn.load(tmp_path / "m.safetensors", device="cuda")(x), z, "float32")
    close(nn.load(tmp_path / "m.safetensors")(x), z, "float32")
    twin = copy.deepcopy(model)
    assert twin.device == "cuda" and twin.params is not model.params
    snapshot = model.snapshot()
    model.params[...] = 0
    model.restore(snapshot)
    assert model.load_weights(tmp_path / "m.safetensors")
    assert np.array_equal(model.to("cpu").params, before) and isinstance(model.params, np.ndarray)


def test_dropout_masks_are_those_of_the_cpu():
    model = nn.Sequential(nn.Dropout(0.4), input_shape=(7, 5), seed=9)
    x = np.ones((6, 7, 5), "float32")
    cpu = model.forward(x, training=True, pass_id=3)
    assert np.array_equal(host(model.to("cuda").forward(x, training=True, pass_id=3)), cpu)


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
def test_what_comes_after_a_bad_loss_is_not_kept(tmp_path):
    """A device says so only when it is asked, which is before anything is written."""
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((40, 8, 8, 3)), rng.integers(0, 3, 40)
    x[16:] = np.nan
    trainer = nn.Trainer(small_cnn().to("cuda"), nn.CrossEntropy(), nn.Adam())
    with pytest.raises(nn.NonFiniteError, match="at step 2"):
        trainer.fit((x, t), batch_size=8, shuffle=False, progress=False, checkpoint=tmp_path, every=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002.safetensors"]


def test_a_run_goes_on_there(tmp_path):
    class Stop(Exception):
        pass

    class Watch(nn.Callback):
        def __init__(self, last):
            self.last = last

        def on_step_end(self, trainer):
            trainer.evaluate((x[:5], t[:5]))
            if trainer.steps == self.last:
                raise Stop

    def fit(last=0, **options):
        metrics = [nn.Accuracy(), nn.TopK(2), nn.ConfusionMatrix()]
        callbacks = [nn.WeightAverage(0.9), Watch(last)]
        trainer = nn.Trainer(small_cnn().to("cuda"), nn.CrossEntropy(), nn.Adam(), metrics, callbacks)
        trainer.fit((x, t), epochs=2, batch_size=8, validation=(x, t), progress=False, **options)
        return trainer

    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((40, 8, 8, 3)), rng.integers(0, 3, 40)
    expected = fit()
    with pytest.raises(Stop):
        fit(last=7, checkpoint=tmp_path)
    again = fit(checkpoint=tmp_path, resume=True)
    assert lies_on_device(again.model.params) and np.array_equal(host(again.model.params), host(expected.model.params))
    for name in ("loss", "accuracy", "top2_accuracy", "val_accuracy"):
        assert again.history[name] == expected.history[name]


def test_layers_refuse_arrays_of_the_other_device(pretended):
    model = small_cnn()
    x = get_backend("cuda").asarray(pictures(2).images)
    with pytest.raises(nn.DeviceError, match=r"'cpu'.*'cuda'"):
        model(x)
    dense = nn.Sequential(nn.Dense(2), input_shape=(3,)).to("cuda")
    with pytest.raises(TypeError, match=r"numpy.ndarray"):
        dense.params[...] = np.ones(8)


def test_memory_that_is_missing_is_named(pretended, monkeypatch):
    model = small_cnn().to("cuda")

    def empty(*args):
        raise fake_cupy.OutOfMemoryError("Out of memory allocating 9,999 bytes")

    monkeypatch.setattr(pretended, "empty", empty)
    with pytest.raises(nn.DeviceError, match=r"9,999 bytes.*1,073,741,824 of 2,147,483,648 bytes are free"):
        model.loss_and_grad(pictures(4).images, pictures(4).labels, nn.CrossEntropy())


def test_a_data_set_too_large_for_the_device_stays_on_the_host(pretended, monkeypatch):
    monkeypatch.setattr(pretended.cuda.runtime, "memGetInfo", lambda: (100, 200))
    trainer = nn.Trainer(small_cnn().to("cuda"), nn.CrossEntropy(), nn.SGD(0.1))
    trainer.fit(pictures(), batch_size=16, progress=False)
    assert trainer.steps == 3


def test_a_frozen_batch_norm():
    cpu = nn.Sequential(nn.Conv2D(3, 3), nn.BatchNorm(), nn.ReLU(), nn.Flatten(), nn.Dense(2), input_shape=(5, 5, 2))
    x = np.random.default_rng(0).standard_normal((6, 5, 5, 2)).astype("float32")
    cpu.forward(3 * x + 1, training=True)
    cpu.freeze("1.*")
    gpu, delta = copy.deepcopy(cpu).to("cuda"), np.random.default_rng(1).standard_normal((6, 2)).astype("float32")
    for ours, expected in zip(everything(gpu, x, delta), everything(cpu, x, delta), strict=True):
        close(ours, expected, "float32")


def test_precision_belongs_to_the_model(pretended):
    """On two threads at once, too: nothing of the process is switched."""
    cublas, x = pretended.cuda.cublas, pictures(4).images
    strict, rounded = small_cnn().to("cuda"), copy.deepcopy(small_cnn().to("cuda", precision="tf32"))
    assert rounded.backend.precision == "tf32"
    for model, compute in ((strict, cublas.CUBLAS_COMPUTE_32F), (rounded, cublas.CUBLAS_COMPUTE_32F_FAST_TF32)):
        cublas.computes.clear()
        model(x)
        assert set(cublas.computes) == {compute}
    inside, gemm = {}, cublas.gemmEx

    def in_turn(*args):
        inside.setdefault(threading.get_ident(), set()).add(args[-2])
        both.wait(timeout=60)
        gemm(*args)

    both, cublas.gemmEx = threading.Barrier(2), in_turn
    threads = [threading.Thread(target=model, args=(x,)) for model in (strict, rounded)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert sorted(map(sorted, inside.values())) == [[cublas.CUBLAS_COMPUTE_32F], [cublas.CUBLAS_COMPUTE_32F_FAST_TF32]]
    with pytest.raises(ValueError, match="precision"):
        small_cnn().to("cuda", precision="float16")
    with pytest.raises(nn.DeviceError, match="tf32"):
        small_cnn().to("cpu", precision="tf32")


def test_both_backends_offer_the_same():
    def offered(kind):
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(m).parameters) for name, m in methods if not name.startswith("_")}

    cpu, gpu, native = offered(NumpyBackend), offered(CupyBackend), offered(NativeBackend)
    optional = {name for name, value in vars(Operations).items() if value is None}
    assert cpu == {name: parameters for name, parameters in gpu.items() if name not in optional}
    assert optional <= gpu.keys() | native.keys()
