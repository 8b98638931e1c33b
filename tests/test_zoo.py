"""The networks of `nn.zoo`: their published sizes, a training step of each, and that they are saved and loaded."""

import numpy as np
import pytest

import nnlite as nn

rng = np.random.default_rng(0)
MAKERS = {
    "tutorial": nn.zoo.tutorial_cnn,
    "airbench": lambda **k: nn.zoo.airbench((8, 16, 16), **k),
    "airbench, padded, ReLU": lambda **k: nn.zoo.airbench((8, 16, 16), padding="same", activation=nn.ReLU, **k),
    "resnet": lambda **k: nn.zoo.resnet(8, **k),
    "resnet, as first published": lambda **k: nn.zoo.resnet(8, preactivation=False, **k),
    "resnet, option A": lambda **k: nn.zoo.resnet(8, preactivation=False, projection=False, **k),
    "vgg": lambda **k: nn.zoo.vgg_small((8, 16), **k),
}


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (nn.zoo.tutorial_cnn, 122_570),
        (lambda: nn.zoo.resnet(20), 272_282),
        (lambda: nn.zoo.resnet(32), 466_714),
        (lambda: nn.zoo.resnet(20, preactivation=False), 272_474),
        (lambda: nn.zoo.resnet(20, preactivation=False, projection=False), 269_722 + 16 * 32 + 32 * 64),
        (lambda: nn.zoo.imagenet_resnet(18), 11_689_512),
        (lambda: nn.zoo.imagenet_resnet(50, size=64), 25_557_032),
        (lambda: nn.zoo.airbench((64, 256, 256)), 1_971_640),
        (lambda: nn.zoo.airbench((24, 192, 192), padding="same"), 1_050_216),
        (lambda: nn.zoo.mlp((784, 512, 512, 10)), 669_706),
    ],
)
def test_sizes(model, parameters):
    assert len(model().params) == parameters


@pytest.mark.parametrize("name", MAKERS)
def test_every_image_network_trains_saves_and_loads(name, tmp_path):
    x, t = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), np.arange(12) % 4
    model = MAKERS[name](classes=4, seed=3)
    assert np.array_equal(model.params, MAKERS[name](classes=4, seed=3).params)
    assert not np.array_equal(model.params, MAKERS[name](classes=4, seed=4).params)
    optimizer, criterion = nn.Adam(5e-3), nn.CrossEntropy()
    losses = []
    for _ in range(20):
        losses.append(model.loss_and_grad(x, t, criterion))
        optimizer.step(model)
    assert losses[-1] < 0.7 * losses[0]
    model.save(tmp_path / "model.safetensors")
    assert np.array_equal(nn.load(tmp_path / "model.safetensors")(x), model(x))


@pytest.mark.parametrize(("padding", "sizes"), [("valid", [31, 15, 7, 3]), ("same", [32, 16, 8, 4])])
def test_sizes_of_images_in_airbench(padding, sizes):
    layers = nn.zoo.airbench((8, 16, 16), padding=padding).layers
    seen = [layers[1].out_shape, *(layer.out_shape for layer in layers if isinstance(layer, nn.MaxPool2D))]
    assert [shape[0] for shape in seen] == sizes


def test_mlp():
    model = nn.zoo.mlp((5, 8, 3), seed=1)
    assert model(np.zeros((2, 5))).shape == (2, 3)
    assert [type(layer).__name__ for layer in model.layers] == ["Dense", "ReLU", "Dense"]


def test_sizes_that_make_no_sense():
    for make in (
        lambda: nn.zoo.resnet(21),
        lambda: nn.zoo.resnet(2),
        lambda: nn.zoo.imagenet_resnet(20),
        lambda: nn.zoo.mlp((5,)),
    ):
        with pytest.raises(ValueError, match=r"depth|sizes"):
            make()
