"""What a step costs on a device: launches, and values that are read back."""

import numpy as np
import pytest
from fake_cupy import count
from test_device import host, pictures, small_cnn

import nnlite as nn
from nnlite.backend import get_backend
from nnlite.backend.cuda.cupy import get_cupy_backend
from nnlite.backend.window import Window

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.mark.parametrize(
    ("make", "most"),
    [(lambda: nn.zoo.resnet(20), 450), (lambda: nn.zoo.vgg_small((4, 8, 12)), 160), (nn.zoo.tutorial_cnn, 70)],
    ids=["ResNet-20", "VGG-like", "tutorial CNN"],
)
def test_launches_of_a_step(pretended, make, most):
    model, optimizer, criterion = make().to("cuda"), nn.Adam(), nn.CrossEntropy()
    x, t = (get_backend("cuda").asarray(v) for v in (np.zeros((2, *model.in_shape), "float32"), np.zeros(2, int)))

    def step():
        model.loss_and_grad(x, t, criterion)
        optimizer.step(model)

    step()
    assert count("launches", step) < most


def test_a_convolution_is_one_piece_where_memory_allows(pretended, monkeypatch):
    """ResNet-20's widest at batch 512, on a device of 80 GB."""
    monkeypatch.setattr(pretended.cuda.runtime, "memGetInfo", lambda: (70 << 30, 80 << 30))
    get_cupy_backend.cache_clear()
    plan = get_cupy_backend().conv_plan(Window.of((32, 32, 16), 3, 1, 1), 16, 1, False)
    assert len(list(plan._chunks(np.lib.stride_tricks.as_strided(np.zeros(1, "float32"), (512, 1), (0, 0))))) == 1


OPTIMISERS_OF_FILTERS = [lambda: nn.Muon(0.05, renormalize=True), lambda: nn.RMSProp(0.01)]


@pytest.mark.parametrize("make", OPTIMISERS_OF_FILTERS)
def test_no_optimiser_reads_the_device(pretended, make):
    model = nn.Sequential(nn.Conv2D(3, 8, bias=False), nn.Flatten(), input_shape=(8, 8, 3)).to("cuda")
    optimizer, tally = make(), model.backend.tally()
    model.loss_and_grad(pictures(4).images, pictures(4).labels, nn.CrossEntropy())
    assert count("reads", lambda: [optimizer.step(model, halted=tally.halted) for _ in range(3)]) == 0


def test_an_inference_does_not_wait_for_the_device(pretended):
    model, x = small_cnn().to("cuda"), get_backend("cuda").asarray(pictures(4).images)
    model(x)
    assert count("reads", lambda: model(x)) == 0
    z = host(model(x)).copy()
    model[1].W += 1  # and it sees what was changed
    assert abs(host(model(x)) - z).max() > 0.1


def test_profile_waits_for_the_device_at_each_reading_of_the_clock(pretended, monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(pretended.cuda.runtime, "deviceSynchronize", lambda: waits.append(1))
    model = nn.Sequential(nn.Dense(3), nn.ReLU(), nn.Dense(3), input_shape=(2,)).to("cuda")
    nn.profile(model, np.zeros((4, 2)), np.zeros(4, int), passes=2)
    calls = 2 * (3 + 3 + 1)  # passes x (forward, backward, loss)
    assert len(waits) >= 2 * calls and "loss" in capsys.readouterr().out


@pytest.mark.parametrize("make", [lambda: nn.SGD(0.05, momentum=0.9), lambda: nn.RMSProp(0.01), nn.Adam, lambda: nn.Muon(0.1)])
def test_after_a_bad_gradient_nothing_is_updated_by_hand(pretended, make):
    """The loss of 1e25 squared by weights of 1e-7 is finite, its gradient is not; a loop by hand is told, but not at once."""
    model = nn.Sequential(nn.Dense(2, bias=False), input_shape=(2,)).to("cuda")
    optimizer, x, losses = make(), np.full((2, 2), 1e25, "float32"), []
    model.params[...] = 1e-7
    before = host(model.params).copy()

    def step():
        losses.append(model.loss_and_grad(x, np.zeros((2, 2)), nn.MSE()))
        optimizer.step(model)

    assert count("reads", lambda: [step() for _ in range(64)]) == 2  # the first step looks
    assert np.isfinite([host(loss) for loss in losses]).all()
    np.testing.assert_array_equal(host(model.params), before)
    with pytest.raises(nn.NonFiniteError, match="gradient"):
        step()
    np.testing.assert_array_equal(host(model.params), before)
