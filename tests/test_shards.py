"""Shards and BLAS limits: the same bits on any number of threads, and nothing left behind."""

import copy
import multiprocessing
import threading
import time

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

import nnlite as nn
from nnlite.backend import get_backend, single_threaded_blas
from nnlite.backend.cpu import numpy as numpy_backend
from nnlite.backend.memory import Buffers
from nnlite.backend.random import random_bits
from nnlite.engine import cut
from nnlite.engine.batches import Batch
from nnlite.engine.plan import cut_of

rng = np.random.default_rng(0)


def make_net():
    return nn.Sequential(
        nn.Conv2D(8, 3, padding=1),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Dropout(0.3),
        nn.Conv2D(16, 3),
        nn.GELU(),
        nn.Residual(nn.BatchNorm(), nn.ReLU(), nn.Conv2D(16, 3, padding="same")),
        nn.GlobalAvgPool2D(),
        nn.Dense(10),
        input_shape=(16, 16, 3),
        seed=5,
    )


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(cut, "BUDGET", 1 << 20)


def whole_training(threads):
    """Dropout, batch norm, clipping, prediction, evaluation, an uneven last batch."""
    nn.set_num_threads(threads)
    model, data = make_net(), nn.data.shapes(300, seed=1)
    images = data.train.images[:, ::2, ::2]
    train = nn.data.Dataset(images, data.train.labels).augmented(nn.data.RandomFlip(), nn.data.RandomCrop(2))
    optimizer = nn.AdamW(nn.schedules.cosine(1e-2, steps=10), clip_norm=1.0)
    trainer = nn.Trainer(model, nn.CrossEntropy(label_smoothing=0.1), optimizer, metrics=[nn.Accuracy()])
    history = trainer.fit(train, epochs=2, batch_size=128, validation=(images[:70], data.train.labels[:70]), progress=False)
    columns = [history[name] for name in ("loss", "accuracy", "val_loss", "val_accuracy")]
    return [model.params.copy(), model.buffers.copy(), trainer.predict(images), np.array(columns)]


@pytest.mark.usefixtures("both_kernels")
def test_the_same_bits_for_any_number_of_threads_and_twice(monkeypatch):
    for name, value in (("BUDGET", 1 << 16), ("WORTH_CUTTING", 0), ("FLOPS_PER_SUMMED_VALUE", 1)):
        monkeypatch.setattr(cut, name, value)
    assert min(len(run.cut(128, 4)) for run in make_net().plan.training) >= 8
    first = whole_training(1)
    for threads in (1, 2, 3):
        assert all(np.array_equal(a, b) for a, b in zip(first, whole_training(threads), strict=True)), threads
    assert not np.isnan(first[3]).any()


def test_the_cut_depends_on_shapes_alone():
    run = make_net().plan.training[0]
    assert run.cut(100, 4) == run.cut(100, 4)
    for n in (1, 2, 7, 100, 1000):
        cut = run.cut(n, 4)
        assert [s.start for s in cut] == [0, *(s.stop for s in cut[:-1])] and cut[-1].stop == n
        assert all(s.stop > s.start for s in cut)


@pytest.mark.usefixtures("numpy_kernels")
def test_two_shards_for_a_small_batch_and_multiples_of_four_for_large_ones():
    run = nn.zoo.tutorial_cnn().plan.training[0]
    counts = [len(run.cut(n, 4)) for n in (1, 4, 32, 64, 128, 512, 2048)]
    assert counts[:4] == [1, 1, 2, 2] and counts == sorted(counts)
    assert all(count % 4 == 0 for count in counts[4:])


@pytest.mark.usefixtures("numpy_kernels")
def test_a_sweep_is_cut_by_all_that_it_keeps_and_inference_by_its_largest_step():
    model = nn.zoo.tutorial_cnn()
    assert [len(model.plan.training[-1].cut(n, 4)) for n in (128, 256, 512)] == [4, 8, 16]
    assert [len(model.plan.inference.cut(n, 4)) for n in (128, 256, 512)] == [4, 4, 8]


def test_inference_by_kernels_that_do_much_in_a_call_has_smaller_shards(native):
    nn.set_kernels("native")
    model = nn.zoo.tutorial_cnn()
    assert len(cut_of(model.plan.inference, 1024, model.vectors)) > 3 * len(model.plan.inference.cut(512, 4))
    assert cut_of(model.plan.training[0], 512, model.vectors) == model.plan.training[0].cut(512, 4)


def test_an_mlp_is_cut_where_another_thread_is_worth_waking_and_sums_of_gradients_are_cheap():
    model = nn.Sequential(nn.Dense(512), nn.ReLU(), nn.Dense(512), nn.ReLU(), nn.Dense(10), input_shape=(784,))
    assert [len(model.plan.training[0].cut(n, 4)) for n in (32, 64, 256, 1024)] == [1, 1, 2, 2]


def test_large_products_are_cut_into_fixed_blocks():
    from nnlite.backend import get_backend, single_threaded_blas

    a, b = rng.standard_normal((80, 600)), rng.standard_normal((600, 410))
    results = []
    for threads in (1, 2, 3):
        nn.set_num_threads(threads)
        model = nn.Sequential(nn.Dense(512), nn.ReLU(), nn.Dense(512), nn.ReLU(), nn.Dense(10), input_shape=(784,))
        x, t = np.random.default_rng(0).standard_normal((64, 784)), np.arange(64) % 10
        assert len(model.plan.training[0].cut(64, 4)) == 1
        model.loss_and_grad(x, t, nn.CrossEntropy())
        with single_threaded_blas:
            product = get_backend("cpu").product(a, b, None)
        results.append((model.grads.copy(), model(x), product))
    assert all(np.array_equal(u, v) for other in results[1:] for u, v in zip(results[0], other, strict=True))
    np.testing.assert_allclose(results[0][2], a @ b, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("numpy_kernels")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_products_are_whole_within_one_of_several_shards(threads, monkeypatch):
    nn.set_num_threads(threads)
    backend, sizes = get_backend("cpu"), []
    monkeypatch.setattr(numpy_backend, "matmul", lambda a, b, out: sizes.append(b.shape[1]))
    a, b = np.ones((80, 600)), np.ones((600, 410))
    backend.map_shards(lambda i: backend.product(a, b, None), 3)
    assert sizes == [410] * 3
    backend.map_shards(lambda i: backend.product(a, b, None), 1)
    assert sorted(sizes[3:]) == [102, 102, 103, 103]


def test_a_batch_that_another_run_cuts_otherwise():
    backend, room = get_backend("cpu"), Buffers(get_backend("cpu"))
    values = np.arange(7 * 2 * 3 * 2.0).reshape(7, 2, 3, 2)
    batch = Batch(backend, backend.empty(values.size + 5, "float64"), (2, 3, 2), True, [slice(0, 3), slice(3, 5), slice(5, 7)])
    for rows, shard in batch.shards:
        shard[...] = values[rows]
    assert np.shares_memory(batch.take(slice(3, 5), "a", room), batch.flat)
    for start in range(7):
        for stop in range(start + 1, 8):
            assert np.array_equal(batch.take(slice(start, stop), "a", room), values[start:stop])


def test_layers_of_the_user_may_lay_images_out_as_they_like():
    class Copy(nn.Layer):
        def __init__(self, axes):
            self.axes = axes

        def forward(self, a, ctx):
            return np.ascontiguousarray(a.transpose(self.axes)).transpose(np.argsort(self.axes))

        backward = forward

    def grads(*between):
        layers = [nn.Conv2D(4, 3, padding=1), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(2), nn.Conv2D(4, 3, padding=1), nn.GELU()]
        layers = [layer for pair in zip(layers, between or layers, strict=True) for layer in dict.fromkeys(pair)]
        model = nn.Sequential(*layers, nn.Conv2D(3, 1), nn.Conv2D(6, 3, stride=2, groups=3), nn.Flatten(), nn.Dense(3), **kind)
        loss = model.loss_and_grad(x, t, nn.CrossEntropy())
        return [loss, model.grads, model(x), model.forward(x, training=True), model.backward(np.ones((5, 3)))]

    kind, x, t = {"input_shape": (12, 12, 2), "dtype": "float64"}, rng.standard_normal((5, 12, 12, 2)), np.arange(5) % 3
    expected = grads()
    assert all(array.flags.c_contiguous for array in expected[1:])  # what the user gets lies as usual
    for axes in ((0, 1, 2, 3), (3, 1, 0, 2), (1, 2, 0, 3)):
        for actual, wanted in zip(grads(*(Copy(axes) for _ in range(6))), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Residual(nn.BatchNorm(), shortcut=[nn.Residual(nn.Tanh(), nn.BatchNorm())])],
        [nn.Residual(nn.Tanh(), nn.BatchNorm(), shortcut=[nn.Residual(nn.Tanh(), nn.BatchNorm(), nn.Tanh())])],
        [nn.Residual(nn.Residual(nn.BatchNorm(), shortcut=nn.Tanh()), nn.BatchNorm(), shortcut=[nn.Residual(nn.BatchNorm())])],
    ],
)
def test_what_a_run_uses_is_not_only_carried_through_it(layers):
    """Barriers in both branches, and a residual in the shortcut: the input's delta comes from all of them."""
    model = nn.Sequential(nn.Dense(5), *copy.deepcopy(layers), input_shape=(3,), dtype="float64")
    nn.gradcheck(model, rng.standard_normal((4, 3)))


@pytest.mark.usefixtures("numpy_kernels")
def test_elementwise_layers_write_in_the_order_that_they_are_given():
    seen = []

    class Spy(nn.Layer):
        elementwise = True

        def forward(self, a, ctx):
            out = ctx.out
            seen.append((a.flags.c_contiguous, out.flags.c_contiguous))
            return np.multiply(a, 1, out=out)

    nn.Sequential(Spy(), nn.Conv2D(2, 3), Spy(), input_shape=(6, 5, 2))(np.ones((3, 6, 5, 2), "float32"))
    assert seen == [(True, True), (False, False)]


class Scores(nn.Layer):
    """y_nhij = a_nhi a_nhj: maps of attention, which have the four axes of images and are none."""

    keeps, shares_memory = "input", False

    def __init__(self, seen=()):
        self.seen = seen

    def build(self, in_shape):
        return (*in_shape, in_shape[-1])

    def forward(self, a, ctx):
        ctx.a = a
        return self.noted(np.multiply(a[..., None], a[..., None, :], out=ctx.out))

    def backward(self, delta, ctx):
        return self.noted(((delta + delta.swapaxes(2, 3)) * ctx.a[..., None, :]).sum(axis=-1))

    def noted(self, a):
        self.seen.append(a.flags.c_contiguous)
        return a


class Rows(nn.Layer):
    """y_nhi = sum over j of a_nhij / (j + 1)"""

    keeps, shares_memory = None, False

    def __init__(self, seen=()):
        self.seen = seen

    def build(self, in_shape):
        return in_shape[:-1]

    def forward(self, a, ctx):
        self.seen.append(a.flags.c_contiguous)
        return (a / np.arange(1, a.shape[-1] + 1)).sum(axis=-1)

    def backward(self, delta, ctx):
        out = ctx.out
        self.seen.append(out.flags.c_contiguous)
        return np.divide(delta[..., None], np.arange(1, self.in_shape[-1] + 1), out=out)


@pytest.mark.parametrize("barrier", [False, True])
@pytest.mark.parametrize("between", [nn.Softmax, nn.Tanh, nn.LayerNorm, lambda: nn.Residual(nn.Tanh())])
def test_arrays_of_four_axes_that_are_no_images_are_stored_in_the_order_of_their_shape(between, barrier):
    seen, ends = [], [nn.BatchNorm()] if barrier else []
    layers = [nn.Dense(6), nn.Reshape((2, 3)), Scores(seen), between(), Rows(seen), nn.Flatten(), *ends, nn.Dense(3)]
    model = nn.Sequential(*layers, input_shape=(4,), dtype="float64")
    x = np.random.default_rng(1).standard_normal((5, 4))
    nn.gradcheck(model, x)
    model.loss_and_grad(x, np.arange(5) % 3, nn.CrossEntropy())
    assert seen and all(seen)


def test_a_value_of_the_whole_batch_that_is_no_image_is_stored_in_the_order_of_its_shape():
    """The maps are read by both branches of a residual connection, one of which has a barrier."""
    seen = []
    layers = Scores(seen), nn.Residual(Rows(seen), nn.Flatten(), nn.BatchNorm(), shortcut=[Rows(seen), nn.Flatten()])
    model = nn.Sequential(nn.Dense(6), nn.Reshape((2, 3)), *layers, input_shape=(4,), dtype="float64")
    x = rng.standard_normal((5, 4))
    nn.gradcheck(model, x)
    model.loss_and_grad(x, np.ones((5, model.out_shape[0])), nn.MSE())
    assert seen and all(seen)


def test_images_between_convolutions_are_stored_as_images():
    seen = []

    class Spy(Rows):
        def build(self, in_shape):
            return in_shape

        def forward(self, a, ctx):
            self.seen.append(np.may_share_memory(self.backend.rows(a), a))
            return np.multiply(a, 1, out=ctx.out)

        def backward(self, delta, ctx):
            self.seen.append(np.may_share_memory(self.backend.rows(delta), delta))
            return np.multiply(delta, 1, out=ctx.out)

    layers = nn.Conv2D(2, 3), Spy(seen), nn.BatchNorm(), nn.LayerNorm(), nn.Conv2D(2, 2), nn.Flatten()
    model = nn.Sequential(*layers, nn.Dense(2), input_shape=(5, 6, 2), dtype="float64")
    model.loss_and_grad(rng.standard_normal((3, 5, 6, 2)), np.arange(3) % 2, nn.CrossEntropy())
    assert seen and all(seen)


@pytest.mark.parametrize("n", [24, 64])
def test_the_gradients_of_all_shards_are_added(n):
    layers = nn.Conv2D(32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dense(3)
    model = nn.Sequential(*layers, input_shape=(32, 32, 3), dtype="float64")
    x, t = rng.standard_normal((n, 32, 32, 3)), rng.integers(0, 3, n)
    run = model.plan.training[0]
    assert len(run.cut(n, 8)) > 1 and len(run.cut(1, 8)) == 1
    parts = []
    for i in range(n):
        model.loss_and_grad(x[i : i + 1], t[i : i + 1], nn.CrossEntropy())
        parts.append(model.grads.copy())
    model.loss_and_grad(x, t, nn.CrossEntropy())
    np.testing.assert_allclose(model.grads, np.mean(parts, axis=0), rtol=1e-8, atol=1e-12)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_at_most_one_gradient_vector_a_thread(threads):
    nn.set_num_threads(threads)
    model = nn.Sequential(nn.Conv2D(32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dense(3), input_shape=(32, 32, 3))
    x, t = rng.standard_normal((64, 32, 32, 3)), rng.integers(0, 3, 64)
    for _ in range(3):
        model.loss_and_grad(x, t, nn.CrossEntropy())
    run = model.plan.training[0]
    assert len(run.cut(64, 4)) > 3
    assert len(model.engine.memory_of(run).gradients) <= threads  # and the total
    assert len(model.engine.memory_of(run).workspaces) <= threads


@pytest.mark.usefixtures("small_shards")
def test_an_error_in_a_shard_is_raised_and_the_model_goes_on():
    class Bad(nn.Dense):
        broken = False

        def backward(self, delta, ctx):
            if self.broken and ctx.shard.start >= 8:
                raise RuntimeError("broken shard")
            return super().backward(delta, ctx)

    model = nn.Sequential(nn.Conv2D(32, 3, padding=1), nn.ReLU(), nn.Flatten(), Bad(3), input_shape=(32, 32, 3))
    x, t = rng.standard_normal((64, 32, 32, 3)).astype(np.float32), rng.integers(0, 3, 64)
    assert len(model.plan.training[0].cut(64, 4)) > 2
    loss = model.loss_and_grad(x, t, nn.CrossEntropy())
    grads = model.grads.copy()
    Bad.broken = True
    with pytest.raises(RuntimeError, match="broken shard"):
        model.loss_and_grad(x, t, nn.CrossEntropy())
    Bad.broken = False
    assert model.loss_and_grad(x, t, nn.CrossEntropy()) == loss
    assert np.array_equal(grads, model.grads)
    assert blas_threads() == BEFORE


@pytest.mark.usefixtures("small_shards")
def test_a_shard_that_waits_for_one_that_fails_goes_on():
    class Late(nn.Dense):
        def backward(self, delta, ctx):
            if 0 < ctx.shard.start < 2 * ctx.shard.rows:
                time.sleep(0.2)  # meanwhile the other thread comes to the third shard's turn
                raise RuntimeError("the second shard")
            return super().backward(delta, ctx)

    nn.set_num_threads(2)
    model = nn.Sequential(nn.Conv2D(32, 3, padding=1), nn.ReLU(), nn.Flatten(), Late(3), input_shape=(32, 32, 3))
    assert len(model.plan.training[0].cut(64, 4)) > 2
    errors = []

    def train():
        try:
            model.loss_and_grad(np.ones((64, 32, 32, 3)), np.zeros(64, int), nn.CrossEntropy())
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    thread.join(20)
    assert errors == ["the second shard"]


def blas_threads():
    return [library.num_threads for library in ThreadpoolController().select(user_api="blas").lib_controllers]


BEFORE = blas_threads()


def test_blas_has_one_thread_inside_and_the_old_number_after():
    seen = []

    class Look(nn.ReLU):
        def forward(self, a, ctx):
            seen.append(blas_threads())
            return super().forward(a, ctx)

    model = nn.Sequential(nn.Dense(3), Look(), nn.Dense(2), input_shape=(4,))
    x, t = rng.standard_normal((5, 4)), np.zeros(5, int)
    model(x)
    model.loss_and_grad(x, t, nn.CrossEntropy())
    model.forward(x, training=True)
    model.backward(np.ones((5, 2)))
    nn.gradcheck(model, x)
    with pytest.raises(nn.ShapeError):
        model(x[:, :1])
    assert seen and all(set(threads) == {1} for threads in seen)
    assert blas_threads() == BEFORE


def test_blas_limits_that_overlap_in_time():
    """The first to enter may be the first to leave."""
    entered, leave = threading.Event(), threading.Event()

    def first():
        with single_threaded_blas:
            entered.set()
            leave.wait(5)

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(5)
    with single_threaded_blas:
        leave.set()
        thread.join()
        assert set(blas_threads()) <= {1}
    assert blas_threads() == BEFORE


def test_many_threads_infer_on_one_model():
    model, x = make_net(), rng.standard_normal((40, 16, 16, 3)).astype(np.float32)
    expected, results = model(x), [None] * 16

    def work(i):
        results[i] = [np.array_equal(model(x), expected) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(all(r) for r in results)


def test_inference_beside_training_sees_old_or_new_but_never_half():
    model = nn.Sequential(nn.Dense(400, bias=False), nn.Dense(1, bias=False), input_shape=(300,))
    x, ok, done = np.ones((4, 300), np.float32), [], threading.Event()
    model.params = np.full(len(model.params), 0.01)
    optimizer = nn.SGD(0.0)

    def infer():
        while not done.is_set():
            z = model(x)
            root = np.sqrt(z[0, 0] / (300 * 400))  # all parameters are equal, at any moment
            ok.append(np.allclose(z, 300 * 400 * root**2) and abs(root * 100 - round(root * 100)) < 1e-3)

    thread = threading.Thread(target=infer)
    thread.start()
    for k in range(2, 60):
        with model.updating():
            model.params[:1000] = 0.01 * k
            time.sleep(1e-4)
            model.params[1000:] = 0.01 * k
        optimizer.step(model)
    done.set()
    thread.join()
    assert ok and all(ok)


def _child(queue):
    queue.put(whole_training(2)[0])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_processes_started_after_training(method):
    expected = whole_training(2)[0]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_child, args=(queue,))
    process.start()
    assert np.array_equal(queue.get(timeout=60), expected)
    process.join(10)
    assert process.exitcode == 0


def test_random_bits_are_a_table():
    """Rows do not depend on which rows are asked for together; streams and keys differ."""
    table = random_bits(7, (1, 2), 0, 20, 13)
    assert np.array_equal(table[5:9], random_bits(7, (1, 2), 5, 4, 13))
    for other in ((8, (1, 2)), (7, (2, 2)), (7, (1, 3))):
        assert not np.array_equal(table, random_bits(*other, 0, 20, 13))
    assert abs(random_bits(0, (0, 0), 0, 1000, 64).mean() / 2**31 - 1) < 0.01
