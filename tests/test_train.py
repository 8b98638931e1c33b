"""The trainer: learning, history, validation, callbacks, progress, bad data."""

import io
import sys

import numpy as np
import pytest

import nnlite as nn

rng = np.random.default_rng(0)
X = rng.standard_normal((90, 2)).astype(np.float32)
T = (X[:, 0] * X[:, 1] > 0).astype(np.int64)


def make_trainer(rate=0.03, metrics=(), callbacks=(), seed=0, **options):
    model = nn.Sequential(nn.Dense(16), nn.Tanh(), nn.BatchNorm(), nn.Dense(2), input_shape=(2,), seed=seed)
    return nn.Trainer(model, nn.CrossEntropy(), nn.Adam(rate, **options), metrics=metrics, callbacks=callbacks)


def test_it_learns_and_keeps_a_history():
    trainer = make_trainer(metrics=[nn.Accuracy(), nn.F1()])
    history = trainer.fit((X, T), epochs=30, batch_size=16, validation=(X[:40], T[:40]), progress=False)
    columns = ["loss", "accuracy", "f1", "val_loss", "val_accuracy", "val_f1"]
    assert (
        list(history) == [*columns, "learning_rate", "seconds", "samples_per_second"] and history.epochs == trainer.epochs == 30
    )
    assert history["val_accuracy"][-1] > 0.9 and history["loss"][-1] < history["loss"][0] / 2
    assert trainer.steps == 30 * 6
    result = trainer.evaluate((X[:40], T[:40]))
    assert result["accuracy"] == history["val_accuracy"][-1] and result["loss"] == pytest.approx(history["val_loss"][-1])
    z = trainer.predict(X)
    assert z.shape == (90, 2) and isinstance(z, np.ndarray)
    assert (z.argmax(1) == T).mean() == pytest.approx(trainer.evaluate((X, T))["accuracy"])


def test_a_second_fit_goes_on():
    once, twice = make_trainer(), make_trainer()
    once.fit((X, T), epochs=4, progress=False)
    for _ in range(2):
        twice.fit((X, T), epochs=2, progress=False)
    assert np.array_equal(once.model.params, twice.model.params)
    assert once.history["loss"] == twice.history["loss"]


def test_kinds_of_data_are_the_same_training():
    weights = np.ones(90)
    dataset = nn.data.Dataset(X, T)

    class Batches:
        """A user's own iterable, begun anew each epoch."""

        def __init__(self):
            self.epoch = 0

        def __iter__(self):
            self.epoch += 1
            return dataset.batches(32, epoch=self.epoch - 1)

    results = []
    for data in ((X, T), (X, T, weights), dataset, Batches()):
        trainer = make_trainer()
        trainer.fit(data, epochs=2, batch_size=32, progress=False)
        results.append(trainer.model.params)
    assert np.array_equal(results[0], results[2]) and np.array_equal(results[0], results[3])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_sample_weights_count():
    weights = np.where(T == 0, 1.0, 0.0)
    trainer = make_trainer(metrics=[nn.Accuracy()])
    trainer.fit((X, T, weights), epochs=15, progress=False)
    assert (trainer.predict(X).argmax(1) == 0).all()
    assert trainer.evaluate((X, T, weights))["accuracy"] == 1.0


def test_a_short_last_batch_is_kept_and_weighted():
    trainer = make_trainer(rate=0.0, metrics=[nn.Accuracy()])
    history = trainer.fit((X[:70], T[:70]), batch_size=64, progress=False)
    assert trainer.steps == 2
    small = [trainer.evaluate((X[:70], T[:70]), batch_size=n) for n in (1, 7, 64, 1000)]
    assert all(s["loss"] == pytest.approx(small[0]["loss"], rel=1e-5) for s in small)
    assert history["accuracy"][0] * 70 == pytest.approx(round(history["accuracy"][0] * 70))


class Total(nn.MSE):
    """A user's loss with a total of its own: targets of zero do not count."""

    def per_sample(self, backend, z, t):
        losses, delta = super().per_sample(backend, z, t)
        counts = (t[:, 0] != 0).astype(z.dtype)
        return losses * counts, delta * counts[:, None]

    def total(self, backend, t, sample_weight):
        return float((t[:, 0] != 0).sum())


COLUMN = rng.integers(0, 2, (90, 1)).astype("float32")
COLUMN[:10] = 1  # each batch of ten has some


@pytest.mark.parametrize(
    ("loss", "data"),
    [
        (nn.CrossEntropy(class_weight=[1.0, 9.0]), (X, T)),
        (nn.CrossEntropy(class_weight=[1.0, 9.0]), (X, T, rng.random(90))),
        (nn.CrossEntropy(), (X, T, rng.random(90))),
        (Total(), (X, COLUMN)),
    ],
)
def test_the_mean_loss_does_not_depend_on_the_batches(loss, data):
    model = nn.Sequential(nn.Dense(16), nn.Tanh(), nn.Dense(2 if data[1].ndim == 1 else 1), input_shape=(2,))
    trainer = nn.Trainer(model, loss, nn.SGD(0.0))
    wanted = loss(model(X), *data[1:])[0]
    for size in (10, 13, 90):
        assert trainer.evaluate(data, batch_size=size)["loss"] == pytest.approx(wanted, rel=1e-5)
        history = trainer.fit(data, batch_size=size, progress=False)
        assert history["loss"][-1] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("loss", [nn.CrossEntropy(), nn.CrossEntropy(class_weight=[1.0, 2.0])])
def test_batches_without_weight_count_nothing(loss):
    weights = np.repeat([0.0, 1.0, 0.0], 30)
    masked, plain = make_trainer(metrics=[nn.Accuracy()]), make_trainer(metrics=[nn.Accuracy()])
    masked.loss = plain.loss = loss
    options = {"epochs": 2, "batch_size": 15, "shuffle": False, "progress": False}
    masked.fit((X, T, weights), validation=(X, T, weights), **options)
    plain.fit((X[30:60], T[30:60]), validation=(X[30:60], T[30:60]), **options)
    assert masked.steps == plain.steps == 4 and masked.model.passes == 4
    np.testing.assert_allclose(masked.model.params, plain.model.params, rtol=1e-4, atol=1e-6)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(masked.history[name], plain.history[name], rtol=1e-4)
    assert masked.evaluate((X, T, weights), batch_size=15)["loss"] == pytest.approx(
        plain.evaluate((X[30:60], T[30:60]))["loss"]
    )


def test_data_without_any_weight_are_refused():
    nothing = X, T, np.zeros(90)
    for call in (lambda t: t.fit(nothing, progress=False), lambda t: t.evaluate(nothing)):
        with pytest.raises(nn.DataError, match="weights of all samples are zero"):
            call(make_trainer())
    with pytest.raises(nn.DataError, match="no batch"):
        make_trainer().evaluate([])


def test_evaluating_in_the_middle_of_an_epoch_leaves_its_metrics():
    class Look(nn.Callback):
        def on_step_end(self, trainer):
            trainer.evaluate((X[:5], T[:5]))

    trainers = [make_trainer(metrics=[nn.Accuracy(), nn.F1()], callbacks=callbacks) for callbacks in ([Look()], [])]
    rows = [trainer.fit((X, T), epochs=2, batch_size=20, progress=False) for trainer in trainers]
    assert rows[0]["accuracy"] == rows[1]["accuracy"] and rows[0]["f1"] == rows[1]["f1"]


def test_early_stopping_restores_parameters_and_buffers():
    snapshots = []

    class Remember(nn.Callback):
        def on_epoch_end(self, trainer, row):
            snapshots.append((row["val_loss"], *trainer.model.snapshot()))

    trainer = make_trainer(rate=0.3, callbacks=[Remember(), nn.EarlyStopping(patience=2)])
    trainer.fit((X[:30], T[:30]), epochs=60, batch_size=8, validation=(X[30:], T[30:]), progress=False)
    losses = [loss for loss, _, _ in snapshots]
    assert len(losses) < 60 and len(losses) == int(np.argmin(losses)) + 3
    _, params, buffers = snapshots[int(np.argmin(losses))]
    assert np.array_equal(trainer.model.params, params) and np.array_equal(trainer.model.buffers, buffers)
    assert not np.array_equal(params, snapshots[-1][1])


def test_the_hooks():
    calls = []

    class Log(nn.Callback):
        def on_fit_begin(self, trainer):
            calls.append("begin")

        def on_epoch_begin(self, trainer):
            calls.append(f"epoch {trainer.epochs}")

        def on_step_end(self, trainer):
            calls.append(f"step {trainer.steps}")

        def on_epoch_end(self, trainer, row):
            calls.append(trainer.epochs)
            if trainer.epochs == 2:
                trainer.stop()

        def on_fit_end(self, trainer):
            calls.append("end")

    make_trainer(callbacks=[Log()]).fit((X, T), epochs=5, batch_size=len(X) // 2, progress=False)
    assert calls == ["begin", "epoch 0", "step 1", "step 2", 1, "epoch 1", "step 3", "step 4", 2, "end"]


@pytest.mark.parametrize(("decay", "start"), [(0.5, 0), (None, 0), (0.9, 3), (None, 4)])
def test_weight_average(decay, start):
    """Parameters and running statistics, by the formula; the model has them at the end."""
    values = []

    class Record(nn.Callback):
        def on_step_end(self, trainer):
            values.append(np.concatenate(trainer.model.snapshot()))

    average = nn.WeightAverage(decay, start=start)
    trainer = make_trainer(callbacks=[Record(), average])
    trainer.fit((X, T), epochs=3, progress=False)
    wanted = 0.0
    for count, value in enumerate(values[start:], start=1):
        wanted += max(1 / count, 0 if decay is None else 1 - decay) * (value - wanted)
    np.testing.assert_allclose(np.concatenate(trainer.model.snapshot()), wanted, rtol=1e-4, atol=1e-6)


def test_weight_average_is_shown_and_taken_back():
    average = nn.WeightAverage(0.9)
    trainer = make_trainer(callbacks=[average])
    with average.applied(trainer.model):
        pass  # nothing to show yet
    trainer.fit((X, T), epochs=1, progress=False)
    trainer.model.params = trainer.model.params + 1
    own = trainer.model.params.copy()
    with average.applied(trainer.model):
        assert np.array_equal(trainer.model.params, average.average[0].astype("float32"))
    assert np.array_equal(trainer.model.params, own)
    with pytest.raises(ValueError, match="decay"):
        nn.WeightAverage(1.0)


def test_predictions_are_averaged_over_views():
    model = nn.Sequential(nn.Conv2D(3, 3), nn.Flatten(), nn.Dense(4), input_shape=(6, 6, 2))
    trainer, x = nn.Trainer(model, nn.CrossEntropy(), nn.SGD()), np.random.default_rng(0).standard_normal((7, 6, 6, 2))
    wanted = (model(x) + model(x[:, :, ::-1])) / 2
    np.testing.assert_allclose(trainer.predict(x, batch_size=3, augment=nn.data.views()), wanted, rtol=1e-5, atol=1e-6)
    assert not np.allclose(trainer.predict(x, augment=nn.data.views(shift=1)), wanted)
    assert np.array_equal(trainer.predict(x, batch_size=7), model(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_and_says_where(bad):
    x = X.copy()
    x[70] = bad
    trainer = make_trainer()
    with (
        np.errstate(invalid="ignore", over="ignore"),
        pytest.raises(nn.NonFiniteError, match=r"at step 4 \(epoch 1\)"),
    ):
        trainer.fit((x, T), batch_size=16, shuffle=False, progress=False)
    assert np.isfinite(trainer.model.params).all(), "the bad step is not made"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((X, T[:-1]), "one length"),
        ((X[:0], T[:0]), "empty"),
        ((X,), "tuple of 1"),
        (3, "int"),
        ((X.astype(object), T), "real numbers"),
        ([X], "batch must be"),
        ([], "gave no batch"),
        ((X, T + 5), "0 ... 1"),
        ((X, T + 0.5), "integers"),
        (X, r"one tuple: \(x, t\)"),
    ],
)
def test_bad_data(data, words):
    with pytest.raises(nn.DataError, match=words):
        make_trainer().fit(data, progress=False)


def test_arrays_given_separately():
    for call in (lambda t: t.fit(X, T), lambda t: t.evaluate(X, T), lambda t: t.fit((X, T), validation=X)):
        with pytest.raises(nn.DataError, match=r"one tuple: \(x, t\)"):
            call(make_trainer())


def test_a_data_set_is_predicted_by_its_images():
    trainer = make_trainer()
    assert np.array_equal(trainer.predict(nn.data.Dataset(X, T)), trainer.predict(X))


def test_labels_in_a_column():
    """As Keras's CIFAR-10 has them."""
    flat, column = make_trainer(metrics=[nn.Accuracy()]), make_trainer(metrics=[nn.Accuracy()])
    flat.fit((X, T), progress=False)
    column.fit((X, T[:, None]), progress=False)
    assert np.array_equal(flat.model.params, column.model.params)
    assert flat.history["accuracy"] == column.history["accuracy"]
    assert flat.evaluate((X, T)) == column.evaluate((X, T[:, None]))


def test_bad_arguments():
    for bad in (lambda t: t.fit((X, T), epochs=-1), lambda t: t.fit((X, T), batch_size=0)):
        with pytest.raises(ValueError):
            bad(make_trainer())
    with pytest.raises(nn.DataError, match="empty"):
        make_trainer().predict(X[:0])


def test_plain_lines_where_there_is_no_terminal(capsys):
    make_trainer(metrics=[nn.Accuracy()]).fit((X, T), epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [["epoch", "1", "loss"], ["epoch", "2", "loss"]]
    assert "accuracy" in lines[0] and "samples/s" in lines[0]


@pytest.mark.parametrize("masked", [0, 32])
def test_a_bar_on_a_terminal(monkeypatch, masked):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen, weights = Terminal(), np.arange(90) >= masked  # of the first batch there may be nothing to show
    monkeypatch.setattr(sys, "stderr", screen)
    make_trainer(metrics=[nn.Accuracy()]).fit((X, T, weights), epochs=1, validation=(X, T), shuffle=False)
    text = screen.getvalue()
    for words in ("epoch 1", "90/90", "loss=", "accuracy=", "val_loss=", "sample/s"):
        assert words in text, text


def test_schedules():
    s = nn.schedules
    assert s.constant(0.1)(7) == 0.1
    assert [s.step(1.0, every=2)(i) for i in (0, 1, 2, 4)] == pytest.approx([1, 1, 0.1, 0.01])
    assert s.exponential(1.0, 0.25, every=2)(1) == pytest.approx(0.5)
    assert [s.cosine(1.0, 10)(i) for i in (0, 5, 10, 99)] == pytest.approx([1, 0.5, 0, 0])
    assert [s.linear(1.0, 10, final=0.2)(i) for i in (0, 5, 10, 99)] == pytest.approx([1, 0.6, 0.2, 0.2])
    warm = s.warmup(s.linear(1.0, 10), steps=4)
    assert [warm(i) for i in (0, 2, 4, 9, 14)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_weight_average_begins_anew_with_another_model():
    average, alone = nn.WeightAverage(None), nn.WeightAverage(None)
    make_trainer(callbacks=[average]).fit((X, T), progress=False)
    trainers = [make_trainer(seed=1, callbacks=[callback]) for callback in (average, alone)]
    for trainer in trainers:
        trainer.fit((X, T), progress=False)
        trainer.fit((X, T), progress=False)
    assert average.count == alone.count == 6, "a second fit of the same model goes on"
    assert np.array_equal(trainers[0].model.params, trainers[1].model.params)


class Named(nn.Accuracy):
    def __init__(self, name):
        super().__init__()
        self.name = name


NAMES = ["loss", "val_loss", "learning_rate", "seconds", "samples_per_second", "accuracy", "val_accuracy"]


@pytest.mark.parametrize("name", NAMES)
def test_metrics_whose_names_are_taken(name):
    with pytest.raises(ValueError, match=rf"'{name}'.* another name"):
        make_trainer(metrics=[nn.Accuracy(), Named(name)])


@pytest.mark.parametrize("metric", ["accuracy", nn.Accuracy])
def test_what_is_no_metric(metric):
    with pytest.raises(ValueError, match=r"metrics must be .*nn\.Accuracy\(\)"):
        make_trainer(metrics=[metric])


def pixels(n=40):
    """Whether a pixel is brighter than that on its left."""
    x = np.random.default_rng(0).standard_normal((n, 6, 5, 1)).astype("float32")
    return x, x[..., 0] > np.pad(x[..., 0], ((0, 0), (0, 0), (1, 0)))[..., :-1]


def pixelwise(*last):
    return nn.Sequential(nn.Conv2D(8, 3, padding="same"), nn.ReLU(), *last, input_shape=(6, 5, 1))


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (pixelwise(nn.Conv2D(2, 1)), nn.CrossEntropy(class_weight={1: 2.0})),
        (pixelwise(nn.Conv2D(1, 1)), nn.BinaryCrossEntropy(pos_weight=2.0)),
    ],
    ids=repr,
)
def test_a_label_for_each_pixel(model, loss):
    (x, t), weights = pixels(), np.linspace(0, 2, 40)
    trainer = nn.Trainer(model, loss, nn.Adam(0.02), metrics=[nn.Accuracy(), nn.F1(), nn.metrics.ROCAUC()])
    trainer.fit((x, t, weights), epochs=12, batch_size=8, validation=(x, t), progress=False)
    figures, z = trainer.evaluate((x, t)), trainer.predict(x)
    score = z[..., 0] if z.shape[-1] == 1 else z[..., 1] - z[..., 0]
    assert figures["accuracy"] == ((score > 0) == t).mean() > 0.9
    assert figures["roc_auc"] > 0.95 and trainer.history["val_f1"][-1] == figures["f1"]
    assert figures["loss"] == pytest.approx(loss(z.astype(float), t)[0], rel=1e-5)
    by_hand, delta = loss(model.forward(x, training=True), t, weights)
    model.backward(delta)
    grads = model.grads.copy()
    assert model.loss_and_grad(x, t, loss, weights) == pytest.approx(by_hand, rel=1e-6)
    assert abs(model.grads - grads).max() <= 1e-5 * abs(grads).max()


def test_a_vector_has_columns_in_the_history_and_a_matrix_none(capsys):
    trainer = make_trainer(metrics=[nn.ConfusionMatrix(), nn.F1(average=None), nn.Accuracy()])
    history = trainer.fit((X, T), validation=(X, T))
    columns = ["loss", "f1_0", "f1_1", "accuracy"]
    columns += [f"val_{name}" for name in columns]
    assert list(history) == [*columns, "learning_rate", "seconds", "samples_per_second"]
    result = trainer.evaluate((X, T))
    assert result["confusion_matrix"].sum() == len(X)
    assert result["f1"].tolist() == [history["val_f1_0"][-1], history["val_f1_1"][-1]]
    assert "val_accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("metrics", [(), (nn.Accuracy(), nn.F1())])
def test_an_epoch_in_which_every_step_is_skipped(metrics):
    with pytest.warns(RuntimeWarning, match="step skipped"), pytest.raises(nn.NonFiniteError, match="every step of epoch 1"):
        make_trainer(metrics=metrics).fit((X * np.nan, T), progress=False, nonfinite="skip")


def test_an_iterable_may_have_an_attribute_called_batches():
    class Loader:
        batches = ((X, T),)

        def __iter__(self):
            return iter(self.batches)

    trainer = make_trainer()
    trainer.fit(Loader(), progress=False)
    assert trainer.steps == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: t.fit((X, T), epochs=2.5), "epochs must be a whole number, at least 0, not 2.5"),
        (lambda t: t.fit((X, T), batch_size=8.0), "batch_size must be a whole number, at least 1"),
        (lambda t: t.fit((X, T), seed=None), "seed must be a whole number"),
        (lambda t: t.predict(X, batch_size=-1), "batch_size must be a whole number, at least 1, not -1"),
        (lambda t: t.evaluate((X, T), batch_size=0), "batch_size must be a whole number, at least 1, not 0"),
        (lambda t: t.fit((X, T), checkpoint="x", every=0.5), "every must be a whole number"),
    ],
)
def test_numbers_that_are_not_whole(call, words):
    with pytest.raises(ValueError, match=words):
        call(make_trainer())


def test_lists_are_predicted_with_views_of_one_pass():
    model = nn.Sequential(nn.Flatten(), nn.Dense(4), input_shape=(3, 3, 1))
    trainer, x = nn.Trainer(model, nn.CrossEntropy(), nn.SGD()), np.random.default_rng(0).standard_normal((5, 3, 3, 1))
    views = nn.data.views()
    given = trainer.predict(x.tolist(), batch_size=2, augment=(view for view in views))
    assert np.array_equal(given, trainer.predict(x, batch_size=2, augment=views))


def test_the_model_is_given_the_trainers_own_loss():
    class Watched(nn.Sequential):
        def loss_and_grad(self, x, t, criterion, *args, **kwargs):
            seen.append(criterion)
            return super().loss_and_grad(x, t, criterion, *args, **kwargs)

    seen = []
    trainer = nn.Trainer(Watched(nn.Dense(3), input_shape=(4,)), nn.CrossEntropy(), nn.SGD())
    trainer.fit((np.ones((8, 4)), np.zeros(8, int)), batch_size=4, progress=False)
    assert len(seen) == 2 and all(criterion is trainer.loss for criterion in seen)


@pytest.mark.parametrize("t", [np.zeros(4, int), np.full(4, 9)])
def test_a_batch_of_wrong_inputs_is_no_batch_without_weight(t):
    trainer = nn.Trainer(nn.Sequential(nn.Dense(3), input_shape=(4,)), nn.CrossEntropy(), nn.SGD())
    with pytest.raises(nn.ShapeError, match=r"expects inputs \(N, 4\)"):
        trainer.fit([(np.ones((4, 5)), t, np.zeros(4))], progress=False)
    assert trainer.model.passes == 0
