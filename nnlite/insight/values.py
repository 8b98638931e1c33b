"""What pictures show, as arrays: images, filters, activations, names of classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import class_names, listing, shortened
from nnlite.backend import Array, single_threaded_blas
from nnlite.engine.engine import Engine
from nnlite.errors import DataError
from nnlite.layers.base import Context, Layer
from nnlite.losses import softmax
from nnlite.metrics import Accuracy
from nnlite.metrics.base import to_host
from nnlite.model import Sequential, needs_model


def needs_matplotlib() -> None:
    """Raise ImportError, with the line that installs it, where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("the plots need matplotlib: pip install 'nnlite-numpy[plots]'") from error


def as_classes(classes: Sequence[str] | None, n: int) -> list[str]:
    """The names of n classes, by default their numbers; what Unicode has not, as in old names of folders, is escaped.

    Raises DataError for another number of names.
    """
    if classes is None:
        return [str(i) for i in range(n)]
    names = class_names("classes", classes)
    if len(names) != n:
        raise DataError(f"classes must be the names of {n} classes, not {shortened(classes)}")
    return [str(name).encode(errors="backslashreplace").decode() for name in names]


def as_pictures(images: Any) -> NDArray[Any]:
    """Images as matplotlib draws them: bytes as they are, other values stretched from the least to the largest."""
    images = to_host(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if not images.size or (images.ndim != 3 and images.shape[3:] != (3,)):
        raise DataError(f"images are (N, H, W), (N, H, W, 1) or (N, H, W, 3), at least one, got {images.shape}")
    return images if images.dtype == np.uint8 else _stretched(images, None)


def _stretched(values: NDArray[Any], axes: tuple[int, ...] | None) -> NDArray[np.float64]:
    """From 0 to 1, over all values or along these axes; what is not finite becomes 0."""
    values = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    least, largest = (bound.reduce(values, axes, keepdims=True) for bound in (np.fmin, np.fmax))
    return np.asarray(np.nan_to_num((values - least) / np.maximum(largest - least, 1e-30)))


def two_columns(z: Any, t: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits (N, C), C at least 2, of logits (N, C), (N, 1) or (N,), and labels (N,)."""
    z, t, _ = Accuracy().read(z, t, None)
    return np.hstack([np.zeros_like(z), z]) if z.shape[1] == 1 else z, t


def refuse_nan(z: NDArray[Any]) -> None:
    """Raise DataError where samples have outputs that are not numbers."""
    if bad := int(np.isnan(z).any(axis=tuple(range(1, z.ndim))).sum()):
        raise DataError(f"the outputs of {bad} of {len(z)} samples are not numbers")


def mistakes(z: NDArray[Any], t: NDArray[Any]) -> NDArray[np.int64]:
    """The places of the wrong predictions, the most confident first."""
    wrong = np.flatnonzero(z.argmax(axis=1) != t)
    return np.asarray(wrong[np.argsort(-softmax(z[wrong]).max(axis=1), kind="stable")])


def first_filters(model: Sequential) -> NDArray[np.float64]:
    """The weights of the first layer that has any, as pictures (n, h, w) or (n, h, w, 3), each from 0 to 1."""
    needs_model(model)
    name, W = next(((name, to_host(W)) for name, W in model.named_params().items() if name.endswith("W")), ("", np.zeros(0)))
    if W.ndim == 2 and len(model.in_shape) == 3 and W.shape[1] == np.prod(model.in_shape):
        W = W.reshape(-1, *model.in_shape)
    if W.ndim != 4:
        found = f"the first weights are {name} {W.shape}" if name else "the model has no weights"
        raise DataError(f"{found}: filters are those of a Conv2D, or of a Dense layer that reads whole images")
    if W.shape[-1] != 3:
        W = np.moveaxis(W, -1, 1).reshape(-1, *W.shape[1:3])
    return _stretched(W, tuple(range(1, W.ndim)))


def activations_of(model: Sequential, x: Any, layer: int | str) -> NDArray[Any]:
    """What a layer gives for one sample in inference, without the batch axis. Raises ValueError for another layer."""
    needs_model(model)
    x = model.backend.asarray(x)
    x = x[None] if x.ndim == len(model.in_shape) else x
    if not x.ndim or len(x) != 1:
        raise DataError(f"activations are those of one sample, got {len(x) if x.ndim else x}")
    model(x)  # refuses what does not fit
    found: dict[str, Array] = {}
    engine = Engine(model.children(), model.in_shape, model.vectors, model.seed, rewrite=False)
    watched = engine.wrapped(lambda path, layer: _Seen(path, layer, found), rewrite=False)
    with single_threaded_blas, model.lock.reading(), watched:
        engine.infer(x)
    if str(layer) not in found:
        raise ValueError(f"there is no layer {shortened(str(layer))}: the layers are {listing(found, most=20)}")
    values: NDArray[Any] = to_host(found[str(layer)])[0]
    return values


class _Seen(Layer):
    """A layer whose output is kept."""

    def __init__(self, path: str, layer: Layer, found: dict[str, Array]) -> None:
        self.path, self.layer, self.found = path, layer, found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def forward(self, a: Array, ctx: Context) -> Array:
        result = self.layer.forward(a, ctx)
        self.found[self.path] = result.copy()
        return result
