"""What earlier versions wrote can still be read: a model, and a checkpoint in mid-epoch from which training goes on.

`files/first_version` was written on 2026-11-25, when an optimiser had one clock for all parameters: the model is the one that
the run of the checkpoint ended with.
"""

import shutil
from pathlib import Path

import numpy as np

import nnlite as nn

FILES = Path(__file__).parent / "files" / "first_version"


def make_model():
    return nn.Sequential(
        nn.Normalize((100.0, 120.0), 50.0),
        nn.Conv2D(4, 3, padding=1),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Residual(nn.Conv2D(4, 3, padding=1)),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Dense(3),
        input_shape=(6, 6, 2),
        seed=1,
    )


def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 6, 6, 2)).astype("uint8"), rng.integers(0, 3, 40)


def test_a_model():
    model = nn.load(FILES / "model.safetensors")
    assert repr(model) == repr(make_model()) and model[1].frozen == {"b"}
    assert np.isfinite(model(data()[0])).all()
    own = make_model()
    assert set(own.load_weights(FILES / "model.safetensors")) == {*own.named_params(), *own.named_buffers()}
    assert np.array_equal(own.params, model.params)


def test_a_checkpoint(tmp_path):
    """The optimiser's one clock is that of each parameter; callbacks, metrics, history and the epoch's counts go on."""
    shutil.copytree(FILES / "run", tmp_path / "run")
    (x, t), model = data(), make_model()
    model.freeze("1.b")
    average, stopping = nn.WeightAverage(0.9), nn.EarlyStopping("val_loss", patience=9, restore_best=False)
    optimizer = nn.Adam(nn.schedules.cosine(0.01, 20))
    trainer = nn.Trainer(model, nn.CrossEntropy(), optimizer, metrics=[nn.Accuracy()], callbacks=[average, stopping])
    settings = {"epochs": 4, "batch_size": 8, "validation": (x[:8], t[:8]), "progress": False}
    trainer.fit((x, t), **settings, checkpoint=tmp_path / "run", every=6, resume=True)
    assert trainer.steps == 20 and trainer.epochs == 4 and optimizer.steps == 20
    end = nn.load(FILES / "model.safetensors")
    np.testing.assert_allclose(model.params, end.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.buffers, end.buffers, rtol=1e-5, atol=1e-6)
