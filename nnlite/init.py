"""Initialisers: functions (shape, rng) -> float64 array. Shapes are (n_out, n_in) or (filters, kh, kw, channels / groups).

fan_in is the number of inputs of a unit, fan_out the number of outputs that an input reaches. `fans(shape)` gives both, from
the axes of the shape unless the layer declared others, as a convolution with groups does. A seed gives the same bits on every
machine.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import number, shortened
from nnlite.backend.exact import standard_normal
from nnlite.backend.linear import eigenvectors, orthonormal, product

Values = NDArray[np.float64]


Shape = tuple[int, ...]
Initialiser = Callable[[Shape, Any], Any]


class DeclaredShape(tuple[int, ...]):
    """The shape of a layer's weights as passed to its initialiser: with the declared fans, or None."""

    fan_in: int | None
    fan_out: int | None

    def __new__(cls, shape: Iterable[int], fan_in: int | None = None, fan_out: int | None = None) -> "DeclaredShape":
        self = super().__new__(cls, shape)
        self.fan_in, self.fan_out = fan_in, fan_out
        return self


def fans(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out) of weights of this shape, from its axes unless declared; a vector has one input per unit."""
    fan_in, fan_out = getattr(shape, "fan_in", None), getattr(shape, "fan_out", None)
    return fan_in or math.prod(shape[1:]), fan_out or shape[0] * math.prod(shape[1:-1])


def he_normal(shape: Shape, rng: np.random.Generator) -> Values:
    """Normal with variance 2 / fan_in, for ReLU. Source: He et al. 2015, equation 10."""
    return _normal(2 / fans(shape)[0], shape, rng)


def he_uniform(shape: Shape, rng: np.random.Generator) -> Values:
    """Uniform with variance 2 / fan_in. Source: He et al. 2015, equation 10."""
    return _uniform(2 / fans(shape)[0], shape, rng)


def glorot_normal(shape: Shape, rng: np.random.Generator) -> Values:
    """Normal with variance 2 / (fan_in + fan_out), for tanh. Source: Glorot and Bengio 2010, equation 12."""
    return _normal(2 / sum(fans(shape)), shape, rng)


def glorot_uniform(shape: Shape, rng: np.random.Generator) -> Values:
    """Uniform with variance 2 / (fan_in + fan_out). Source: Glorot and Bengio 2010, equation 16."""
    return _uniform(2 / sum(fans(shape)), shape, rng)


def lecun_normal(shape: Shape, rng: np.random.Generator) -> Values:
    """Normal with variance 1 / fan_in. Source: LeCun et al. 1998, Efficient BackProp, equation 16."""
    return _normal(1 / fans(shape)[0], shape, rng)


def lecun_uniform(shape: Shape, rng: np.random.Generator) -> Values:
    """Uniform with variance 1 / fan_in. Source: LeCun et al. 1998, Efficient BackProp, equation 16."""
    return _uniform(1 / fans(shape)[0], shape, rng)


def zeros(shape: Shape, rng: Any = None) -> Values:
    """Zero everywhere."""
    return np.zeros(shape)


def ones(shape: Shape, rng: Any = None) -> Values:
    """One everywhere."""
    return np.ones(shape)


@dataclass(frozen=True)
class constant:
    """An initialiser that gives `value` everywhere."""

    value: float

    def __post_init__(self) -> None:
        number("value", self.value)

    def __call__(self, shape: Shape, rng: Any = None) -> Values:
        return np.full(shape, float(self.value))


def orthogonal(shape: Shape, rng: np.random.Generator) -> Values:
    """Orthonormal rows (or columns, if there are more units than inputs). Source: Saxe et al. 2014, section 3."""
    rows, columns = shape[0], math.prod(shape[1:])
    q = orthonormal(standard_normal(rng, (max(rows, columns), min(rows, columns))).T)
    return np.ascontiguousarray(q.T if rows >= columns else q).reshape(shape)


def dirac(shape: Shape, rng: Any = None) -> Values:
    """Filters that pass channel i on to output i, in each group, the rest zero: a convolution that starts as the identity."""
    values = np.zeros(shape)
    by_group = _by_group(values, shape)
    _, filters, kh, kw, channels = by_group.shape
    same = np.arange(min(filters, channels))
    by_group[:, same, (kh - 1) // 2, (kw - 1) // 2, same] = 1
    return values


def dirac_uniform(shape: Shape, rng: np.random.Generator) -> Values:
    """Like `dirac`, but filters beyond the channels of a group are random: uniform with variance 1 / (3 fan_in).

    Source: Jordan 2024, 94% on CIFAR-10 in 3.29 seconds, section 3.2.
    """
    values = _uniform(1 / (3 * fans(shape)[0]), shape, rng)
    _by_group(values, shape)[:, : shape[-1]] = _by_group(dirac(shape), shape)[:, : shape[-1]]
    return values


def _by_group(values: Values, shape: Shape) -> Values:
    """Filters (F, kh, kw, channels) as (groups, F / groups, kh, kw, channels): an input reaches the filters of its group."""
    if len(shape) != 4:
        raise ValueError(f"dirac initialises convolutions (filters, kh, kw, channels), not {shape}")
    _, kh, kw, _ = shape
    return values.reshape(-1, fans(shape)[1] // (kh * kw), *shape[1:])


class whitening:
    """Filters that whiten patches: the eigenvectors of their covariance, each divided by sqrt(eigenvalue + eps).

    images: (N, H, W, C), a few thousand, scaled like the convolution's inputs. The initialiser gives W (filters, kh, kw, C):
    the eigenvectors e_i, largest eigenvalue first, then -e_i, repeated to fill all filters. Raises ValueError for other
    shapes and for values that are not finite.
    Source: Page 2019, How to train your ResNet, part 8; with both signs Jordan 2024, section 3.1.
    """

    def __init__(self, images: Any, *, eps: float = 5e-4) -> None:
        self.images, self.eps = images, number("eps", eps, least=0)

    def __call__(self, shape: Shape, rng: Any = None) -> Values:
        images = np.asarray(self.images, np.float64)
        filters, kh, kw, channels = shape if len(shape) == 4 else (0, 0, 0, 0)
        if images.ndim != 4 or channels != images.shape[3]:
            raise ValueError(f"whitening of images {images.shape} cannot initialise {shape}")
        if not np.isfinite(images).all():
            raise ValueError("whitening needs images of finite values")
        windows = np.lib.stride_tricks.sliding_window_view(images, (kh, kw), axis=(1, 2))  # (N, OH, OW, C, kh, kw)
        patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, kh * kw * channels)
        patches = patches - patches.mean(axis=0)
        values, vectors = eigenvectors(product(patches.T, patches) / max(1, len(patches) - 1))
        whitened = vectors / np.sqrt(values + float(self.eps))[:, None]
        both = np.concatenate([whitened, -whitened])
        return both[np.arange(filters) % len(both)].reshape(shape)

    def __repr__(self) -> str:
        return f"whitening({shortened(self.images)}, eps={self.eps})"


def _normal(variance: float, shape: Shape, rng: np.random.Generator) -> Values:
    return np.asarray(math.sqrt(variance) * standard_normal(rng, shape))


def _uniform(variance: float, shape: Shape, rng: np.random.Generator) -> Values:
    limit = math.sqrt(3 * variance)
    return 2 * limit * rng.random(shape) - limit  # rng.uniform may fuse the two operations


_FUNCTIONS = (
    he_normal,
    he_uniform,
    glorot_normal,
    glorot_uniform,
    lecun_normal,
    lecun_uniform,
    zeros,
    ones,
    orthogonal,
    dirac,
    dirac_uniform,
)
_NAMED: dict[str, Initialiser] = {function.__name__: function for function in _FUNCTIONS}


def find(init: str | Initialiser) -> Initialiser:
    """The initialiser of that name, or the function itself; raises ValueError for an unknown name."""
    if callable(init) and not isinstance(init, type):
        return init
    if isinstance(init, str) and init in _NAMED:
        return _NAMED[init]
    raise ValueError(f"init must be one of {', '.join(_NAMED)}, or a function (shape, rng) -> array, not {shortened(init)}")


def initialiser(init: str | Initialiser) -> str | Initialiser:
    """`init`, unchanged; raises ValueError if it is not an initialiser."""
    find(init)
    return init


def initial_values(seed: int) -> Callable[[str | Initialiser, Shape], Any]:
    """A function (init, shape) -> values that draws from one generator of this seed, on the host."""
    rng = np.random.default_rng(int(seed))
    return lambda init, shape: find(init)(shape, rng)
