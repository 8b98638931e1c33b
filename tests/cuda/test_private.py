"""Private training on a device: the results of the CPU."""

import numpy as np
import pytest

import nnlite as nn
from nnlite.privacy import PrivateTrainer


def trained(device):
    model = nn.Sequential(
        nn.Conv2D(4, 3), nn.GroupNorm(2), nn.Tanh(), nn.Flatten(), nn.Dropout(0.2), nn.Dense(3), input_shape=(6, 6, 2)
    )
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((40, 6, 6, 2)).astype("float32"), rng.integers(0, 3, 40)
    arguments = {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3, "seed": 0, "metrics": [nn.Accuracy()]}
    trainer = PrivateTrainer(model.to(device), nn.CrossEntropy(), nn.SGD(0.5), **arguments)
    trainer.fit((x, t), 2, 2, progress=False)  # a batch in seven is empty
    return trainer


def test_private_training(cuda, monkeypatch):
    monkeypatch.setattr("nnlite.privacy.trainer.need_accounting", lambda: None)
    here, there = trained("cpu"), trained("cuda")
    to_host = there.model.backend.to_host
    np.testing.assert_allclose(to_host(there.model.params), here.model.params, atol=1e-5)
    assert there.history["loss"] == pytest.approx(here.history["loss"], abs=1e-5)
    assert there.history["accuracy"] == here.history["accuracy"] and there.ledger.spent == here.ledger.spent
