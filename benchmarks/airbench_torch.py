"""The airbench recipes of examples/recipes.py in PyTorch, eager, channels_last: the same network, batches and optimisers."""

import math
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn as tnn

import nnlite as nn


class Group(tnn.Module):
    """conv - max-pool - batch norm - activation - conv - batch norm - activation."""

    def __init__(self, channels: int, width: int, activation: Any) -> None:
        super().__init__()
        self.activation = activation
        self.convolutions = tnn.ModuleList([tnn.Conv2d(c, width, 3, padding=1, bias=False) for c in (channels, width)])
        self.norms = tnn.ModuleList([tnn.BatchNorm2d(width, eps=1e-12, momentum=0.4) for _ in range(2)])
        for norm in self.norms:
            norm.weight.requires_grad_(False)
        for convolution in self.convolutions:
            tnn.init.dirac_(convolution.weight.data[: convolution.weight.shape[1]])

    def forward(self, a: Any) -> Any:
        a = self.activation(self.norms[0](F.max_pool2d(self.convolutions[0](a), 2)))
        return self.activation(self.norms[1](self.convolutions[1](a)))


class Airbench(tnn.Module):
    def __init__(self, widths: list[int], whitening: Any, padding: str, activation: Any) -> None:
        super().__init__()
        self.activation = activation
        self.whiten = tnn.Conv2d(3, 24, 2, padding=padding)
        self.whiten.weight.data = torch.from_numpy(np.ascontiguousarray(whitening.transpose(0, 3, 1, 2))).float()
        self.whiten.weight.requires_grad_(False)
        self.whiten.bias.data.zero_()
        self.groups = tnn.ModuleList([Group(c, w, activation) for c, w in zip([24, *widths[:-1]], widths, strict=True)])
        self.head = tnn.Linear(widths[-1], 10, bias=False)
        self.register_buffer("mean", torch.tensor(nn.zoo.CIFAR_MEAN))
        self.register_buffer("std", torch.tensor(nn.zoo.CIFAR_STD))

    def forward(self, images: Any) -> Any:
        """images: (N, H, W, C), bytes; seen as channels_last (N, C, H, W)."""
        a = ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)
        a = self.activation(self.whiten(a))
        for group in self.groups:
            a = group(a)
        a = F.adaptive_max_pool2d(a, 1).flatten(1)
        return self.head(a / a.shape[1])


class Muon(torch.optim.Optimizer):
    """As `nn.Muon(momentum=0.6, renormalize=True, iterations=3)`."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                v = self.state[p].setdefault("v", torch.zeros_like(p))
                v.mul_(0.6).add_(p.grad)
                step = orthogonalize(p.grad.add(v, alpha=0.6).reshape(len(p), -1))
                p.mul_(len(p) ** 0.5 / p.norm())
                p.add_(step.view(p.shape), alpha=-group["lr"])


def orthogonalize(M: Any) -> Any:
    X = M / (M.norm() + 1e-7)
    if len(X) > X.shape[1]:
        X = X.T
    for _ in range(3):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.T if len(M) > M.shape[1] else X


def train_airbench(recipe: Any, train: Any, test: Any, seed: int) -> dict[str, Any]:
    """Train and test; seconds of training, whitening included."""
    torch.manual_seed(seed)
    template, settings = recipe.model(seed), recipe.optimizer
    widths = [layer.filters for layer in template.layers if isinstance(layer, nn.Conv2D)][1::2]
    start = time.perf_counter()
    recipe.prepare(template, train.images)
    activation = tnn.ReLU(inplace=True) if isinstance(template[2], nn.ReLU) else tnn.GELU("tanh")
    model = Airbench(widths, template[1].W, template[1].padding, activation).to(memory_format=torch.channels_last)
    steps = math.ceil(len(train) / recipe.batch_size)
    total, batch = steps * recipe.epochs, recipe.batch_size
    norms = [norm.bias for group in model.groups for norm in group.norms]
    sgd = torch.optim.SGD(
        [sgd_group([model.whiten.bias], settings.biases, settings, batch),
         sgd_group(norms, settings.biases, settings, batch),
         sgd_group([model.head.weight], settings.head, settings, batch)],
        momentum=0.85, nesterov=True,
    )  # fmt: skip
    muon = Muon([convolution.weight for group in model.groups for convolution in group.convolutions], settings.filters)
    ends = [(sgd.param_groups[0], steps * settings.whitening_epochs)]
    ends += [(group, total) for group in (*sgd.param_groups[1:], *muon.param_groups)]
    rates = [group["lr"] for group, _ in ends]
    augmented = train.augmented(*recipe.augmentations)
    step = 0
    for epoch in range(recipe.epochs):
        if epoch == settings.whitening_epochs:
            model.whiten.bias.requires_grad_(False)
        for x, t in augmented.batches(batch, epoch=epoch, seed=seed):
            for (group, end), rate in zip(ends, rates, strict=True):
                group["lr"] = rate * max(0.0, 1 - step / end)
            loss = F.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(t.astype(np.int64)), label_smoothing=0.2)
            model.zero_grad(set_to_none=True)
            loss.backward()
            sgd.step()
            muon.step()
            step += 1
    seconds = time.perf_counter() - start
    model.eval()
    results = {"epochs": recipe.epochs, "seconds": round(seconds, 1)}
    for key, views in (("accuracy", [lambda images: images]), ("accuracy_tta", recipe.views)):
        hits = predict(model, test.images, views).argmax(axis=1) == test.labels
        results[key] = float(hits.mean())
    return results


def sgd_group(parameters: Any, rate: float, settings: Any, batch: int) -> dict[str, Any]:
    return {"params": parameters, "lr": rate * batch, "weight_decay": settings.weight_decay / rate}


@torch.no_grad()
def predict(model: Any, images: Any, views: Any) -> Any:
    parts = [images[start : start + 1000] for start in range(0, len(images), 1000)]
    return np.concatenate(
        [sum(model(torch.from_numpy(np.ascontiguousarray(v(part)))) for v in views).numpy() for part in parts]
    )
