"""Which algorithm a convolution uses, and the times of the others; strided, grouped and other kinds; masks next to products.

usage: python benchmarks/convolutions.py [--rounds 9] [--out FILE]

One thread, float32, a shard of a few images that stays in the cache; forward and both gradients, the alternatives in turn,
medians of the rounds. The first table judges the rule in `nnlite/backend/winograd.py` and its constants.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from peers import setting

import nnlite as nn
from nnlite.backend import Memory, Window, get_backend, single_threaded_blas
from nnlite.backend.conv import ConvPlan
from nnlite.backend.cpu.winograd import TILES, WinogradPlan, best_tile

VALUES = 1 << 18  # of the larger of input and output of a shard
COLOURS = 3  # channels of an input image
LEAST_SECONDS = 0.01  # of a measurement

# (size, channels, filters, padding) of 3 x 3 convolutions of stride 1, most of them from `peers.py` and `nn.zoo`.
RULE = [
    (32, 3, 32, 0), (32, 3, 64, 1), (13, 32, 64, 0), (6, 64, 64, 0),
    (32, 16, 16, 1), (16, 32, 32, 1), (8, 64, 64, 1),
    (32, 64, 64, 1), (16, 64, 128, 1), (16, 128, 128, 1), (8, 128, 256, 1), (8, 256, 256, 1),
    (31, 24, 192, 1), (15, 192, 192, 1), (7, 192, 192, 1), (28, 1, 32, 0), (26, 32, 64, 0), (14, 8, 8, 1), (4, 512, 512, 1),
]  # fmt: skip

# Options beside 64 channels and 64 filters of 3 x 3 on 32 x 32 pixels.
KINDS = {
    "3 x 3": {"padding": 1},
    "3 x 3, stride 2": {"padding": 1, "stride": 2},
    "3 x 3, dilation 2": {"padding": 2, "dilation": 2},
    "1 x 1": {"kernel_size": 1},
    "1 x 1, stride 2": {"kernel_size": 1, "stride": 2},
    "5 x 5": {"kernel_size": 5, "padding": 2},
    "2 groups": {"padding": 1, "groups": 2},
    "8 groups": {"padding": 1, "groups": 8},
    "32 groups": {"padding": 1, "groups": 32},
    "depthwise": {"padding": 1, "groups": 64},
    "3 channels": {"padding": 1, "channels": 3},
    "1 channel": {"padding": 1, "channels": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    nn.set_num_threads(1)
    with single_threaded_blas:
        tables = [*rule(args.rounds), *kinds(args.rounds), *masks(args.rounds)]
    text = "\n".join(["# Convolutions on one thread", "", setting(), "", *tables])
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def rule(rounds: int) -> list[str]:
    """Microseconds an image of every algorithm, and what the rule's choice costs beyond the best."""
    lines = [
        "Microseconds an image, forward and both gradients; in brackets what the rule chooses. Regret: beyond the best.",
        "",
    ]
    lines += [row(["3 x 3", "direct", *(f"{m} x {m} tiles" for m in TILES), "regret"]), row([":--", *["--:"] * 5])]
    worst = 0.0
    for size, channels, filters, padding in RULE:
        window = Window.of((size, size, channels), 3, 1, padding)
        plans = {None: ConvPlan(get_backend("cpu"), window, filters, 1, True)}
        plans |= {m: WinogradPlan(get_backend("cpu"), window, filters, True, m, (1, 1)) for m in TILES}
        times = dict(zip(plans, medians([pass_of(plan) for plan in plans.values()], rounds), strict=True))
        chosen = best_tile(window, filters, (1, 1))
        regret = times[chosen] / min(times.values()) - 1
        worst = max(worst, regret)
        cells = [f"({1e6 * t:.0f})" if m == chosen else f"{1e6 * t:.0f}" for m, t in times.items()]
        lines.append(row([f"{size} x {size}, {channels} to {filters}", *cells, f"{regret:.0%}"]))
    return [*lines, "", f"Largest regret: {worst:.0%}.", ""]


def kinds(rounds: int) -> list[str]:
    """GFLOP/s of kinds of convolutions."""
    lines = [
        "GFLOP/s, counted as direct convolution, forward and both gradients; 64 filters on 32 x 32 pixels of 64 channels.",
        "",
    ]
    lines += [row(["kind", "GFLOP/s", "microseconds an image"]), row([":--", "--:", "--:"])]
    layers = []
    for options in KINDS.values():
        arguments = {"kernel_size": 3} | options
        conv = nn.Conv2D(64, **{k: v for k, v in arguments.items() if k != "channels"})
        nn.Sequential(conv, input_shape=(32, 32, arguments.get("channels", 64)))
        layers.append(conv)
    for name, conv, seconds in zip(KINDS, layers, medians([pass_of(c.plan) for c in layers], rounds), strict=True):
        lines.append(row([name, f"{3 * conv.flops() / seconds / 1e9:.1f}", f"{1e6 * seconds:.0f}"]))
    return [*lines, ""]


def masks(rounds: int) -> list[str]:
    """Dropout and augmentation, compared with the product that follows."""
    backend, rng = get_backend("cpu"), np.random.default_rng(0)
    a, W = rng.standard_normal((128, 512)).astype("float32"), rng.standard_normal((512, 512)).astype("float32")
    images = nn.data.Dataset(rng.integers(0, 256, (128, 32, 32, 3)).astype("uint8"), np.zeros(128, int))
    augmented = images.augmented(nn.data.RandomFlip(), nn.data.RandomCrop(4))
    net = nn.zoo.tutorial_cnn()
    works: list[tuple[Callable[[], object], int]] = [
        (lambda: backend.dropout_mask(0, (0, 1), 0, a.shape, 0.5, a.dtype), 1),
        (lambda: backend.matmul(a, W), 1),
        (lambda: next(iter(augmented.batches(128, epoch=1))), 1),
        (lambda: net.loss_and_grad(images.images, images.labels, nn.CrossEntropy()), 1),
    ]
    names = [
        "mask of Dropout, 128 x 512",
        "forward product of the Dense(512) behind it",
        "flips and crops of 128 images of CIFAR-10's size",
        "a training pass of the tutorial network on them",
    ]
    lines = [row(["what", "microseconds"]), row([":--", "--:"])]
    return lines + [row([name, f"{1e6 * seconds:.0f}"]) for name, seconds in zip(names, medians(works, rounds), strict=True)]


def pass_of(plan: ConvPlan) -> tuple[Callable[[], None], int]:
    """A training pass of a plan, and its number of images."""
    (h, w, c), rng = plan.window.in_shape, np.random.default_rng(0)
    n = max(1, VALUES // max(h * w * c, plan.positions * plan.filters))
    empty = plan.backend.empty_batch
    z, delta, a, da = (empty((n, *shape), "float32") for shape in (plan.out_shape, plan.out_shape, (h, w, c), (h, w, c)))
    if c <= COLOURS:  # input images have NumPy's usual order
        a = np.empty(a.shape, "float32")
    a[...], delta[...] = rng.standard_normal(a.shape), rng.standard_normal(delta.shape)
    W = rng.standard_normal((plan.filters, *plan.window.kernel, c // plan.groups)).astype("float32")
    b, memory = W[:, 0, 0, 0].copy(), Memory(plan.backend, swept=True)
    dW, db = np.empty_like(W), np.empty_like(b)
    filters = plan.prepare(W, b, Memory(plan.backend))

    def once() -> None:
        plan.forward(a, filters, memory, z)
        plan.weight_gradient(a, delta, memory, dW, db)
        plan.input_gradient(delta, filters, memory, da)

    return once, n


def medians(works: list[tuple[Callable[[], object], int]], rounds: int) -> list[float]:
    """Seconds a sample of each, measured in turn."""
    repeats = []
    for work, _ in works:
        work()
        start = time.perf_counter()
        work()
        repeats.append(max(1, round(LEAST_SECONDS / (time.perf_counter() - start))))
    measured: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for (work, n), repeat, seconds in zip(works, repeats, measured, strict=True):
            start = time.perf_counter()
            for _ in range(repeat):
                work()
            seconds.append((time.perf_counter() - start) / repeat / n)
    return [statistics.median(seconds) for seconds in measured]


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
