"""How `cifar10.py --model ...` trains each model: everything preset."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import nnlite as nn

linear = nn.schedules.linear


class Recipe(NamedTuple):
    """A model and all that training it needs.

    model: seed -> model     optimizer: (model, recipe, steps an epoch) -> optimizer
    prepare: called with model and images before training     views: for the second test accuracy, averaged over them
    """

    model: Callable[[int], nn.Sequential]
    epochs: int
    batch_size: int
    optimizer: Callable[[nn.Sequential, "Recipe", int], Any]
    loss: nn.Loss = nn.CrossEntropy()
    augmentations: Sequence[nn.data.Augmentation] = ()
    views: Sequence[Callable[[Any], Any]] = ()
    callbacks: Sequence[nn.Callback] = ()
    prepare: Callable[[nn.Sequential, Any], None] = lambda model, images: None


def adam(model: nn.Sequential, recipe: Recipe, steps: int) -> nn.Adam:
    return nn.Adam(1e-3)


def one_cycle(model: nn.Sequential, recipe: Recipe, steps: int) -> nn.SGD:
    """SGD with Nesterov momentum: one epoch of warm-up, then a cosine to zero."""
    schedule = nn.schedules.warmup(nn.schedules.cosine(0.1, max(1, (recipe.epochs - 1) * steps)), steps)
    return nn.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=5e-4)


class Airbench(NamedTuple):
    """The optimiser of Jordan 2024: Muon for the filters, Nesterov SGD for biases and head, all rates linear to zero.

    Rates of biases and head are, as published, those for the loss summed over a batch; for its mean they are as many times
    larger as the batch has samples.
    """

    filters: float = 0.24
    biases: float = 0.053
    head: float = 0.67
    weight_decay: float = 2e-6
    whitening_epochs: int = 3

    def __call__(self, model: nn.Sequential, recipe: Recipe, steps: int) -> nn.ParameterGroups:
        total = steps * recipe.epochs

        def sgd(rate: float, steps: int) -> nn.SGD:
            schedule = linear(rate * recipe.batch_size, steps)
            return nn.SGD(schedule, momentum=0.85, nesterov=True, weight_decay=self.weight_decay / rate)

        head = f"{len(model) - 1}.W"
        return nn.ParameterGroups(
            {
                "1.b": sgd(self.biases, steps * self.whitening_epochs),
                "*.beta": sgd(self.biases, total),
                head: sgd(self.head, total),
                "*.W": nn.Muon(linear(self.filters, total), momentum=0.6, renormalize=True, iterations=3),
            }
        )


class FreezeAfter(nn.Callback):
    """Train the parameters of this pattern for `epochs` epochs only; the layers before them then need no backward pass."""

    def __init__(self, epochs: int, pattern: str) -> None:
        self.epochs, self.pattern = epochs, pattern

    def on_epoch_end(self, trainer: nn.Trainer, row: Any) -> None:
        if trainer.epochs == self.epochs:
            trainer.model.freeze(self.pattern)


def whiten(model: nn.Sequential, images: Any) -> None:
    """Give the first convolution the filters that whiten the patches of 5,000 images, and freeze them."""
    normalized = (images[:5000] - np.array(nn.zoo.CIFAR_MEAN)) / np.array(nn.zoo.CIFAR_STD)
    model[1].W = nn.init.whitening(normalized)(model[1].W.shape)
    model.freeze("1.W")


def airbench(
    widths: tuple[int, int, int],
    epochs: int,
    batch_size: int,
    filters: float,
    shift: int = 0,
    **options: Any,
) -> Recipe:
    """Jordan's recipe; `options` go to `nn.zoo.airbench`."""
    return Recipe(
        lambda seed: nn.zoo.airbench(widths, seed=seed, **options),
        epochs,
        batch_size,
        Airbench(filters),
        nn.CrossEntropy(label_smoothing=0.2),
        (nn.data.AlternatingFlip(), nn.data.RandomCrop(2, mode="reflect")),
        nn.data.views(shift),
        (FreezeAfter(Airbench().whitening_epochs, "1.b"),),
        whiten,
    )


FLIP_AND_CROP = (nn.data.RandomFlip(), nn.data.RandomCrop(4))
RECIPES = {
    "tutorial": Recipe(lambda seed: nn.zoo.tutorial_cnn(seed=seed), 10, 32, adam),
    "resnet20": Recipe(lambda seed: nn.zoo.resnet(20, seed=seed), 30, 128, one_cycle, augmentations=FLIP_AND_CROP),
    "vgg": Recipe(lambda seed: nn.zoo.vgg_small(seed=seed), 15, 128, one_cycle, augmentations=FLIP_AND_CROP),
    "fast90": airbench((24, 192, 192), epochs=5, batch_size=500, filters=0.17, activation=nn.ReLU),
    "fast94": airbench((64, 256, 256), epochs=9, batch_size=1000, filters=0.24, shift=1),
}


def fit(
    recipe: Recipe, trainer: nn.Trainer, train: nn.data.Dataset, validation: Any = None, seed: int = 0, **options: Any
) -> nn.History:
    """Prepare the model and train it as the recipe says."""
    recipe.prepare(trainer.model, train.images)
    augmented = train.augmented(*recipe.augmentations)
    return trainer.fit(augmented, recipe.epochs, recipe.batch_size, validation=validation, seed=seed, **options)


def make_trainer(recipe: Recipe, samples: int, seed: int, device: str = "cpu", communicator: Any = None) -> nn.Trainer:
    """The recipe's model, loss and optimiser."""
    model = recipe.model(seed).to(device)
    optimizer = recipe.optimizer(model, recipe, math.ceil(samples / recipe.batch_size))
    return nn.Trainer(
        model, recipe.loss, optimizer, metrics=[nn.Accuracy()], callbacks=recipe.callbacks, communicator=communicator
    )
