"""One line `name hash` for each result that must have the same bits on every processor: see `checks/processors.py`.

usage: python checks/bits.py [--threads N] [PART ...]      a PART is layers, operations, values or training; default: all

All go through nnlite itself, on ragged shapes: tails of every vector width. Inputs are drawn as integers.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import nnlite as nn
from nnlite.backend import FRAME
from nnlite.backend.choice import cpu_backend
from nnlite.backend.native.operations import kernels

ROOT = Path(__file__).resolve().parent.parent
DTYPES = ("float32", "float64")
CHANNELS = (1, 3, 15, 16, 17, 35, 64, 70)
ROWS = (1, 2, 33, 129, 700)
STEPS = 50
FUNCTIONS = "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf"
SPECIAL = (0.0, -0.0, 1e-42, -1e-42, 1e-30, 88.5, -88.5, 110.0, -110.0, 1e30, -1e30, np.inf, -np.inf, np.nan)
Line = tuple[str, str]


def numbers(shape: Any, dtype: str, seed: int = 0, most: float = 2.0) -> Any:
    """Multiples of most / 2^20 from -most to most."""
    whole = np.random.default_rng(seed).integers(-(1 << 20), 1 << 20, shape)
    return (whole * (most / (1 << 20))).astype(dtype)


def digest(*arrays: Any) -> str:
    """Of dtypes, shapes and bits; a NaN is a NaN whatever its bits are, which differ between processors."""
    result = hashlib.sha256()
    for array in map(np.array, arrays):
        if array.dtype.kind == "f":
            array[np.isnan(array)] = np.nan
        result.update(f"{array.dtype.str} {array.shape}".encode() + array.tobytes())
    return result.hexdigest()[:16]


# ---- layers


def windows() -> Iterator[tuple[str, Callable[[], list[nn.Layer]], tuple[int, ...]]]:
    """Convolutions and poolings: (name, layers, shape of a sample)."""
    conv = [
        ((9, 11, 5), 7, {"kernel_size": 3}),
        ((9, 11, 5), 7, {"kernel_size": 3, "padding": 1}),
        ((32, 32, 3), 16, {"kernel_size": 3, "padding": 1}),
        ((8, 8, 64), 64, {"kernel_size": 3, "padding": 1}),
        ((7, 10, 17), 33, {"kernel_size": 3, "padding": ((0, 1), (2, 0))}),
        ((4, 4, 130), 20, {"kernel_size": 3}),
        ((10, 5, 33), 17, {"kernel_size": 3, "padding": 1}),
        ((12, 18, 40), 17, {"kernel_size": 3, "padding": 1}),
        ((7, 14, 19), 34, {"kernel_size": 3, "padding": 1}),
        ((9, 9, 3), 24, {"kernel_size": 2}),
        ((12, 11, 6), 10, {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((13, 12, 1), 5, {"kernel_size": 7, "padding": 3}),
        ((14, 13, 19), 18, {"kernel_size": 5, "stride": (2, 3), "padding": 2}),
        ((14, 13, 4), 21, {"kernel_size": 3, "dilation": 2, "padding": "same"}),
        ((17, 16, 35), 34, {"kernel_size": 5, "stride": 2, "padding": 2}),
        ((17, 16, 18), 34, {"kernel_size": 7, "padding": 3}),
        ((16, 17, 18), 33, {"kernel_size": 3, "dilation": 2, "padding": 2}),
        ((9, 8, 12), 18, {"kernel_size": 3, "groups": 3, "padding": 1}),
        ((10, 9, 35), 35, {"kernel_size": 3, "groups": 35, "padding": 1}),
        ((10, 9, 5), 5, {"kernel_size": (5, 3), "groups": 5, "stride": 2, "bias": False}),
        ((6, 7, 37), 21, {"kernel_size": 1}),
        ((6, 7, 16), 40, {"kernel_size": 1, "stride": 2, "bias": False}),
    ]
    for shape, filters, options in conv:
        yield f"Conv2D {filters} {options}", lambda f=filters, o=options: [nn.Conv2D(f, **o)], shape
        if options["kernel_size"] == 3:
            name = f"Conv2D {filters} {options} ReLU MaxPool2D"
            yield name, lambda f=filters, o=options: [nn.Conv2D(f, **o), nn.ReLU(), nn.MaxPool2D(2)], shape
    pools = [
        {"size": 2},
        {"size": 3, "stride": 2, "padding": 1},
        {"size": (2, 3), "stride": (3, 1), "dilation": 2},
        {"size": 5, "stride": 1, "padding": 2, "ceil_mode": True},
        {"size": 9},
    ]
    for kind, options, channels in product((nn.MaxPool2D, nn.AvgPool2D), pools, (1, 17, 64)):
        yield f"{kind.__name__} {options}", lambda k=kind, o=options: [k(**o)], (13, 12, channels)
    yield "MaxPool2D 17", lambda: [nn.MaxPool2D(17)], (35, 34, 5)
    yield "AvgPool2D padding", lambda: [nn.AvgPool2D(3, padding=1, count_padding=False)], (7, 8, 5)
    yield "DepthwiseConv2D", lambda: [nn.DepthwiseConv2D(3, multiplier=2, padding="same")], (7, 8, 5)
    yield "Conv1D", lambda: [nn.Conv1D(18, 3, padding="same")], (29, 5)
    yield "pools of sequences", lambda: [nn.MaxPool1D(3, stride=2, padding=1), nn.AvgPool1D(2)], (29, 5)
    for channels in (1, 17, 64):
        yield "GlobalMaxPool1D", lambda: [nn.GlobalMaxPool1D()], (29, channels)


def others() -> Iterator[tuple[str, Callable[[], list[nn.Layer]], tuple[int, ...]]]:
    """All other layers."""
    every: list[Callable[[], nn.Layer]] = [
        nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Softplus, nn.Softmax, nn.GELU,
        partial(nn.PReLU, shared=True),
        partial(nn.GELU, "tanh"), partial(nn.LeakyReLU, 0.3), nn.BatchNorm, partial(nn.BatchNorm, scale=False, eps=1e-12),
        nn.LayerNorm, partial(nn.Dropout, 0.3), partial(nn.Normalize, 1.5, 3.0),
    ]  # fmt: skip
    for make, channels in product(every, (1, 15, 16, 70)):
        yield repr(make()), lambda m=make: [m()], (channels,)
        yield repr(make()), lambda m=make: [m()], (5, 7, channels)
    for make in (nn.GlobalAvgPool2D, nn.GlobalMaxPool2D, partial(nn.SpatialDropout2D, 0.3), partial(nn.Upsample2D, (2, 3))):
        yield repr(make()), lambda m=make: [m()], (5, 7, 19)
    yield "Upsample2D bilinear", lambda: [nn.Upsample2D(2, mode="bilinear")], (5, 7, 19)
    for groups, shape in ((3, (5, 7, 18)), (2, (5, 7, 4)), (5, (70,)), (70, (3, 70)), (1, (9, 9, 1))):
        yield f"GroupNorm {groups}", lambda g=groups: [nn.GroupNorm(g)], shape
    yield "LayerNorm of many", lambda: [nn.LayerNorm()], (1100,)
    for inputs, units in product((1, 5, 130), (1, 3, 16, 35)):
        yield f"Dense {units}", lambda u=units: [nn.Dense(u)], (inputs,)
    yield "Dense wide", lambda: [nn.Dense(600), nn.ReLU(), nn.Dense(300)], (700,)
    yield "Residual", lambda: [nn.Residual(nn.BatchNorm(), nn.ReLU(), nn.Conv2D(6, 3, padding=1))], (8, 8, 6)
    yield "Concat", lambda: [nn.Concat([], nn.Conv2D(5, 1), [nn.BatchNorm(), nn.Tanh()])], (6, 5, 4)
    for ids, dim, shape in ((1, 1, (3,)), (7, 17, (29,)), (300, 35, (4, 9))):
        yield f"Embedding {ids} {dim}", lambda n=ids, d=dim: [nn.Embedding(n, d)], shape
    yield "Embedding, Conv1D", lambda: [nn.Embedding(40, 19), nn.Conv1D(35, 3, padding="same"), nn.GlobalMaxPool1D()], (21,)
    yield "Reshape", lambda: [nn.Reshape((5, 7, -1)), nn.Flatten()], (105,)


def passes(layers: list[nn.Layer], shape: tuple[int, ...], dtype: str, n: int) -> str:
    """Of a training pass, its gradients and kept values, and of inference afterwards."""
    model = nn.Sequential(*layers, input_shape=shape, dtype=dtype)
    model.params[...] = numbers(model.params.shape, dtype, 1, 0.5)
    x = numbers((n, *shape), dtype, 2)
    if model.plan.takes_integers:
        x = np.random.default_rng(2).integers(0, model[0].n, x.shape)
    z = np.array(model.forward(x, training=True))
    dx = np.array(model.backward(numbers(z.shape, dtype, 3)))
    return digest(z, dx, model.grads, model.buffers, model(x))


def layers() -> Iterator[Line]:
    for dtype in DTYPES:
        for algorithm in ("auto", "winograd", "direct"):
            nn.set_conv_algorithm(algorithm)
            for name, make, shape in windows():
                if algorithm == "auto" or "'kernel_size': 3" in name:
                    yield f"{dtype} {algorithm} {name} of {shape}", passes(make(), shape, dtype, 3)
        nn.set_conv_algorithm("auto")
        for (name, make, shape), n in product(others(), (1, 37)):
            yield f"{dtype} {name} of {(n, *shape)}", passes(make(), shape, dtype, n)
        for name, make, shape in others():
            if shape == (15,) and "Norm" not in name and "Softmax" not in name:
                yield f"{dtype} {name} of special values", special(make(), dtype)


def special(layers: list[nn.Layer], dtype: str) -> str:
    """Of values where functions end: denormal, large, infinite, NaN; and of a fine grid."""
    model = nn.Sequential(*layers, input_shape=(15,), dtype=dtype)
    x = np.concatenate([np.array(SPECIAL), np.arange(-8192, 8192) / 300.0, np.arange(2) * 0])[: 15 * 1093]
    x = x.reshape(-1, 15).astype(dtype)
    with np.errstate(all="ignore"):
        z = np.array(model.forward(x, training=True))
        return digest(z, model.backward(numbers(z.shape, dtype, 3)))


# ---- operations, losses, updates


def operations() -> Iterator[Line]:
    backend = cpu_backend()
    for dtype in DTYPES:
        for rows, channels in product(ROWS, CHANNELS):
            a, b = numbers((rows, channels), dtype), numbers((rows, channels), dtype, 1)
            rest = backend.row_means(a), *backend.moments(a), *backend.moments(a + 1000), backend.norm(a.ravel())
            sums = backend.column_sums(a), backend.column_products(a, b), backend.all_finite(a)
            yield f"{dtype} sums of {(rows, channels)}", digest(*sums, *rest, backend.pixel_sums(a[None, :, None]))
            backend.lerp(a, b, 0.1)
            yield f"{dtype} lerp of {(rows, channels)}", digest(a)
            backend.add_bias(a, b[0], True)
            yield f"{dtype} bias of {(rows, channels)}", digest(a)
        words = np.random.default_rng(0).integers(0, 1 << 8 * np.dtype(dtype).itemsize, 50_001, "uint64")
        anything = words.astype(f"uint{8 * np.dtype(dtype).itemsize}").view(dtype)
        for name, a in product(("exp", "expm1", "log", "log1p", "tanh", "erf"), (anything, numbers(30_001, dtype, 0, 90.0))):
            with np.errstate(all="ignore"):
                yield f"{dtype} {name} of {len(a)}", digest(getattr(backend, name)(a))
        for rows, channels in product((1, 341, 700), (1, 3, 70, 1500)):
            a, out = np.arange(rows * channels).astype("uint8").reshape(rows, channels), np.empty((rows, channels), dtype)
            backend.standardize(a, -100 * numbers(channels, dtype), numbers(channels, dtype, 1), out)
            yield f"{dtype} bytes of {(rows, channels)}", digest(out)
        for m, k, n in ((1, 1, 1), (3, 5, 7), (17, 130, 33), (65, 700, 16), (128, 300, 70), (5, 9000, 3)):
            a, b, c = numbers((m, k), dtype), numbers((k, n), dtype, 1), numbers((k, m), dtype, 2)
            stack = backend.matmul(np.stack([a, -a]), np.stack([b, b]))
            products = backend.matmul(a, b), backend.product(a, b, None), backend.product_of_rows(c, b, None)
            yield f"{dtype} products of {(m, k, n)}", digest(*products, backend.matmul_rows(c, b), stack)
        grid = np.concatenate([np.array(SPECIAL), np.arange(-8191, 8192) / 300.0]).astype(dtype)
        for name in FUNCTIONS:
            with np.errstate(all="ignore"):
                yield f"{dtype} {name}", digest(getattr(backend, name)(grid))
        for classes, rows in product((2, 3, 10, 100), (1, 5, 64)):
            yield from losses(dtype, rows, classes)
        for name, make in optimizers():
            yield f"{dtype} {name}", updates(make(), dtype)
    for dtype, size in product(("uint8", *DTYPES), ((1, 1, 1), (5, 33, 3), (9, 8, 4), (6, 7, 17))):
        yield f"{dtype} pictures of {size}", pictures(dtype, size)


def pictures(dtype: str, size: tuple[int, int, int]) -> str:
    """Of images of this size, moved, mirrored and partly hidden, with zeros or their reflections around them."""
    rng, (height, width, _) = np.random.default_rng(0), size
    images, frames = rng.integers(0, 256, (7, *size)).astype(dtype), np.zeros(20, FRAME)
    for name, most in (("image", 7), ("top", height), ("left", width), ("mirrored", 2)):
        frames[name] = rng.integers(0, most, 20)
    for axis, most in (("row", height), ("column", width)):
        frames[f"first_{axis}"], frames[f"end_{axis}"] = np.sort(rng.integers(0, most + 1, (2, 20)), axis=0)
    frames["top"][::2] *= -1
    frames["left"][::3] *= -1
    return digest(*(cpu_backend().framed(images, frames, reflect) for reflect in (False, True)))


def losses(dtype: str, rows: int, classes: int) -> Iterator[Line]:
    """Of each loss: J and dJ/dz, for labels, probabilities and weights."""
    z, labels = numbers((rows, classes), dtype, 0, 20.0), np.random.default_rng(1).integers(0, classes, rows)
    weights, q = abs(numbers(rows, "float64", 2)) + 0.25, abs(numbers((rows, classes), dtype, 3)) + 0.01
    smooth, weighted = nn.CrossEntropy(label_smoothing=0.2), nn.CrossEntropy(class_weight=[1.5, *[0.5] * (classes - 1)])
    for loss, t in ((nn.CrossEntropy(), labels), (smooth, labels), (weighted, labels), (nn.CrossEntropy(), q / 64)):
        yield f"{dtype} {loss!r} {t.dtype} of {z.shape}", digest(*loss(z, t), *loss(z, t, weights))
    weighed = nn.BinaryCrossEntropy(pos_weight=[3.0] * classes), nn.BinaryCrossEntropy(pos_weight=2.5, class_weight=(0.3, 1.7))
    for loss in (nn.BinaryCrossEntropy(), *weighed, nn.MSE(), nn.MAE(), nn.Huber()):
        yield f"{dtype} {loss!r} of {z.shape}", digest(*loss(z, q / 4), *loss(z, q / 4, weights))


def optimizers() -> Iterator[tuple[str, Callable[[], nn.Optimizer]]]:
    every: list[tuple[type[nn.Optimizer], dict[str, Any]]] = [
        (nn.SGD, {}), (nn.SGD, {"momentum": 0.9}), (nn.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
        (nn.Adam, {}), (nn.Adam, {"weight_decay": 0.01, "clip_norm": 0.5}), (nn.AdamW, {"weight_decay": 0.01}),
        (nn.RMSProp, {}), (nn.RMSProp, {"alpha": 0.9}), (nn.Muon, {}), (nn.Muon, {"renormalize": True, "iterations": 3}),
    ]  # fmt: skip
    for kind, options in every:
        yield f"{kind.__name__} {options}", lambda k=kind, o=options: k(0.01, **o)


def updates(optimizer: nn.Optimizer, dtype: str) -> str:
    """Of 20 updates by gradients of a network with matrices only, some of them tiny."""
    model = nn.Sequential(nn.Dense(19, bias=False), nn.Dense(33, bias=False), input_shape=(7,), dtype=dtype)
    model.params[...] = numbers(model.params.shape, dtype)
    for step in range(20):
        model.grads[...] = numbers(model.grads.shape, dtype, step) * np.asarray(2.0 ** (-3 * step), dtype)
        optimizer.step(model)
    return digest(model.params)


# ---- values: initial ones, rates, augmented images


def values() -> Iterator[Line]:
    shapes = (33, 17), (20, 3, 3, 8), (7, 2, 2, 3)
    for name, shape in product(nn.init._NAMED, shapes):
        if "dirac" not in name or len(shape) == 4:
            yield f"init {name} {shape}", digest(nn.init.initial_values(3)(name, shape))
    images = nn.data.shapes(n=64, seed=5).train.images
    yield "init whitening", digest(nn.init.whitening(images / 64.0)((24, 2, 2, 3)))
    yield "data shapes", digest(images, nn.data.shapes(n=300, seed=0).test.images)
    s = nn.schedules
    rates = [s.step(0.1, 7), s.exponential(0.1, 0.93), s.cosine(0.3, 97, final=1e-3), s.linear(0.2, 41)]
    for rate in (*rates, s.warmup(s.cosine(0.1, 83), 11)):
        yield f"schedule {type(rate).__name__}", digest([rate(step) for step in range(120)])
    d = nn.data
    kinds = d.RandomFlip(), d.AlternatingFlip(), d.RandomCrop(4), d.RandomCrop(2, mode="reflect"), d.Cutout(9)
    for kind, dtype in product(kinds, ("uint8", "float32")):
        augmented = [kind(images.astype(dtype), np.arange(64), epoch, 7) for epoch in range(3)]
        yield f"{dtype} augmentation {type(kind).__name__} {vars(kind)}", digest(*augmented)
    yield "views", digest(*(view(images) for view in d.views(1)))


# ---- training


def networks() -> Iterator[tuple[str, nn.Sequential, int]]:
    """(name, network with dropout, samples in a batch); few and narrow enough for an emulated processor."""
    for dtype in DTYPES:
        mlp = nn.Dense(65), nn.ReLU(), nn.Dropout(0.25), nn.Dense(33), nn.Tanh(), nn.Dense(10)
        yield f"{dtype} MLP", nn.Sequential(nn.Flatten(), nn.Normalize(120, 60), *mlp, input_shape=(32, 32, 3), dtype=dtype), 24
    zoo = nn.zoo.tutorial_cnn(), nn.zoo.resnet(20), nn.zoo.airbench((16, 35, 32))
    for name, network, batch in zip(("tutorial CNN", "ResNet-20", "airbench"), zoo, (8, 4, 6), strict=True):
        yield name, nn.Sequential(network, nn.Dropout(0.2), nn.Dense(10), input_shape=(32, 32, 3)), batch


def training() -> Iterator[Line]:
    """Parameters and kept values after 50 steps, losses and metrics on the way, predictions."""
    for name, model, batch in networks():
        yield f"initial values of {name}", digest(model.params)
        data = nn.data.shapes(n=5 * batch, seed=1).train
        optimizer = nn.Adam(nn.schedules.cosine(2e-3, STEPS))
        trainer = nn.Trainer(model, nn.CrossEntropy(), optimizer, [nn.Accuracy(), nn.F1(average="macro")])
        augmented = data.augmented(nn.data.RandomFlip(), nn.data.RandomCrop(2))
        history = trainer.fit(augmented, STEPS // 5, batch, validation=data, progress=False)
        results = [history[key] for key in ("loss", "accuracy", "val_loss", "val_accuracy", "val_f1")]
        yield f"{STEPS} steps of {name}", digest(model.params, model.buffers, *results, trainer.predict(data.images))
    yield "golden run", golden(nn.data.shapes(n=400, seed=2).train, epochs=4)


def golden(data: nn.data.Dataset, epochs: int) -> str:
    """Of losses and the network after some epochs of 25 steps with everything common; the value stands in the tests."""
    model = nn.Sequential(
        nn.Normalize(nn.zoo.CIFAR_MEAN, nn.zoo.CIFAR_STD), nn.Conv2D(16, 3, padding=1), nn.BatchNorm(), nn.ReLU(),
        nn.MaxPool2D(2), nn.Residual(nn.Conv2D(16, 3, padding=1, bias=False), nn.BatchNorm(), nn.GELU("tanh")),
        nn.Conv2D(24, 3, stride=2), nn.SiLU(), nn.DepthwiseConv2D(3), nn.LayerNorm(), nn.GlobalAvgPool2D(), nn.Dropout(0.2),
        nn.Dense(10), input_shape=(32, 32, 3),
    )  # fmt: skip
    schedule = nn.schedules.warmup(nn.schedules.cosine(3e-3, 25 * epochs - 10), 10)
    trainer = nn.Trainer(model, nn.CrossEntropy(label_smoothing=0.1), nn.AdamW(schedule, clip_norm=1.0), [nn.Accuracy()])
    augmented = data.augmented(nn.data.RandomFlip(), nn.data.RandomCrop(3), nn.data.Cutout(7))
    history = trainer.fit(augmented, epochs, len(data) // 25, validation=data, progress=False)
    return digest(model.params, model.buffers, history["loss"], history["val_loss"], history["val_accuracy"])


# ---- which kernels were called


def watched() -> set[str]:
    """The names of all kernels; each leaves the set when it is called."""
    names: set[str] = set()
    for dtype in (*DTYPES, "uint8"):
        table = kernels(np.dtype(dtype))
        names.update(f"{dtype} {name}" for name in table)
        for name, kernel in table.items():
            table[name] = partial(_called, names, f"{dtype} {name}", kernel)
    return names


def _called(names: set[str], name: str, kernel: Callable[..., None], *arguments: Any) -> None:
    names.discard(name)
    kernel(*arguments)


PARTS = {"layers": layers, "operations": operations, "values": values, "training": training}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    nn.set_num_threads(args.threads)
    nn.set_kernels("native")
    for part in args.parts or PARTS:
        for name, value in PARTS[part]():
            print(name, value, flush=True)


if __name__ == "__main__":
    main()
