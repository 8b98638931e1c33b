"""`nn.profile`: a row for every step, and nothing left behind."""

import numpy as np
import pytest

import nnlite as nn

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


def test_a_row_for_every_step(capsys):
    model = make()
    params, buffers = model.params.copy(), model.buffers.copy()
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
    assert np.array_equal(model.params, params) and not np.array_equal(model.buffers, buffers)


def test_shares_add_up_and_flops_are_those_of_the_definition(capsys):
    model = nn.Sequential(nn.Dense(400), nn.ReLU(), nn.Dense(10), input_shape=(300,))
    nn.profile(model, np.ones((64, 300)), np.zeros(64, int), passes=3)
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    shares = [float(row[-1].rstrip("%")) for row in rows if row and row[-1].endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    _, _, forward, backward, forward_rate, backward_rate, _ = rows[2]
    flops = 2 * 300 * 400 * 64
    assert float(forward_rate) * float(forward) == pytest.approx(flops / 1e6, rel=0.2, abs=1)
    assert float(backward_rate) * float(backward) == pytest.approx(2 * flops / 1e6, rel=0.2, abs=1)


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
