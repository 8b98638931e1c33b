"""`make differential`: random networks against PyTorch in float64, five steps of a random optimiser each.

usage: python checks/differential.py [--networks 2000] [--first SEED] [--out FILE]     (needs torch)

Each network is drawn from a seed: layers, shapes, loss, optimiser, what is frozen and when, number of threads; shards are
forced. PyTorch computes it from the same initial values, by autograd. Losses, parameters and running statistics must agree
to 1e-9 after each step. A difference is explained where PyTorch disagrees with itself as much after inputs moved by 1e-12, or
where a normalisation has only equal values, so that rounding alone is divided by sqrt(eps); any other fails.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

import nnlite as nn
from nnlite.engine import cut

try:
    import torch
    from torch.nn import functional as F
except ImportError:
    sys.exit("differential testing needs PyTorch: pip install torch==2.13.0")

TOLERANCE, STEPS, BATCH = 1e-9, 5, 6


# ---- what is drawn


class Drawn(NamedTuple):
    """A network and how it is trained; `frozen`: the names that are frozen in each step, and whether statistics are, too."""

    model: nn.Sequential
    x: np.ndarray
    targets: np.ndarray
    loss: nn.Loss
    optimizer: nn.Optimizer
    frozen: list[list[str]]
    statistics: bool
    threads: int


def draw(seed):
    """The network of a seed."""
    rng = np.random.default_rng(seed)
    images, sequences, ids = rng.random(3) < (0.6, 0.4, 0.5)
    shape, layers = (int(rng.integers(1, 9)),), []
    if images:
        shape = (*rng.integers(5, 10, 2).tolist(), int(rng.integers(1, 5)))
        layers = image_layers(rng, shape[2])
    elif sequences:
        shape = (int(rng.integers(5, 12)), int(rng.integers(1, 5)))
        layers = sequence_layers(rng, shape[1])
        layers, shape = ([nn.Embedding(7, shape[1]), *layers], shape[:1]) if ids else (layers, shape)
    layers += vector_layers(rng)
    outputs = int(rng.integers(2, 5))
    try:
        model = nn.Sequential(*layers, nn.Dense(outputs), input_shape=shape, dtype="float64", seed=seed)
    except nn.ShapeError:  # a kernel beyond its image
        return draw(seed + 1_000_003)
    for value in model.named_params().values():  # gamma, beta and biases, too
        value += 0.1 * rng.standard_normal(value.shape)
    loss, targets = draw_loss(rng, outputs)
    names = list(model.named_params())
    first, second = ([name for name in names if rng.random() < 0.3] for _ in range(2))
    frozen = [first] * 2 + [second] * (STEPS - 2)
    x = rng.integers(7, size=(BATCH, *shape)) if model.plan.takes_integers else rng.standard_normal((BATCH, *shape))
    return Drawn(model, x, targets, loss, draw_optimizer(rng), frozen, bool(rng.integers(2)), int(rng.integers(1, 4)))


def image_layers(rng, channels):
    layers = []
    for _ in range(rng.integers(1, 5)):
        kind = rng.integers(12)
        if kind < 3:
            groups = int(rng.choice([g for g in (1, 2, 3, 4) if channels % g == 0]))
            channels = groups * int(rng.integers(1, 4))
            padding = [0, 1, 2, "same", "valid", (1, 0)][rng.integers(6)]
            layers.append(
                nn.Conv2D(
                    channels,
                    pair(rng, 1, 4),
                    stride=pair(rng, 1, 3),
                    padding=padding,
                    dilation=pair(rng, 1, 3),
                    groups=groups,
                    bias=bool(rng.integers(2)),
                )
            )
        elif kind == 3:
            layers.append(nn.BatchNorm(scale=bool(rng.integers(2)), shift=bool(rng.integers(2))))
        elif kind == 4:
            layers.append(nn.LayerNorm())
        elif kind == 5:
            pool = nn.MaxPool2D if rng.integers(2) else nn.AvgPool2D
            layers.append(pool(pair(rng, 2, 4), pair(rng, 1, 3), padding=int(rng.integers(2))))
        elif kind == 6:
            inner = [nn.Conv2D(channels, 3, padding=1), activation(rng), nn.BatchNorm()][: rng.integers(1, 4)]
            layers.append(nn.Residual(*inner, shortcut=nn.Conv2D(channels, 1) if rng.integers(2) else ()))
        elif kind == 7:
            first, second = (int(n) for n in rng.integers(1, 4, 2))
            inner = [[nn.Conv2D(first, 3, padding=1), nn.BatchNorm()], [activation(rng), nn.Conv2D(second, 1)]]
            layers.append(nn.Concat(*inner, []) if rng.integers(2) else nn.Concat(inner[1], nn.Concat([], inner[0])))
            channels += first + second
        elif kind == 8:
            layers.append(nn.Upsample2D(pair(rng, 1, 3), mode=["nearest", "bilinear"][rng.integers(2)]))
        elif kind == 9:
            multiplier = int(rng.integers(1, 3))
            layers.append(nn.DepthwiseConv2D(3, multiplier=multiplier, padding=1))
            channels *= multiplier
        elif kind == 10:
            layers.append(nn.GroupNorm(int(rng.choice([g for g in (1, 2, 3, 4) if channels % g == 0]))))
        elif kind == 11:
            layers.append(nn.Normalize(0.3, tuple(rng.uniform(0.5, 2, channels).tolist())))
        layers.append(activation(rng))
    return [*layers, [nn.Flatten, nn.GlobalAvgPool2D, nn.GlobalMaxPool2D][rng.integers(3)]()]


def sequence_layers(rng, channels):
    layers = []
    for _ in range(rng.integers(1, 4)):
        kind = rng.integers(5)
        options = {"stride": int(rng.integers(1, 3)), "dilation": int(rng.integers(1, 3))}
        if kind < 2:
            groups = int(rng.choice([g for g in (1, 2, 3, 4) if channels % g == 0]))
            channels = groups * int(rng.integers(1, 4))
            padding = [0, 1, "same", (1, 0)][rng.integers(4)]
            layers.append(nn.Conv1D(channels, int(rng.integers(1, 4)), padding=padding, groups=groups, **options))
        elif kind == 2:
            layers.append([nn.MaxPool1D, nn.AvgPool1D][rng.integers(2)](int(rng.integers(2, 4)), padding=1, **options))
        elif kind == 3:
            layers.append([nn.BatchNorm, nn.LayerNorm, lambda: nn.GroupNorm(1)][rng.integers(3)]())
        else:
            layers.append(nn.Residual(nn.Conv1D(channels, 3, padding=1), activation(rng)))
        layers.append(activation(rng))
    return [*layers, [nn.Flatten, nn.GlobalMaxPool1D][rng.integers(2)]()]


def vector_layers(rng):
    layers = []
    for _ in range(rng.integers(0, 3)):
        layers += [nn.Dense(int(rng.integers(1, 8)), bias=bool(rng.integers(2))), activation(rng)]
        if rng.integers(3) == 0:
            layers.append([nn.BatchNorm, nn.LayerNorm][rng.integers(2)]())
    return layers


def activation(rng):
    kinds = (
        nn.ReLU,
        nn.Tanh,
        nn.Sigmoid,
        nn.SiLU,
        nn.GELU,
        lambda: nn.GELU("tanh"),
        lambda: nn.LeakyReLU(0.1),
        nn.Softmax,
        nn.PReLU,
        nn.Softplus,
        lambda: nn.ELU(0.7),
    )
    return kinds[rng.integers(len(kinds))]()


def pair(rng, low, high):
    return tuple(int(v) for v in rng.integers(low, high, 2))


def draw_loss(rng, outputs):
    real = rng.standard_normal((BATCH, outputs))
    weight = rng.uniform(0.5, 2, outputs) if rng.integers(2) else None
    losses = (
        lambda: (
            nn.CrossEntropy(label_smoothing=float(rng.choice([0, 0.1])), class_weight=weight),
            rng.integers(outputs, size=BATCH),
        ),
        lambda: (nn.MSE(), real),
        lambda: (nn.MAE(), real),
        lambda: (nn.Huber(0.7), real),
        lambda: (nn.BinaryCrossEntropy(), rng.random((BATCH, outputs))),
    )
    return losses[rng.integers(len(losses))]()


def draw_optimizer(rng):
    clip = [None, 0.5][rng.integers(2)]
    decay = [0.0, 0.01][rng.integers(2)]
    rates = {"learning_rate": 10 ** rng.uniform(-4, -1.5), "weight_decay": decay, "clip_norm": clip}
    momentum = [0.0, 0.9][rng.integers(2)]
    kinds = (
        lambda: nn.SGD(momentum=momentum, nesterov=bool(momentum and rng.integers(2)), **rates),
        lambda: nn.Adam(**rates),
        lambda: nn.AdamW(**rates),
        lambda: nn.RMSProp(**rates),
    )
    return kinds[rng.integers(len(kinds))]()


# ---- the same in PyTorch


class InTorch:
    """The network of a drawn one in PyTorch, from its current values."""

    def __init__(self, drawn):
        self.model, self.loss = drawn.model, drawn.loss
        self.parameters = {name: torch.tensor(value.copy()) for name, value in drawn.model.named_params().items()}
        self.buffers = {name: torch.tensor(value.copy()) for name, value in drawn.model.named_buffers().items()}
        self.clip_norm, self.statistics, self.frozen = drawn.optimizer.clip_norm, drawn.statistics, []
        self.normalises_equal_values = False
        self.optimizer = in_torch(drawn.optimizer, list(self.parameters.values()))

    def step(self, x, targets, frozen):
        """One training step; returns the loss."""
        self.frozen = frozen
        for name, p in self.parameters.items():
            p.grad = None
            p.requires_grad_(name not in frozen)
        z = self.chain(self.model.children(), "", torch.tensor(x))
        loss = self.criterion(z, torch.tensor(targets))
        if loss.requires_grad:
            loss.backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([p for p in self.parameters.values() if p.grad is not None], self.clip_norm)
        self.optimizer.step()
        return loss.item()

    def chain(self, layers, prefix, a):
        for name, layer in layers.items():
            a = self.layer(layer, prefix + name, a)
        return a

    def layer(self, layer, path, a):
        """One layer on channels-last arrays, by its kind."""
        p = {name: self.parameters.get(f"{path}.{name}") for name in ("W", "b", "gamma", "beta", "slopes")}
        match layer:
            case nn.Residual():
                return sum(self.chain(branch, path + ".", a) for branch in layer.branches_by_name())
            case nn.Concat():
                return torch.cat([self.chain(branch, path + ".", a) for branch in layer.branches_by_name()], dim=-1)
            case nn.Upsample2D():
                size, align = layer.out_shape[:2], None if layer.mode == "nearest" else False
                return F.interpolate(a.permute(0, 3, 1, 2), size, mode=layer.mode, align_corners=align).permute(0, 2, 3, 1)
            case nn.Dense():
                return F.linear(a, p["W"], p["b"])
            case nn.Conv2D():
                a = padded(a, layer.plan.window, 0.0)
                W, stride, dilation = p["W"].permute(0, 3, 1, 2), layer.plan.window.stride, layer.plan.window.dilation
                return F.conv2d(a.permute(0, 3, 1, 2), W, p["b"], stride, 0, dilation, layer.groups).permute(0, 2, 3, 1)
            case nn.Conv1D():
                a, window = padded_sequence(a, layer.inner.plan.window, 0.0)
                return F.conv1d(a, p["W"].permute(0, 2, 1), p["b"], groups=layer.groups, **window).permute(0, 2, 1)
            case nn.MaxPool1D():
                a, window = padded_sequence(a, layer.inner.plan.window, -np.inf)
                return F.max_pool1d(a, layer.size, **window).permute(0, 2, 1)
            case nn.AvgPool1D():  # PyTorch's has no dilation
                a, window = padded_sequence(a, layer.inner.plan.window, 0.0)
                W = torch.full((a.shape[1], 1, layer.size), 1 / layer.size, dtype=a.dtype)
                return F.conv1d(a, W, groups=a.shape[1], **window).permute(0, 2, 1)
            case nn.MaxPool2D() | nn.AvgPool2D():
                function, fill = (F.max_pool2d, -np.inf) if isinstance(layer, nn.MaxPool2D) else (F.avg_pool2d, 0.0)
                window = layer.plan.window
                a = padded(a, window, fill).permute(0, 3, 1, 2)
                return function(a, window.kernel, window.stride).permute(0, 2, 3, 1)
            case nn.GlobalAvgPool2D():
                return a.mean(dim=(1, 2))
            case nn.GlobalMaxPool2D():
                return a.flatten(1, 2).max(dim=1).values
            case nn.GlobalMaxPool1D():
                return a.max(dim=1).values
            case nn.Embedding():
                return F.embedding(a, p["W"])
            case nn.Flatten():
                return a.flatten(1)
            case nn.Normalize():
                return (a - layer.mean) / torch.tensor(layer.std, dtype=a.dtype)
            case nn.BatchNorm():
                self.note_equal_values(a.flatten(0, -2).T)
                mean, var = (self.buffers[f"{path}.running_{name}"] for name in ("mean", "var"))
                names = [f"{path}.{name}" for name in ("gamma", "beta") if p[name] is not None]
                trains = not (self.statistics and names and all(name in self.frozen for name in names))
                a = a.movedim(-1, 1)
                y = F.batch_norm(a, mean, var, p["gamma"], p["beta"], trains, 1 - layer.momentum, layer.eps)
                return y.movedim(1, -1)
            case nn.GroupNorm():  # by hand: PyTorch 2.13's crashes where its weights are frozen
                rows = a.movedim(-1, 1).reshape(len(a), layer.groups, -1)
                self.note_equal_values(rows)
                x = F.layer_norm(rows, rows.shape[-1:], eps=layer.eps)
                return x.reshape(len(a), -1, *a.shape[1:-1]).movedim(1, -1) * p["gamma"] + p["beta"]
            case nn.PReLU():
                return F.prelu(a.movedim(-1, 1), p["slopes"]).movedim(1, -1)
            case nn.LayerNorm():
                self.note_equal_values(a)
                return F.layer_norm(a, a.shape[-1:], p["gamma"], p["beta"], layer.eps)
            case nn.GELU():
                return F.gelu(a, approximate=layer.approximate)
            case nn.LeakyReLU():
                return F.leaky_relu(a, layer.slope)
            case nn.ELU():
                return F.elu(a, layer.alpha)
            case nn.Softmax():
                return a.softmax(dim=-1)
        plain = {nn.ReLU: F.relu, nn.Tanh: torch.tanh, nn.Sigmoid: torch.sigmoid, nn.SiLU: F.silu, nn.Softplus: F.softplus}
        return plain[type(layer)](a)

    def note_equal_values(self, rows):
        """Whether any of the normalised matrix rows holds a single value, up to rounding."""
        spread = (rows - rows[..., :1]).abs().amax(dim=-1)
        self.normalises_equal_values |= bool((spread <= 1e-12 * rows[..., 0].abs()).any())

    def criterion(self, z, t):
        match self.loss:
            case nn.CrossEntropy():
                weight = None if self.loss.class_weight is None else torch.tensor(self.loss.class_weight)
                return F.cross_entropy(z, t, weight, label_smoothing=self.loss.label_smoothing)
            case nn.Huber():
                return F.huber_loss(z, t, delta=self.loss.threshold)
            case nn.BinaryCrossEntropy():
                return F.binary_cross_entropy_with_logits(z, t)
        return {nn.MSE: F.mse_loss, nn.MAE: F.l1_loss}[type(self.loss)](z, t)


def padded(a, window, fill):
    """Channels-last images with the window's padding."""
    (top, bottom), (left, right) = window.padding
    return F.pad(a, (0, 0, left, right, top, bottom), value=fill)


def padded_sequence(a, window, fill):
    """(N, C, T) with the window's padding, and the rest of the window."""
    a = F.pad(a.permute(0, 2, 1), window.padding[1], value=fill)
    return a, {"stride": window.stride[1], "dilation": window.dilation[1]}


def in_torch(optimizer, parameters):
    settings = {"lr": optimizer.learning_rate, "weight_decay": optimizer.weight_decay}
    match optimizer:
        case nn.SGD():
            return torch.optim.SGD(parameters, momentum=optimizer.momentum, nesterov=optimizer.nesterov, **settings)
        case nn.AdamW():
            return torch.optim.AdamW(parameters, **settings)
        case nn.Adam():
            return torch.optim.Adam(parameters, **settings)
    return torch.optim.RMSprop(parameters, **settings)


# ---- comparing


def train_here(drawn):
    """Loss, parameters and statistics after each step."""
    nn.set_num_threads(drawn.threads)
    model = drawn.model
    for frozen in drawn.frozen:
        model.unfreeze("*")
        for name in frozen:
            model.freeze(name, statistics=drawn.statistics)
        loss = model.loss_and_grad(drawn.x, drawn.targets, drawn.loss)
        drawn.optimizer.step(model)
        yield [np.array(loss), model.params.copy(), model.buffers.copy()]


def train_in_torch(network, drawn, x):
    for frozen in drawn.frozen:
        loss = network.step(x, drawn.targets, frozen)
        vectors = (network.parameters, network.buffers)
        flat = [np.concatenate([v.detach().numpy().ravel() for v in named.values()] or [np.empty(0)]) for named in vectors]
        yield [np.array(loss), *flat]


def distance(first, second):
    """The largest difference of any array, relative to its largest value."""
    gaps = [abs(a - b).max(initial=0) / (1 + abs(b).max(initial=0)) for a, b in zip(first, second, strict=True)]
    return max(gaps)


def moved_a_little(network, x):
    """Other inputs; of ids, the same with other vectors."""
    if x.dtype.kind == "f":
        return x * (1 + 1e-12)
    network.parameters["0.W"] *= 1 + 1e-12
    return x


def judge(seed):
    """ "same", "explained" or "DIFFERS", and the largest difference."""
    drawn = draw(seed)
    network, moved = InTorch(drawn), InTorch(drawn)
    theirs = list(train_in_torch(network, drawn, drawn.x))
    ours = list(train_here(drawn))
    gap = max(distance(a, b) for a, b in zip(ours, theirs, strict=True))
    if gap < TOLERANCE:
        return "same", gap, drawn
    if network.normalises_equal_values:
        return "equal values", gap, drawn
    nudged = train_in_torch(moved, drawn, moved_a_little(moved, drawn.x))
    own = max(distance(a, b) for a, b in zip(nudged, theirs, strict=True))
    return ("explained" if own > gap / 10 else "DIFFERS"), gap, drawn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, help="write the result to this file")
    args = parser.parse_args()
    cut.BUDGET, cut.WORTH_CUTTING, cut.FLOPS_PER_SUMMED_VALUE = 1, 0, 0  # as many shards as there are samples
    verdicts, layers, largest = Counter(), Counter(), 0.0
    for seed in range(args.first, args.first + args.networks):
        verdict, gap, drawn = judge(seed)
        verdicts[verdict] += 1
        layers.update(type(layer).__name__ for layer in drawn.model.layers)
        if verdict != "same":
            print(
                f"seed {seed}: {verdict} by {gap:.1e}: {drawn.model}, {drawn.loss}, {type(drawn.optimizer).__name__}",
                flush=True,
            )
        else:
            largest = max(largest, gap)
    text = report(args, verdicts, layers, largest)
    print(text)
    if args.out:
        args.out.write_text(text)
    sys.exit(bool(verdicts["DIFFERS"]))


def report(args, verdicts, layers, largest):
    kinds = ", ".join(f"{name} {n}" for name, n in sorted(layers.items()))
    return "\n".join(
        [
            "# Random networks against PyTorch",
            "",
            f"{args.networks} networks (seeds {args.first} to {args.first + args.networks - 1}), float64, {STEPS} steps of a",
            "drawn optimiser, parts frozen and unfrozen, a shard for each sample, 1 to 3 threads; "
            f"PyTorch {torch.__version__}, NumPy {np.__version__}.",
            "",
            f"- agree to {TOLERANCE:g} (largest difference {largest:.1e}): {verdicts['same']}",
            f"- differ, and PyTorch from itself as much when the inputs move by 1e-12: {verdicts['explained']}",
            f"- differ, and a normalisation meets equal values only: {verdicts['equal values']}",
            f"- unexplained differences: {verdicts['DIFFERS']}",
            "",
            f"Layers: {kinds}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
