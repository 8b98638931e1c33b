"""Arrays may be anywhere in memory: strided, by columns, broadcast, on the host or on the device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_device import close, each_case, everything, few, host, lies_on_device, pictures, small_cnn
from test_layers import draw_batch, draw_model

import nnlite as nn
from nnlite.backend import get_backend

pytestmark = pytest.mark.usefixtures("cuda")


def variants(array):
    """The same values in other places of memory: on the device strided, by columns, and broadcast where they may be."""
    device = get_backend("cuda").asarray
    yield device(np.repeat(array, 2, axis=0))[::2]
    yield device(np.asfortranarray(array))
    yield np.asfortranarray(array)
    yield device(np.repeat(array, 2, axis=-1))[..., ::2]


def test_targets_in_any_place_of_memory():
    z, t = np.random.default_rng(0).standard_normal((6, 3)).astype("float32"), np.arange(6) % 3
    expected, delta = nn.CrossEntropy()(z, t)
    on_device = get_backend("cuda").asarray
    table = on_device(np.stack([t, t], axis=1))
    for labels in (table[:, 0], on_device(np.repeat(t, 2))[::2], table[:, :1]):
        ours = nn.CrossEntropy()(on_device(z), labels)
        close(ours[0], expected, "float32"), close(ours[1], delta, "float32")
    for logits in variants(z):
        if lies_on_device(logits):
            close(nn.CrossEntropy()(logits, t)[1], delta, "float32")


@each_case
@few
@given(data=st.data())
def test_inputs_and_deltas_in_any_place_of_memory(case, data):
    model, _ = draw_model(data, case, "float32")
    x, delta = draw_batch(data, model)
    model.to("cuda")
    before = model.snapshot()
    expected = [host(v).copy() for v in everything(model, x, delta)]
    for a, d in zip(variants(x), variants(delta), strict=True):
        model.restore(before)
        for ours, wanted in zip(everything(model, a, d), expected, strict=True):
            close(ours, wanted, "float32")


@pytest.mark.parametrize("layer", [nn.ReLU, nn.BatchNorm, lambda: nn.Conv2D(2, 3), lambda: nn.MaxPool2D(2), nn.LayerNorm])
def test_a_broadcast_delta(layer):
    model = nn.Sequential(layer(), input_shape=(4, 4, 2)).to("cuda")
    x = np.random.default_rng(0).standard_normal((3, 4, 4, 2)).astype("float32")
    z = model.forward(x, training=True, pass_id=1)
    expected = host(model.backward(np.ones(z.shape, "float32"))).copy()
    model.forward(x, training=True, pass_id=1)
    one = model.backend.xp.broadcast_to(model.backend.asarray(np.ones(1, "float32")), z.shape)
    np.testing.assert_array_equal(host(model.backward(one)), expected)


def test_validation_on_both_sides():
    """Targets and weights are checked by the model's backend, wherever each of them is."""
    x, t, on_device = pictures(7).images, pictures(7).labels, get_backend("cuda").asarray
    histories = []
    for w in (np.ones(7), on_device(np.ones(7))):
        trainer = nn.Trainer(small_cnn().to("cuda"), nn.CrossEntropy(), nn.SGD(0.1))
        histories.append(trainer.fit([(x, t)], validation=[(x, t, w)], progress=False)["val_loss"])
    assert histories[0] == histories[1]
    trainer = nn.Trainer(small_cnn(), nn.CrossEntropy(), nn.SGD(0.1))
    with pytest.raises(nn.DeviceError, match="move one of them"):
        trainer.fit([(x, t)], validation=[(x, on_device(t))], progress=False)
    assert trainer.steps == 0


def test_a_prediction_for_what_is_on_the_device():
    trainer = nn.Trainer(small_cnn().to("cuda"), nn.CrossEntropy(), nn.SGD(0.1))
    x = pictures(7).images
    for augment in ((), nn.data.views(), nn.data.views(1)):
        ours = trainer.predict(get_backend("cuda").asarray(x), augment=augment)
        np.testing.assert_array_equal(ours, trainer.predict(x, augment=augment))
