"""`nn.profile`: a row for every step, and nothing left behind."""

import numpy as np
import pytest

import nnlite as nn
from nnlite.tools.profile import _Clock

x = np.random.default_rng(0).standard_normal((8, 12, 12, 3))
t = np.arange(8) % 5


def make():
    return nn.Sequential(
        nn.Conv2D(4, 3),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Residual(nn.BatchNorm(), nn.Dropout(0.5), nn.Conv2D(4, 3, padding=1)),
        nn.Flatten(),
        nn.Dense(5),
        input_shape=(12, 12, 3),
    )


@pytest.mark.usefixtures("numpy_kernels")
def test_a_row_for_every_step(capsys):
    model = make()
    model.loss_and_grad(x, t, nn.CrossEntropy())
    params, buffers = model.snapshot()
    nn.profile(model, x, t, passes=2)
    text = capsys.readouterr().out
    rows = text.splitlines()
    wanted = [
        "0 Conv2D(4, 3) + max-pooling",
        "1 ReLU()",
        "3.0 BatchNorm()",
        "3.1 Dropout(0.5)",
        "3.2 Conv2D",
        "4 Flatten()",
        "5 Dense(5)",
    ]
    assert [row for row, name in zip(rows[2:], wanted, strict=False) if not row.startswith(name)] == []
    assert any(row.startswith("loss") for row in rows) and any(row.startswith("rest") for row in rows)
    assert rows[-1].startswith("8 samples in ") and rows[-1].endswith("samples/s")
    assert np.array_equal(model.params, params) and np.array_equal(model.buffers, buffers) and model.passes == 1


def flops_printed(capsys, row):
    """Forward and backward, in millions: a rate times a time."""
    _, _, forward, backward, forward_rate, backward_rate, _ = capsys.readouterr().out.splitlines()[row].split()
    return float(forward_rate) * float(forward), float(backward_rate) * float(backward)


def test_flops_are_those_of_the_gradients_that_are_wanted(capsys):
    model = nn.Sequential(nn.Dense(400), nn.Dense(300), nn.Dense(10), input_shape=(300,))
    flops = 2 * 300 * 400 * 64 / 1e6
    for frozen, row, gradients in ((), 2, 1), ((), 3, 2), (("1.*",), 3, 1), (("0.*",), 3, 1):
        for pattern in frozen:
            model.freeze(pattern)
        nn.profile(model, np.ones((64, 300)), np.zeros(64, int), passes=3)
        model.unfreeze("*")
        assert flops_printed(capsys, row) == pytest.approx((flops, gradients * flops), rel=0.2, abs=1)


def test_shares_add_up(capsys):
    nn.profile(make(), x, t, passes=3)
    shares = [float(row.split()[-1].rstrip("%")) for row in capsys.readouterr().out.splitlines() if row.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_time_is_shared_by_the_steps_that_run_at_once():
    clock = _Clock(nn.CrossEntropy(), lambda: None)
    one, other = ("one", 0), ("other", 1)
    clock.edges = [(1.0, 1, one), (4.0, -1, one), (3.0, 1, other), (6.0, -1, other)]
    assert clock.shares() == {one: 2.5, other: 2.5}
    clock.edges += [(3.0, 1, one), (4.0, -1, one)]  # two threads of three are in the same step
    assert clock.shares() == pytest.approx({one: 2 + 2 / 3, other: 2 + 1 / 3})


def test_nothing_is_left_behind():
    """Also after an error: steps and layers have no clock, and compute what they did before."""
    model, criterion = make(), nn.CrossEntropy()
    before = model.loss_and_grad(x, t, criterion, pass_id=1), model.grads.copy()
    nn.profile(model, x, t, criterion, passes=1)
    with pytest.raises(nn.DataError):
        nn.profile(model, x, t[:3])
    after = model.loss_and_grad(x, t, criterion, pass_id=1), model.grads.copy()
    assert before[0] == after[0] and np.array_equal(before[1], after[1])
    clocked = [*model.plan.training[0].steps, *(layer for run in model.plan.training for layer in run.layers)]
    assert not any({"forward", "backward", "statistics"} & set(vars(each)) for each in clocked)
