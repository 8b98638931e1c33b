"""nnlite against PyTorch: layers, losses and optimisers, on drawn configurations, in float64 and float32.

usage: python benchmarks/parity.py [--cases 20] [--out FILE]     (needs torch; exits with 1 if anything disagrees)

A layer agrees when outputs, dJ/dx, all parameter gradients and running statistics do. Left out: Dropout, whose masks differ,
and Muon, whose matrices PyTorch makes orthogonal in bfloat16.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import nnlite as nn

try:
    import torch
    from torch import nn as tnn
    from torch.nn import functional as F
except ImportError:
    sys.exit("parity needs PyTorch: pip install torch==2.13.0")

TOLERANCE = {"float64": 1e-10, "float32": 2e-4}
Pair = tuple[Any, Any]  # what nnlite gives, what PyTorch gives


def images(t: Any) -> Any:
    """(N, H, W, C) <-> PyTorch's (N, C, H, W)."""
    return t.permute(0, 3, 1, 2) if t.ndim == 4 else t


def channels_last(t: Any) -> Any:
    return t.permute(0, 2, 3, 1) if t.ndim == 4 else t


def tensor(a: Any) -> Any:
    return torch.tensor(np.asarray(a))


def compare_layer(layer: nn.Layer, shape: tuple[int, ...], module: Any, dtype: str, rng: Any) -> Iterator[Pair]:
    """`module(x, parameters)` is PyTorch's side, on channels-first images."""
    model = nn.Sequential(layer, input_shape=shape, dtype=dtype)
    for view in model.named_params().values():
        view[...] = rng.standard_normal(view.shape)
    x = rng.standard_normal((5, *shape)).astype(dtype)
    z = model.forward(x, training=True)
    delta = rng.standard_normal(z.shape).astype(dtype)
    dx = model.backward(delta)
    tx = tensor(x).requires_grad_()
    parameters = {name[2:]: tensor(view).requires_grad_() for name, view in model.named_params().items()}
    tz = channels_last(module(images(tx), parameters))
    tz.backward(tensor(delta))
    yield z, tz.detach()
    yield dx, tx.grad
    for name, gradient in model.named_grads().items():
        yield gradient, parameters[name[2:]].grad


def conv_case(rng: Any) -> tuple[nn.Layer, tuple[int, ...], Callable[..., Any]]:
    groups = int(rng.integers(1, 4))
    channels, filters = groups * int(rng.integers(1, 4)), groups * int(rng.integers(1, 4))
    k, s, d = (tuple(int(v) for v in rng.integers(1, 4, 2)) for _ in range(3))
    p = tuple(int(v) for v in rng.integers(0, 3, 2))
    bias = bool(rng.integers(2))

    def module(x: Any, q: dict[str, Any]) -> Any:
        return F.conv2d(x, q["W"].permute(0, 3, 1, 2), q.get("b"), s, p, d, groups)

    size = tuple(int(v) for v in rng.integers(7, 12, 2))
    return nn.Conv2D(filters, k, stride=s, padding=p, dilation=d, groups=groups, bias=bias), (*size, channels), module


def three_case(rng: Any) -> tuple[nn.Layer, tuple[int, ...], Callable[..., Any]]:
    p = int(rng.integers(0, 2))
    size = tuple(int(v) for v in rng.integers(3, 17, 2))
    channels, filters = (int(v) for v in rng.integers(1, 40, 2))

    def module(x: Any, q: dict[str, Any]) -> Any:
        return F.conv2d(x, q["W"].permute(0, 3, 1, 2), q["b"], padding=p)

    return nn.Conv2D(filters, 3, padding=p), (*size, channels), module


def pool_case(kind: Any, function: Any) -> Callable[[Any], Any]:
    def case(rng: Any) -> Any:
        k, s = (tuple(int(v) for v in rng.integers(1, 4, 2)) for _ in range(2))
        p, d, ceil_mode = int(rng.integers(0, min(k) // 2 + 1)), int(rng.integers(1, 3)), bool(rng.integers(2))
        if kind is nn.MaxPool2D:
            layer = kind(k, s, padding=p, dilation=d, ceil_mode=ceil_mode)
            return layer, (8, 9, 3), lambda x, q: function(x, k, s, p, d, ceil_mode)
        counts = bool(rng.integers(2))
        layer = kind(k, s, padding=p, ceil_mode=ceil_mode, count_padding=counts)
        return layer, (8, 9, 3), lambda x, q: function(x, k, s, p, ceil_mode, counts)

    return case


def turned(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of sequences (N, C, T) on (N, T, C)."""
    return lambda x, q: function(x.transpose(1, 2), q).transpose(1, 2)


def conv1d_case(rng: Any) -> Any:
    groups = int(rng.integers(1, 4))
    channels, filters = groups * int(rng.integers(1, 4)), groups * int(rng.integers(1, 4))
    k, s, d = (int(v) for v in rng.integers(1, 4, 3))
    p = int(rng.integers(0, 3))
    layer = nn.Conv1D(filters, k, stride=s, padding=p, dilation=d, groups=groups)
    return layer, (11, channels), turned(lambda x, q: F.conv1d(x, q["W"].transpose(1, 2), q["b"], s, p, d, groups))


def pool1d_case(kind: Any, function: Any) -> Callable[[Any], Any]:
    def case(rng: Any) -> Any:
        k, s = (int(v) for v in rng.integers(1, 4, 2))
        p, ceil_mode = int(rng.integers(0, k // 2 + 1)), bool(rng.integers(2))
        return (
            kind(k, s, padding=p, ceil_mode=ceil_mode),
            (9, 3),
            turned(lambda x, q: function(x, k, s, p, ceil_mode=ceil_mode)),
        )

    return case


def depthwise_case(rng: Any) -> Any:
    k, (channels, m, p) = tuple(int(v) for v in rng.integers(1, 4, 2)), (int(v) for v in rng.integers(1, 4, 3))

    def module(x: Any, q: dict[str, Any]) -> Any:
        return F.conv2d(x, q["W"].permute(0, 3, 1, 2), q["b"], padding=p, groups=channels)

    return nn.DepthwiseConv2D(k, multiplier=m, padding=p), (7, 8, channels), module


def group_norm_case(rng: Any) -> Any:
    groups = int(rng.choice([1, 2, 3, 6]))
    return nn.GroupNorm(groups), (4, 5, 6), lambda x, q: F.group_norm(x, groups, q["gamma"], q["beta"])


def prelu_case(rng: Any) -> Any:
    return nn.PReLU(shared=bool(rng.integers(2))), (4, 5, 6), lambda x, q: F.prelu(x, q["slopes"])


def dense_case(rng: Any) -> Any:
    n_in, n_out = (int(v) for v in rng.integers(1, 50, 2))
    return nn.Dense(n_out), (n_in,), lambda x, q: F.linear(x, q["W"], q["b"])


def plain(make: Callable[[], nn.Layer], function: Callable[[Any], Any], shape: tuple[int, ...] = (4, 5, 6)) -> Any:
    return lambda rng: (make(), shape, lambda x, q: function(x))


def norm_case(function: Callable[..., Any], make: Callable[[], nn.Layer], shape: tuple[int, ...]) -> Any:
    return lambda rng: (make(), shape, function)


def layer_norm(x: Any, q: dict[str, Any]) -> Any:
    return images(F.layer_norm(channels_last(x), (6,), q["gamma"], q["beta"]))


def residual_case(rng: Any) -> tuple[nn.Layer, tuple[int, ...], Callable[..., Any]]:
    """Two convolutions, and a shortcut that is a 1 x 1 convolution or the identity."""
    channels, filters = (int(v) for v in rng.integers(1, 9, 2))
    projects = bool(rng.integers(2))
    filters, stride = (filters, 2) if projects else (channels, 1)
    shortcut = nn.Conv2D(filters, 1, stride=stride, bias=False) if projects else ()
    layer = nn.Residual(
        nn.Conv2D(filters, 3, stride=stride, padding=1), nn.Tanh(), nn.Conv2D(filters, 3, padding=1), shortcut=shortcut
    )

    def module(x: Any, q: dict[str, Any]) -> Any:
        W = {name: q[f"{name}.W"].permute(0, 3, 1, 2) for name in ("0", "2")}
        y = torch.tanh(F.conv2d(x, W["0"], q["0.b"], stride, 1))
        y = F.conv2d(y, W["2"], q["2.b"], padding=1)
        return y + (F.conv2d(x, q["shortcut.0.W"].permute(0, 3, 1, 2), stride=stride) if projects else x)

    return layer, (7, 8, channels), module


def concat_case(rng: Any) -> tuple[nn.Layer, tuple[int, ...], Callable[..., Any]]:
    """A convolution, two layers, and the identity."""
    first, second = (int(v) for v in rng.integers(1, 9, 2))
    layer = nn.Concat(nn.Conv2D(first, 3, padding=1), [nn.Tanh(), nn.Conv2D(second, 1)], [])

    def module(x: Any, q: dict[str, Any]) -> Any:
        W = {name: q[f"{name}.W"].permute(0, 3, 1, 2) for name in ("0.0", "1.1")}
        return torch.cat(
            [F.conv2d(x, W["0.0"], q["0.0.b"], padding=1), F.conv2d(torch.tanh(x), W["1.1"], q["1.1.b"]), x], dim=1
        )

    return layer, (5, 4, 3), module


def upsample_case(mode: Any) -> Callable[[Any], Any]:
    def case(rng: Any) -> Any:
        factor, shape = tuple(int(v) for v in rng.integers(1, 5, 2)), tuple(int(v) for v in rng.integers(1, 6, 3))
        align = False if mode == "bilinear" else None
        layer = nn.Upsample2D(factor, mode=mode)
        return layer, shape, lambda x, q: F.interpolate(x, scale_factor=factor, mode=mode, align_corners=align)

    return case


def normalize_case(rng: Any) -> tuple[nn.Layer, tuple[int, ...], Callable[..., Any]]:
    mean, std = rng.standard_normal(6).tolist(), rng.uniform(0.5, 2, 6).tolist()
    layer = nn.Normalize(mean, std)

    def module(x: Any, q: dict[str, Any]) -> Any:
        m, s = (torch.tensor(v, dtype=x.dtype)[:, None, None] for v in (mean, std))
        return (x - m) / s

    return layer, (4, 5, 6), module


LAYERS: dict[str, Callable[[Any], Any]] = {
    "Dense": dense_case,
    "Conv2D": conv_case,
    "Conv2D 3x3": three_case,
    "MaxPool2D": pool_case(nn.MaxPool2D, F.max_pool2d),
    "AvgPool2D": pool_case(nn.AvgPool2D, F.avg_pool2d),
    "DepthwiseConv2D": depthwise_case,
    "Conv1D": conv1d_case,
    "MaxPool1D": pool1d_case(nn.MaxPool1D, F.max_pool1d),
    "AvgPool1D": pool1d_case(nn.AvgPool1D, F.avg_pool1d),
    "GlobalMaxPool2D": plain(nn.GlobalMaxPool2D, lambda x: x.amax(dim=(2, 3))),
    "GlobalAvgPool2D": plain(nn.GlobalAvgPool2D, lambda x: x.mean(dim=(2, 3))),
    "ReLU": plain(nn.ReLU, F.relu),
    "LeakyReLU": plain(nn.LeakyReLU, F.leaky_relu),
    "PReLU": prelu_case,
    "Sigmoid": plain(nn.Sigmoid, torch.sigmoid),
    "Tanh": plain(nn.Tanh, torch.tanh),
    "GELU": plain(nn.GELU, F.gelu),
    "GELU tanh": plain(lambda: nn.GELU("tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "SiLU": plain(nn.SiLU, F.silu),
    "ELU": plain(nn.ELU, F.elu),
    "Softplus": plain(nn.Softplus, F.softplus),
    "Softmax": plain(nn.Softmax, lambda x: torch.softmax(x, dim=1)),
    "BatchNorm": norm_case(lambda x, q: F.batch_norm(x, None, None, q["gamma"], q["beta"], True), nn.BatchNorm, (4, 5, 6)),
    "BatchNorm dense": norm_case(lambda x, q: F.batch_norm(x, None, None, q["gamma"], q["beta"], True), nn.BatchNorm, (6,)),
    "LayerNorm": norm_case(layer_norm, nn.LayerNorm, (4, 5, 6)),
    "GroupNorm": group_norm_case,
    "Normalize": normalize_case,
    "Residual": residual_case,
    "Concat": concat_case,
    "Upsample2D nearest": upsample_case("nearest"),
    "Upsample2D bilinear": upsample_case("bilinear"),
    "Flatten": plain(nn.Flatten, lambda x: channels_last(x).flatten(1)),
    "Reshape": plain(lambda: nn.Reshape((10, 12)), lambda x: channels_last(x).reshape(-1, 10, 12)),
}


def compare_statistics(dtype: str, rng: Any) -> Iterator[Pair]:
    """Running mean and variance over three passes, then inference."""
    model, module = nn.Sequential(nn.BatchNorm(), input_shape=(4, 5, 6), dtype=dtype), tnn.BatchNorm2d(6)
    module = module.to(getattr(torch, dtype))
    for _ in range(3):
        x = (rng.standard_normal((7, 4, 5, 6)) * 3 + 1).astype(dtype)
        model.forward(x, training=True)
        module(images(tensor(x)))
    yield model[0].running_mean, module.running_mean
    yield model[0].running_var, module.running_var
    yield model(x), channels_last(module.eval()(images(tensor(x)))).detach()


def compare_loss(mine: nn.Loss, theirs: Callable[[Any], Any], t: Any, classes: int, dtype: str, rng: Any) -> Iterator[Pair]:
    shape = (*t.shape, classes) if t.dtype.kind == "i" else t.shape
    z = rng.standard_normal(shape).astype(dtype)
    tz = tensor(z).requires_grad_()
    loss, delta = mine(z, t)
    expected = theirs(tz)
    expected.backward()
    yield np.array(loss), expected.detach()
    yield delta, tz.grad


def losses(dtype: str, rng: Any) -> dict[str, Any]:
    n, c = 9, 6
    labels, p = rng.integers(0, c, n), rng.dirichlet(np.ones(c), n).astype(dtype)
    w, real = rng.uniform(0.2, 2, c).astype(dtype), rng.standard_normal((n, c)).astype(dtype)
    unit, pixels = rng.uniform(size=(n, c)).astype(dtype), rng.integers(0, c, (n, 2, 3))
    tl, tp, tw, tr, tu, tx = (tensor(a) for a in (labels, p, w, real, unit, pixels))
    return {
        "CrossEntropy": (nn.CrossEntropy(), lambda z: F.cross_entropy(z, tl), labels),
        "CrossEntropy weighted, smoothed": (
            nn.CrossEntropy(label_smoothing=0.1, class_weight=w),
            lambda z: F.cross_entropy(z, tl, weight=tw, label_smoothing=0.1),
            labels,
        ),
        "CrossEntropy probabilities": (
            nn.CrossEntropy(label_smoothing=0.1, class_weight=w),
            lambda z: F.cross_entropy(z, tp, weight=tw, label_smoothing=0.1),
            p,
        ),
        "CrossEntropy of pixels": (
            nn.CrossEntropy(label_smoothing=0.1, class_weight=w, ignore_index=2),
            lambda z: F.cross_entropy(images(z), tx, weight=tw, label_smoothing=0.1, ignore_index=2),
            pixels,
        ),
        "BinaryCrossEntropy weighted": (
            nn.BinaryCrossEntropy(pos_weight=w),
            lambda z: F.binary_cross_entropy_with_logits(z, tu, pos_weight=tw),
            unit,
        ),
        "BinaryCrossEntropy": (nn.BinaryCrossEntropy(), lambda z: F.binary_cross_entropy_with_logits(z, tu), unit),
        "MSE": (nn.MSE(), lambda z: F.mse_loss(z, tr), real),
        "MAE": (nn.MAE(), lambda z: F.l1_loss(z, tr), real),
        "Huber": (nn.Huber(0.7), lambda z: F.huber_loss(z, tr, delta=0.7), real),
    }


OPTIMIZERS: dict[str, Pair] = {
    "SGD": (lambda: nn.SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "SGD momentum": (
        lambda: nn.SGD(0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01),
    ),
    "SGD Nesterov": (lambda: nn.SGD(0.1, momentum=0.9, nesterov=True), lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True)),
    "Adam": (nn.Adam, lambda p: torch.optim.Adam(p)),
    "Adam weight decay": (lambda: nn.Adam(0.01, weight_decay=0.1), lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1)),
    "AdamW": (nn.AdamW, lambda p: torch.optim.AdamW(p)),
    "RMSProp": (nn.RMSProp, lambda p: torch.optim.RMSprop(p)),
    "clipping": (lambda: nn.SGD(0.1, clip_norm=0.5), lambda p: torch.optim.SGD(p, 0.1)),
}


def compare_optimizer(name: str, dtype: str, rng: Any) -> Iterator[Pair]:
    mine, theirs = OPTIMIZERS[name]
    model = nn.Sequential(nn.Dense(7), input_shape=(5,), dtype=dtype)
    parameter = tensor(model.params.copy()).requires_grad_()
    first, second = mine(), theirs([parameter])
    for _ in range(20):
        g = rng.standard_normal(len(model.params)).astype(dtype)
        model.grads, parameter.grad = g, tensor(g)
        if name == "clipping":
            torch.nn.utils.clip_grad_norm_([parameter], 0.5)
        first.step(model)
        second.step()
    yield model.params, parameter.detach()


def error(pairs: Iterator[Pair]) -> float:
    """The largest difference, relative to the largest value of its array."""
    worst = 0.0
    for mine, theirs in pairs:
        a, b = np.asarray(mine, np.float64), theirs.numpy().astype(np.float64)
        worst = max(worst, float(abs(a - b).max() / max(abs(b).max(), 1e-3)) if a.shape == b.shape else np.inf)
    return worst


def rows(cases: int) -> Iterator[tuple[str, str, int, float]]:
    for dtype in TOLERANCE:
        rng = np.random.default_rng(0)
        for name, draw in LAYERS.items():
            yield name, dtype, cases, max(error(compare_layer(*draw(rng), dtype, rng)) for _ in range(cases))
        yield "BatchNorm statistics", dtype, 1, error(compare_statistics(dtype, rng))
        for name, (mine, theirs, t) in losses(dtype, rng).items():
            yield name, dtype, cases, max(error(compare_loss(mine, theirs, t, 6, dtype, rng)) for _ in range(cases))
        for name in OPTIMIZERS:
            yield name, dtype, 1, error(compare_optimizer(name, dtype, rng))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    versions = f"nnlite {nn.__version__}, NumPy {np.__version__}, PyTorch {torch.__version__}"
    lines = ["# nnlite against PyTorch", "", versions, "", "| item | dtype | cases | largest relative error | verdict |"]
    lines.append("|---|---|---|---|---|")
    agreed = True
    for name, dtype, cases, worst in rows(args.cases):
        fine = worst <= TOLERANCE[dtype]
        agreed &= fine
        lines.append(f"| {name} | {dtype} | {cases} | {worst:.1e} | {'agrees' if fine else 'DISAGREES'} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)
    if not agreed:
        sys.exit(1)


if __name__ == "__main__":
    main()
