"""The parts of a trainer: what its constructor refuses, and how they show themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn


def net(*layers, units=3):
    return nn.Sequential(nn.Dense(8), nn.ReLU(), nn.Dense(units), *layers, input_shape=(4,))


GOOD = {"model": net, "loss": nn.CrossEntropy, "optimizer": nn.Adam}
WRONG = {
    "a text": "mse", "a long text": "x" * 10_000, "nothing": None, "a number": 0.1, "a function": lambda z, t: (0.0, z),
    "print": print, "a method": [].append, "a class": int, "an array": np.zeros((99, 99)), "a dict": dict.fromkeys(range(999)),
}  # fmt: skip
CLASSES = {"model": nn.Sequential, "loss": nn.MSE, "optimizer": nn.Adam, "metrics": nn.F1, "callbacks": nn.EarlyStopping}
OBJECTS = CLASSES | {"model": net}


def make(part, value):
    parts = {name: build() for name, build in GOOD.items()}
    return nn.Trainer(**parts | {part: [value] if part in ("metrics", "callbacks") else value})


@pytest.mark.parametrize("part", CLASSES)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_part_of_another_kind_is_refused(part, wrong):
    with pytest.raises(
        ValueError, match=rf"{part} must be an object such as nn\.\w+\(.*\), not .*subclass of nn\.\w+"
    ) as caught:
        make(part, WRONG[wrong])
    assert len(str(caught.value)) <= 600


@pytest.mark.parametrize("part", CLASSES)
def test_parts_in_each_others_places_are_refused(part):
    make(part, OBJECTS[part]())
    for other in CLASSES.keys() - {part}:
        with pytest.raises(ValueError, match=f"{part} must be an object such as"):
            make(part, OBJECTS[other]())
    name = CLASSES[part].__name__
    with pytest.raises(ValueError, match=rf"{part} must be an object .*not the class {name}: write {name}\(\.\.\.\)"):
        make(part, CLASSES[part])


@pytest.mark.parametrize("part", CLASSES)
def test_what_is_put_in_later_is_looked_at_by_fit(part):
    trainer = make("metrics", nn.F1())
    setattr(trainer, part, [CLASSES[part]] if part in ("metrics", "callbacks") else CLASSES[part])
    with pytest.raises(ValueError, match=rf"{part} must be an object"):
        trainer.fit((np.zeros((4, 4)), np.zeros(4, int)), progress=False)
    assert trainer.steps == 0


@pytest.mark.parametrize("part", ["metrics", "callbacks"])
@pytest.mark.parametrize("value", ["accuracy", nn.Accuracy(), nn.WeightAverage(), print, None])
def test_metrics_and_callbacks_come_in_a_list(part, value):
    with pytest.raises(ValueError, match=rf"{part} must be a list, such as \[.*\]"):
        nn.Trainer(net(), nn.CrossEntropy(), nn.Adam(), **{part: value})


def test_a_metric_without_a_name_and_a_model_without_values():
    with pytest.raises(ValueError, match=r"Metric\(\) needs a name"):
        make("metrics", nn.Metric())
    with pytest.raises(nn.StateError, match="no input_shape"):
        make("model", nn.Sequential(nn.Dense(3)))


# ---- hooks by names of other libraries

HOOKS = ["on_fit_begin", "on_epoch_begin", "on_step_end", "on_epoch_end", "on_fit_end"]
ELSEWHERE = {
    "on_train_begin": "on_fit_begin", "on_train_end": "on_fit_end", "on_batch_end": "on_step_end",
    "on_train_batch_end": "on_step_end", "on_epoch_start": "on_epoch_begin", "on_train_epoch_start": "on_epoch_begin",
    "on_train_epoch_end": "on_epoch_end", "on_validation_end": "on_epoch_end", "on_fit_start": "on_fit_begin",
}  # fmt: skip


def with_hooks(*names, base=nn.Callback):
    return type("Log", (base,), dict.fromkeys(names, lambda self, *given: None))()


def with_inherited_hooks(*names):
    return with_hooks(base=type("Base", (with_hooks(*names, base=nn.EarlyStopping).__class__,), {}))


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("give", [with_hooks, with_inherited_hooks])
def test_a_hook_of_another_library_is_refused_and_the_right_one_named(name, give):
    with pytest.raises(ValueError, match=rf"Log\(.* has {name}, which nnlite does not call: {name} is {ELSEWHERE[name]} here"):
        make("callbacks", give(name, "on_epoch_end"))


@given(names=st.sets(st.from_regex(r"on_[a-z_]{1,80}", fullmatch=True) | st.sampled_from([*ELSEWHERE, *HOOKS]), max_size=30))
def test_so_is_every_method_that_is_called_like_one(names):
    if names <= set(HOOKS):
        make("callbacks", with_hooks(*names))
        return
    with pytest.raises(ValueError, match=f"which nnlite does not call: .*the hooks are {', '.join(HOOKS)}$") as caught:
        make("callbacks", with_hooks(*names))
    assert len(str(caught.value)) <= 600


def test_attributes_and_other_methods_are_the_users_own():
    class Mine(nn.Callback):
        on_the_way = 3

        def __init__(self, on_best=print):
            self.on_best = on_best

        def once(self):
            """No hook."""

        _on_train_begin = once

    make("callbacks", Mine())


# ---- probabilities into a loss of logits


class Percent(nn.Layer):
    """A user's own that gives probabilities."""

    gives_probabilities = True


class Own(nn.CrossEntropy):
    """A user's own loss, of logits."""


class OfProbabilities(nn.MSE):
    """A user's own loss, of whatever it is given."""


ENDS = [nn.Sigmoid, nn.Softmax, Percent]
BEHIND = [[], [nn.Flatten()], [nn.Reshape((3, 1, 1)), nn.Flatten()], [nn.Reshape((1, 1, 3)), nn.GlobalAvgPool2D()]]


@pytest.mark.parametrize("loss", [nn.CrossEntropy(), nn.BinaryCrossEntropy(), Own()], ids=repr)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("behind", BEHIND, ids=repr)
@pytest.mark.parametrize("nested", [False, True])
def test_probabilities_into_a_loss_of_logits_are_refused(loss, end, behind, nested):
    layers = [nn.Sequential(nn.ReLU(), end(), *behind)] if nested else [end(), *behind]
    name = type(loss).__name__
    with pytest.raises(
        ValueError, match=rf"{name}\(\) takes logits, .* ends with {end.__name__}\(\).* leave {end.__name__}\(\) out"
    ):
        nn.Trainer(net(*layers), loss, nn.Adam())


@pytest.mark.parametrize("loss", [nn.MSE(), nn.MAE(), nn.Huber(), OfProbabilities()], ids=repr)
def test_other_losses_take_them(loss):
    nn.Trainer(net(nn.Sigmoid()), loss, nn.Adam())


@pytest.mark.parametrize("layers", [[], [nn.Softmax(), nn.Dense(3)], [nn.Residual(nn.Sigmoid())], [nn.Tanh()]], ids=repr)
def test_logits_are_logits(layers):
    nn.Trainer(net(*layers), nn.CrossEntropy(), nn.Adam())


# ---- how they show themselves

SHOWN = [
    (nn.CrossEntropy(), "CrossEntropy()"),
    (nn.CrossEntropy(label_smoothing=0.1, class_weight=[1, 2]), "CrossEntropy(label_smoothing=0.1, class_weight=[1, 2])"),
    (nn.CrossEntropy(class_weight={1: 2.5}), "CrossEntropy(class_weight={1: 2.5})"),
    (nn.BinaryCrossEntropy(pos_weight=3), "BinaryCrossEntropy(pos_weight=3)"),
    (nn.Huber(2.0), "Huber(threshold=2.0)"),
    (nn.Adam(), "Adam()"),
    (nn.SGD(0.1, momentum=0.9), "SGD(learning_rate=0.1, momentum=0.9)"),
    (nn.AdamW(nn.schedules.linear(0.1, 5)), "AdamW(learning_rate=linear(rate=0.1, steps=5, final=0.0))"),
    (nn.RMSProp(len), "RMSProp(learning_rate=len)"),
    (nn.Muon(iterations=3), "Muon(iterations=3)"),
    (nn.ParameterGroups({"*": nn.Adam()}, clip_norm=1.0), "ParameterGroups({'*': Adam()}, clip_norm=1.0)"),
    (nn.Accuracy(), "Accuracy()"),
    (nn.TopK(3), "TopK(k=3)"),
    (nn.F1(None), "F1(average=None)"),
    (nn.Recall("macro", multilabel=True), "Recall(average='macro', multilabel=True)"),
    (nn.metrics.ROCAUC(ignore_index=255), "ROCAUC(ignore_index=255)"),
    (nn.metrics.R2(), "R2()"),
    (nn.ConfusionMatrix(4), "ConfusionMatrix(n_classes=4)"),
    (nn.EarlyStopping("loss", mode="min"), "EarlyStopping(monitor='loss', mode='min')"),
    (nn.ReduceOnPlateau(patience=3, mode="max"), "ReduceOnPlateau(patience=3, mode='max')"),
    (nn.CSVLog("out/log.csv"), "CSVLog('out/log.csv')"),
    (nn.WeightAverage(None), "WeightAverage(decay=None)"),
    (nn.Callback(), "Callback()"),
]


@pytest.mark.parametrize(("thing", "text"), SHOWN, ids=[text[:40] for _, text in SHOWN])
def test_they_show_the_call_that_makes_them(thing, text):
    assert repr(thing) == text
    assert "object at 0x" not in repr(thing)


def test_a_trainer_shows_its_parts():
    assert repr(make("loss", nn.MSE())) == f"Trainer({net()!r}, MSE(), Adam())"
    assert repr(make("metrics", nn.F1())) == f"Trainer({net()!r}, CrossEntropy(), Adam(), metrics=[F1()])"


@given(size=st.integers(1_000, 5_000), kind=st.sampled_from([list, tuple, np.array, str]))
def test_long_arguments_are_shortened(size, kind):
    class Mine(nn.Callback):
        def __init__(self, values, *more, other=None, **rest):
            self.values, self.more, self.other, self.forgotten = values, more, other, 1

    values = kind(range(size))
    things = [Mine(values, values, other=values)] + ([] if kind is str else [nn.CrossEntropy(class_weight=values)])
    assert all(len(repr(thing)) <= 300 for thing in things)


def test_what_does_not_keep_its_arguments_shows_itself_too():
    class Forgets(nn.Metric):
        name = "forgets"

        def __init__(self, path, level=3):
            self.file = path + str(level)

    assert repr(Forgets("x")) == "Forgets(...)"


@pytest.mark.parametrize("metric", [nn.TopK(5), nn.Precision("binary"), nn.F1("binary")])
def test_a_metric_that_cannot_be_of_these_outputs_is_refused_before_any_step(metric):
    model = nn.Sequential(nn.Dense(3), input_shape=(4,))
    with pytest.raises(nn.DataError, match="classes"):
        nn.Trainer(model, nn.CrossEntropy(), nn.Adam(), metrics=[metric])
