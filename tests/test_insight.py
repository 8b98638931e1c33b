"""Pictures of training, predictions and models: what they show, what they refuse; the search for a learning rate."""

import copy
import io
import pickle
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import nnlite as nn

HISTORY = nn.History(
    {"loss": [1.0, 0.5], "r2": [0.1, 0.4], "val_loss": [2.0, np.nan], "val_r2": [0.0, 0.2]}
    | {"learning_rate": [0.1, 0.1], "learning_rate_*.b": [0.1, 0.1], "seconds": [1.0, 1.0], "samples_per_second": [9.0, 9.0]}
)


def shown(axes):
    """The curves of each Axes of the figure, by their labels."""
    return [{line.get_label(): list(line.get_ydata()) for line in each.lines} for each in axes.figure.axes]


def test_losses_stand_at_the_left_and_scores_at_the_right():
    axes = nn.insight.plots.curves(HISTORY)
    assert isinstance(axes, Axes) and axes is axes.figure.axes[0]
    losses, scores = shown(axes)
    assert list(losses) == ["loss", "val loss"] and losses["loss"] == [1.0, 0.5]
    assert scores == {"r2": [0.1, 0.4], "val r2": [0.0, 0.2]}
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 2], [1, 2]]
    assert (axes.get_ylabel(), axes.figure.axes[1].get_ylabel()) == ("loss", "")


def test_without_scores_there_is_one_panel():
    assert shown(nn.insight.plots.curves(nn.History({"loss": [1.0]}))) == [{"loss": [1.0]}]


@pytest.mark.parametrize(("kind", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_figure_can_be_saved(kind, begins):
    file = io.BytesIO()
    nn.insight.plots.curves(HISTORY).figure.savefig(file, format=kind)
    assert file.getvalue().startswith(begins)


def test_an_axes_and_columns_may_be_chosen():
    ax = Figure().subplots()
    assert nn.insight.plots.curves(HISTORY, ax=ax) is ax and list(shown(ax)[0]) == ["loss", "val loss"]
    chosen = nn.insight.plots.curves(HISTORY, columns=["val_r2", "learning_rate"])
    assert shown(chosen) == [{"val r2": [0.0, 0.2], "learning rate": [0.1, 0.1]}]
    for history, options, words in (
        (nn.History(), {}, "empty"),
        (HISTORY, {"columns": ["f1"]}, "no column 'f1': it has loss, r2"),
    ):
        with pytest.raises(nn.DataError, match=words):
            nn.insight.plots.curves(history, **options)


# ---- predictions

rng = np.random.default_rng(0)
IMAGES, T = rng.integers(0, 256, (60, 6, 5, 3)).astype("uint8"), rng.integers(0, 3, 60)
Z = rng.standard_normal((60, 3)) + 1.5 * (T[:, None] == np.arange(3))
NAMES = ["ant", "bee", "cat"]
plots = nn.insight.plots


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_a_confusion_matrix_has_percents_of_the_rows():
    ax = plots.confusion_matrix([[3, 1, 0], [0, 0, 0], [5, 0, 5]], classes=NAMES)
    assert texts(ax) == ["75", "25", "0", "0", "0", "0", "50", "0", "50"]
    assert [label.get_text() for label in ax.get_yticklabels()] == NAMES and (ax.get_xlabel(), ax.get_ylabel()) == (
        "predicted",
        "true",
    )
    assert len(plots.confusion_matrix(np.eye(30)).texts) == 0


def curve_of(ax, name):
    return next(line for line in ax.lines if str(line.get_label()).startswith(name))


@pytest.mark.parametrize("binary", [False, True])
def test_roc_and_precision_recall_are_scikit_learns(binary):
    metrics = pytest.importorskip("sklearn.metrics")
    z, t, names = (Z[:, 0], (T == 0).astype(int), ["rest", "ant"]) if binary else (Z, T, NAMES)
    roc, pr = plots.roc(z, t, classes=names), plots.precision_recall(z, t, classes=names)
    score = z if binary else nn.softmax(Z)[:, 0]
    x, y, _ = metrics.roc_curve(T == 0, score, drop_intermediate=False)
    line = curve_of(roc, "ant")
    assert np.allclose(line.get_xdata(), x) and np.allclose(line.get_ydata(), y)
    assert line.get_label() == f"ant {metrics.roc_auc_score(T == 0, score):.3f}"
    precision, recall, _ = metrics.precision_recall_curve(T == 0, score)
    line = curve_of(pr, "ant")
    assert np.allclose(line.get_xdata()[1:], recall[::-1][1:]) and np.allclose(line.get_ydata()[1:], precision[::-1][1:])
    assert line.get_label() == f"ant {metrics.average_precision_score(T == 0, score):.3f}"
    assert len(roc.lines) == (2 if binary else 4)


def test_calibration_is_accuracy_over_confidence():
    z = np.log([[0.95, 0.05], [0.93, 0.07], [0.39, 0.61], [0.37, 0.63]])
    line = curve_of(plots.calibration(z, [0, 1, 1, 1]), "accuracy")
    assert np.allclose(line.get_xdata(), [0.62, 0.94]) and list(line.get_ydata()) == [1, 0.5]
    assert line.get_label() == f"accuracy, ECE {0.5 * 0.38 + 0.5 * 0.44:.3f}"
    one = curve_of(plots.calibration(z[:, 1] - z[:, 0], [0, 1, 1, 1]), "accuracy")
    assert np.allclose(one.get_xdata(), line.get_xdata())


def test_samples_and_mistakes_say_what_was_predicted():
    z = np.log([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    assert texts(plots.samples(IMAGES[:3], [0, 1, 2], z, classes=NAMES)) == ["ant 70%", "ant 50%\n(bee)", "bee 80%\n(cat)"]
    mistakes = plots.misclassified(IMAGES[:3], [0, 1, 2], z, classes=NAMES, most=1)
    assert texts(mistakes) == ["bee 80%\n(cat)"] and np.array_equal(mistakes.images[0].get_array(), IMAGES[2])
    assert texts(plots.samples(IMAGES[:1], [0], z[:1], classes=["a" * 50, "b", "c"])) == [f"{'a' * 13}… 70%"]
    assert texts(plots.misclassified(IMAGES[:3], [0, 0, 1], z)) == ["all 3 predictions are right"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plots.confusion_matrix([1, 2]), r"\(C, C\)"),
        (lambda: plots.confusion_matrix(np.ones((4, 2, 2))), "of several labels"),
        (lambda: plots.confusion_matrix(np.eye(3), classes=["a"]), "names of 3 classes"),
        (lambda: plots.roc(Z, np.zeros(60, int) + 7), r"labels must be in 0 \.\.\. 2"),
        (lambda: plots.roc(Z[:, 0], np.zeros(60, int)), "nothing to rank"),
        (lambda: plots.calibration(Z[:0], T[:0]), "no samples"),
        (lambda: plots.calibration(Z, T[1:]), "60 outputs, but 59 targets"),
        (lambda: plots.samples(IMAGES[:4], T, Z), "4 images, but 60 targets"),
        (lambda: plots.samples(IMAGES[..., :2], T, Z), r"images are .*got \(60, 6, 5, 2\)"),
        (lambda: plots.samples(IMAGES[:, :0], T, Z), r"images are .*got \(60, 0, 5, 3\)"),
        (lambda: plots.samples(IMAGES[0], T[0], Z[0]), "an axis of samples"),
        (lambda: plots.misclassified(IMAGES[:4], T, Z), "4 images, but 60 targets"),
        (lambda: plots.confusion_matrix([["a", "b"], ["c", "d"]]), "must be real numbers"),
        (lambda: plots.confusion_matrix([[1], [2, 3]]), "cannot be made"),
        (lambda: plots.confusion_matrix(np.full((2, 2), np.inf)), "finite"),
        (lambda: plots.confusion_matrix(np.eye(3), classes=3), "a list of names"),
        (lambda: plots.confusion_matrix(np.eye(3), classes={"a", "b", "c"}), "a list of names"),
        (lambda: plots.roc(np.where(np.arange(60)[:, None] == 7, np.nan, Z), T), "outputs of 1 of 60 samples"),
        (lambda: plots.precision_recall(Z * np.nan, T), "outputs of 60 of 60 samples"),
        (lambda: plots.calibration(Z * np.nan, T), "outputs of 60 of 60 samples"),
        (lambda: plots.learning_rates(nn.insight.Found(np.zeros(0), np.zeros(0), np.nan)), "no rate"),
        (lambda: plots.activations(make_model(), 3, 0), "of one sample, got 3"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(nn.DataError, match=words):
        call()


def test_one_epoch_has_its_own_mark():
    ax = plots.curves(nn.History({"loss": [0.7]}))
    assert list(ax.get_xticks()) == [1]


def test_pictures_of_lists_and_with_values_that_are_not_finite():
    drawn = plots.misclassified(IMAGES.tolist(), T.tolist(), Z.tolist(), most=3)
    assert len(drawn.images) == 3
    pixels = np.ones((2, 4, 4))
    pixels[0, 0], pixels[1, 1], pixels[1, 2] = np.nan, np.inf, 3
    shown = np.array([image.get_array() for image in plots.samples(pixels, T[:2], Z[:2]).images])
    assert shown[1, 2, 0] == 1 and shown.sum() == 4


@pytest.mark.parametrize(
    "call",
    [
        lambda trainer: plots.curves(trainer),
        lambda trainer: plots.learning_rates(trainer.history),
        lambda trainer: plots.filters(trainer),
        lambda trainer: plots.activations(trainer, IMAGES[0], 0),
        lambda trainer: nn.insight.explain.saliency(trainer, IMAGES),
        lambda trainer: nn.insight.explain.integrated_gradients(trainer, IMAGES),
        lambda trainer: nn.insight.explain.grad_cam(trainer, IMAGES, "0"),
        lambda trainer: nn.insight.explain.occlusion(trainer, IMAGES, 2),
        lambda trainer: nn.insight.save_run("run", trainer.model, (IMAGES, T)),
        lambda trainer: nn.profile(trainer, IMAGES, T),
        lambda trainer: nn.debug(trainer).__enter__(),
        lambda trainer: nn.gradcheck(trainer, IMAGES),
        lambda trainer: nn.interop.torch.save(trainer, "weights.safetensors"),
        lambda trainer: nn.interop.torch.load({}, trainer),
        lambda trainer: nn.interop.onnx.export(trainer, "model.onnx"),
        lambda trainer: nn.interop.keras.save(trainer, "model.keras"),
    ],
)
def test_a_trainer_is_no_model_and_no_history(call):
    with pytest.raises(ValueError, match=r"(model|history|found|trainer) must be (a|what|the) "):
        call(make_trainer(nn.SGD(0.1)))


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: plots.filters(model),
        lambda model, x: plots.activations(model, x[0], 0),
        lambda model, x: nn.insight.explain.saliency(model, x),
        lambda model, x: nn.insight.explain.grad_cam(model, x, "0"),
        lambda model, x: nn.insight.explain.occlusion(model, x, 2),
        lambda model, x: nn.debug(model).__enter__(),
        lambda model, x: nn.profile(model, x, x),
        lambda model, x: nn.interop.torch.save(model, "weights.safetensors"),
        lambda model, x: nn.interop.onnx.export(model, "model.onnx"),
        lambda model, x: nn.interop.keras.save(model, "model.keras"),
        lambda model, x: model.forward(x, training=True),
        lambda model, x: model.backward(x),
        lambda model, x: model.freeze("*"),
        lambda model, x: model.unfreeze("*"),
        lambda model, x: model.set_frozen([]),
    ],
)
def test_a_model_without_a_shape_is_refused(call):
    with pytest.raises(nn.StateError, match="no input_shape"):
        call(nn.Sequential(nn.Conv2D(2, 3)), IMAGES)


# ---- models


def make_model():
    layers = nn.Conv2D(4, 3), nn.ReLU(), nn.MaxPool2D(2), nn.Residual(nn.ReLU()), nn.Flatten(), nn.Dense(3)
    return nn.Sequential(*layers, input_shape=(6, 5, 3))


def test_filters_are_those_of_the_first_layer():
    model = make_model()
    shown = [image.get_array() for image in plots.filters(model).images]
    assert len(shown) == 4 and all(picture.shape == (3, 3, 3) for picture in shown)
    W = model[0].W[1]
    assert np.allclose(shown[1], (W - W.min()) / (W.max() - W.min()))
    dense = nn.Sequential(nn.Flatten(), nn.Dense(7), input_shape=(6, 5, 1))
    assert [image.get_array().shape for image in plots.filters(dense).images] == [(6, 5)] * 7
    for layers, words in (
        ([nn.Flatten(), nn.ReLU()], "no weights"),
        ([nn.Reshape((30,)), nn.Dense(2), nn.Dense(9)], r"0|1\.W"),
    ):
        with pytest.raises(nn.DataError, match=words):
            plots.filters(nn.Sequential(*layers, input_shape=(30,)))


def test_activations_are_those_of_inference():
    model = make_model()
    before, x = model(IMAGES[:1]), IMAGES[0]
    pooled = nn.Sequential(*copy.deepcopy(model.layers[:3]), input_shape=(6, 5, 3))
    for name, values in model.named_params().items():
        pooled.named_params().get(name, np.empty_like(values))[...] = values
    shown = [image.get_array() for image in plots.activations(model, x, 2).images]
    assert np.allclose(shown, np.moveaxis(pooled(x[None])[0], -1, 0), atol=1e-5) and len(shown) == 4
    bars = plots.activations(model, x[None], 5).patches
    assert np.allclose([bar.get_height() for bar in bars], before[0], atol=1e-5)
    assert len(plots.activations(model, x, "3.0").images) == 4 and np.array_equal(model(IMAGES[:1]), before)
    for layer in (6, -1, "9.9", "relu"):
        with pytest.raises(ValueError, match=r"there is no layer .*: the layers are 0, 1, 2, 3\.0, 4, 5"):
            plots.activations(model, x, layer)
    with pytest.raises(nn.DataError, match="of one sample, got 2"):
        plots.activations(model, IMAGES[:2], 0)


# ---- the learning rate


def make_trainer(optimizer):
    layers = nn.Flatten(), nn.Normalize(128, 64), nn.Dense(8), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.1), nn.Dense(3)
    return nn.Trainer(nn.Sequential(*layers, input_shape=(6, 5, 3)), nn.CrossEntropy(), optimizer)


def everything_of(trainer):
    model, state = trainer.model, trainer.optimizer.state()
    return pickle.dumps((model.params, model.buffers, model.grads, model.passes, trainer.steps, trainer.history, state))


@pytest.mark.parametrize("optimizer", [nn.Adam(0.01), nn.SGD(nn.schedules.cosine(0.1, 99), momentum=0.9),
                                       nn.ParameterGroups({"*.b": nn.SGD(0.02), "*": nn.SGD(0.1)})])  # fmt: skip
def test_the_search_for_a_rate_leaves_every_bit(optimizer):
    trainer = make_trainer(optimizer)
    trainer.fit((IMAGES, T), progress=False)
    before = everything_of(trainer)
    found = nn.insight.find_learning_rate(trainer, (IMAGES, T), batch_size=8, steps=50)
    assert everything_of(trainer) == before
    assert len(found.rates) == len(found.losses) and found.rates[0] == 1e-6 and np.isfinite(found.losses).all()


def test_the_suggestion_trains_well():
    x = rng.standard_normal((400, 6)).astype("float32")
    t = (x @ rng.standard_normal((6, 3))).argmax(axis=1)
    for kind in (nn.SGD, nn.Adam):

        def make(rate, kind=kind):
            model = nn.Sequential(nn.Dense(16), nn.ReLU(), nn.Dense(3), input_shape=(6,))
            return nn.Trainer(model, nn.CrossEntropy(), kind(rate))

        found = nn.insight.find_learning_rate(make(1e-3), (x, t))
        assert found.rates[10] < found.suggestion < found.rates[found.smoothed().argmin()]
        losses = {rate: make(rate).fit((x, t), epochs=3, progress=False)["loss"][-1] for rate in (found.suggestion, 1e-5)}
        assert losses[found.suggestion] < 0.7 * losses[1e-5]
        assert curve_of(plots.learning_rates(found), "suggestion").get_xdata()[0] == found.suggestion


def test_a_loss_that_never_falls_suggests_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Dense(3), input_shape=(6, 5, 3))
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.SGD())
    found = nn.insight.find_learning_rate(trainer, (IMAGES[:8], T[:8]), batch_size=8, low=1e-30, high=1e-29, steps=30)
    assert len(found.losses) == 30 and np.isnan(found.suggestion)
    rising = nn.insight.Found(np.geomspace(1, 2, 30), np.arange(30.0), np.nan)
    assert len(plots.learning_rates(rising).lines) == 2


def test_rates_that_do_not_rise_and_data_that_end_are_refused():
    trainer = make_trainer(nn.SGD(0.1))
    for options, words in (
        ({"low": 0}, "low"),
        ({"low": 1, "high": 0.5}, "high"),
        ({"steps": 5}, "steps"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=words):
            nn.insight.find_learning_rate(trainer, (IMAGES, T), **options)
    with pytest.raises(ValueError, match=r"takes the nn\.Trainer"):
        nn.insight.find_learning_rate(trainer.model, (IMAGES, T))
    bad = np.full(IMAGES.shape, np.nan)
    with pytest.raises(nn.NonFiniteError, match="the first batch"):
        nn.insight.find_learning_rate(trainer, (bad, T))
    trainer.model.freeze("*")
    with pytest.raises(nn.StateError, match="no parameter of the model is trained"):
        nn.insight.find_learning_rate(trainer, (IMAGES, T))
    trainer.model.unfreeze("*")
    with pytest.raises(nn.DataError, match="no batch after the first 2"):
        nn.insight.find_learning_rate(trainer, iter([(IMAGES, T)] * 2))


# ---- what they need


def test_an_axes_must_be_one():
    with pytest.raises(ValueError, match="ax must be an Axes of matplotlib, not 3"):
        plots.curves(HISTORY, ax=3)
    ax = Figure().subplots()
    for draw in (plots.roc, plots.precision_recall, plots.calibration):
        assert draw(Z, T, ax=ax) is ax
    assert plots.samples(IMAGES, T, Z, ax=ax) is ax and plots.filters(make_model(), ax=ax) is ax


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'nnlite-numpy\[plots\]'"):
        nn.insight.plots.curves(HISTORY)
