"""The defaults that users rely on, as the documents give them."""

import inspect

import pytest

import nnlite as nn

DEFAULTS = {
    nn.Dense: {"bias": True, "init": "he_normal"},
    nn.Embedding: {"init": "lecun_normal"},
    nn.Conv2D: {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": True, "init": "he_normal"},
    nn.MaxPool2D: {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False},
    nn.AvgPool2D: {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "count_padding": True},
    nn.LeakyReLU: {"slope": 0.01},
    nn.GELU: {"approximate": "none"},
    nn.BatchNorm: {"momentum": 0.9, "eps": 1e-5, "scale": True, "shift": True},
    nn.LayerNorm: {"eps": 1e-5, "scale": True, "shift": True},
    nn.Residual: {"shortcut": ()},
    nn.Sequential: {"input_shape": None, "seed": 0, "dtype": "float32"},
    nn.CrossEntropy: {"label_smoothing": 0.0, "class_weight": None, "ignore_index": None},
    nn.BinaryCrossEntropy: {"pos_weight": None, "class_weight": None},
    nn.Huber: {"threshold": 1.0},
    nn.SGD: {"learning_rate": 0.01, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "clip_norm": None},
    nn.Adam: {"learning_rate": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "clip_norm": None},
    nn.AdamW: {"learning_rate": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "clip_norm": None},
    nn.RMSProp: {"learning_rate": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": None},
    nn.Muon: {"learning_rate": 0.02, "momentum": 0.95, "nesterov": True, "weight_decay": 0.0, "renormalize": False,
              "iterations": 5, "clip_norm": None},
    nn.ParameterGroups: {"clip_norm": None},
    nn.schedules.step: {"factor": 0.1},
    nn.schedules.exponential: {"every": 1},
    nn.schedules.cosine: {"final": 0.0},
    nn.schedules.linear: {"final": 0.0},
    nn.schedules.warmup: {"start": 0.0},
    nn.init.whitening: {"eps": 5e-4},
    nn.TopK: {"k": 5, "ignore_index": None},
    nn.EarlyStopping: {"monitor": "val_loss", "patience": 3, "min_delta": 0.0, "mode": None, "restore_best": True},
    nn.WeightAverage: {"decay": 0.999, "start": 0},
    nn.data.RandomCrop: {"padding": 4, "mode": "zeros"},
    nn.data.Cutout: {"size": 8},
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_defaults(kind):
    parameters = inspect.signature(kind).parameters.values()
    assert {p.name: p.default for p in parameters if p.default is not p.empty} == DEFAULTS[kind]
