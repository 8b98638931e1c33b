"""Losses: each returns `(loss, delta)`, the loss J as a float and delta = dJ/dz in the shape of the outputs z."""

import math
from typing import Any, ClassVar

from nnlite.arguments import Configured, class_weights, number, numbers, whole
from nnlite.backend import Array, Backend, backend_of, get_backend
from nnlite.errors import DataError, ShapeError

Shape = tuple[int, ...]


class NoWeightError(DataError):
    """The weights of a batch add up to zero: it has no mean, and contributes nothing to a longer one."""


class Loss(Configured):
    """J = sum over samples of w_n J_n / total,  total = sum of w_n;  without weights the plain mean.

    A sample of weight 0 is ignored: whatever its outputs and target, it adds nothing to loss and delta.
    A subclass writes `per_sample(backend, z, t) -> (J_n, dJ_n/dz_n)`, and also `check` if t has another shape than z. Every
    method is passed the backend of its arrays, usually the model's: `backend.xp` is its NumPy. `takes_logits`: y is
    sigmoid or softmax of z, so `Trainer` refuses a model that ends with one of these.
    """

    takes_logits: ClassVar[bool] = False

    def __call__(self, z: Any, t: Any, sample_weight: Any = None) -> tuple[float, Array]:
        """z: (N, ...) outputs   t: targets   sample_weight: (N,) or None

        The loss is a float; on a GPU a 0-dimensional array on the device, to avoid waiting: `float(loss)` waits.
        Raises ShapeError or DataError for targets and weights that do not fit.
        """
        backend = backend_of(z)
        z = backend.xp.ascontiguousarray(_reals(backend.asarray(z)))  # NumPy sums pairwise only along contiguous rows
        return self.of_rows(backend, z, *self.prepare(z.shape, z.dtype, t, sample_weight, backend))

    def of_rows(self, backend: Backend, z: Array, t: Array, sample_weight: Array | None, total: float) -> tuple[float, Array]:
        """Loss and delta of all samples of a batch, or of some: `prepare` returned the batch's t and weights, and its total."""
        if sample_weight is None:
            losses, delta = self.per_sample(backend, z, t)
            delta *= 1 / total
        else:
            losses, delta = self.per_sample(backend, _of_those_there(backend, z, sample_weight), t)
            losses = losses * _spread(sample_weight, losses)
            delta *= _spread((sample_weight / total).astype(z.dtype), z)
        return backend.total(losses) / total, delta

    def prepare(
        self, z_shape: Shape, dtype: Any, t: Any, sample_weight: Any, backend: Backend
    ) -> tuple[Array, Array | None, float]:
        """Targets and weights, checked and on the device of the outputs, and the total to divide by."""
        if z_shape[:1] == (0,):
            raise DataError("the batch is empty")
        # Host data are checked before they are moved: reading them back from a device would wait for it.
        source = backend
        if backend.has_own_memory and not any(hasattr(data, "__cuda_array_interface__") for data in (t, sample_weight)):
            source = get_backend("cpu")
        t = source.asarray(t)
        if sample_weight is not None:
            sample_weight = source.asarray(sample_weight).astype(dtype)
            if sample_weight.shape != z_shape[:1]:
                raise ShapeError(f"sample_weight must have shape {z_shape[:1]}, not {sample_weight.shape}")
        if t.shape[:1] == z_shape[:1]:
            sample_weight = self.weigh(source, z_shape, t, sample_weight, dtype)
            t = t if sample_weight is None else _of_those_there(source, t, sample_weight)
        t = self.check(source, z_shape, t, dtype)
        total = self.total(source, t, sample_weight)
        if total == 0:
            raise NoWeightError("the weights of the samples add up to zero: nothing to average")
        if not total > 0:
            raise DataError(f"the weights of the samples add up to {total}: nothing to average")
        if source is not backend:
            t, sample_weight = backend.asarray(t), None if sample_weight is None else backend.asarray(sample_weight)
        return t, sample_weight, total

    def weigh(self, backend: Backend, z_shape: Shape, t: Array, sample_weight: Array | None, dtype: Any) -> Array | None:
        """The weights of the samples, or of their positions (N, ...): 0 for those excluded by their targets."""
        return sample_weight

    def total(self, backend: Backend, t: Array, sample_weight: Array | None) -> float:
        """The sum of the weights of all samples."""
        return float(len(t)) if sample_weight is None else float(backend.total(sample_weight))

    def check(self, backend: Backend, z_shape: Shape, t: Array, dtype: Any) -> Array:
        """t as `per_sample` needs it: here, in the shape of z; (N, ...) is accepted for (N, ..., 1)."""
        if len(z_shape) > 1 and (*t.shape, 1) == z_shape:
            t = t.reshape(z_shape)
        if t.shape != z_shape:
            raise ShapeError(f"{type(self).__name__}: the targets have shape {t.shape}, the outputs {z_shape}")
        return t.astype(dtype, copy=False)

    def per_sample(self, backend: Backend, z: Array, t: Array) -> tuple[Array, Array]:
        """J_n (N,), or (N, ...) of positions, and dJ_n/dz_n in the shape of z, both new arrays."""
        raise TypeError(f"{type(self).__name__} has no per_sample")


class CrossEntropy(Loss):
    """J_n = -sum over c of q_c log y_c,  y = softmax(z),  q_c = v_c p_c.     dJ_n/dz = y sum(q) - q

    z: (N, C) logits   t: (N,) or (N, 1) integers or booleans, the labels, or (N, C) probabilities
    z: (N, ..., C)     t: (N, ...) or (N, ..., 1) labels, or (N, ..., C): each position, such as a pixel, counts as a sample

    p is the target: t, or 1 at the label; with label_smoothing s it is (1 - s) p + s / C.
    v: class_weight, (C,) or a dict {class: weight}; default 1, also for classes that are not in the dict.
    Labels are averaged over the sum of class weight x sample weight, probabilities over the sum of sample weights.
    ignore_index: samples, or positions, with this label count as if their weight were 0; default None.
    Raises ValueError for a label_smoothing outside [0, 1) and for class weights that are negative or not numbers, ShapeError
    for more or other classes than the outputs have, DataError for labels that are not integers or out of range, and for
    probabilities outside [0, 1]; targets that are already on a GPU are not read back to be checked: there a label out of
    range makes the loss NaN.
    Source: Bishop 2006, equations 4.108 and 4.109; label smoothing: Szegedy et al. 2015, section 7.
    """

    takes_logits = True

    def __init__(self, *, label_smoothing: float = 0.0, class_weight: Any = None, ignore_index: int | None = None) -> None:
        self.label_smoothing = number("label_smoothing", label_smoothing, least=0, below=1)
        self.class_weight = None if class_weight is None else class_weights("class_weight", class_weight)
        self.ignore_index = None if ignore_index is None else whole("ignore_index", ignore_index, None)

    def per_sample(self, backend: Backend, z: Array, t: Array) -> tuple[Array, Array]:
        if z.ndim == 2 and t.ndim == 1 and self.class_weight is None and not self.label_smoothing:
            return backend.cross_entropy_of_labels(z, t)
        if z.ndim == 2:
            return backend.cross_entropy(z, self._weighted_target(backend, z, t), self.class_weight is None and t.ndim == 1)
        targets = backend.rows(t) if t.ndim == z.ndim else backend.rows(t[..., None])[:, 0]
        losses, delta = self.per_sample(backend, backend.rows(z), targets)
        return backend.lay_out(losses, (*z.shape[:-1], 1))[..., 0], backend.lay_out(delta.reshape(-1), z.shape)

    def weigh(self, backend: Backend, z_shape: Shape, t: Array, sample_weight: Array | None, dtype: Any) -> Array | None:
        if self.ignore_index is None or t.shape == z_shape or t.size != math.prod(z_shape[:-1]):
            return sample_weight
        there = t.reshape(z_shape[:-1]) != self.ignore_index
        return there.astype(dtype) if sample_weight is None else _of_those_there(backend, _spread(sample_weight, there), there)

    def total(self, backend: Backend, t: Array, sample_weight: Array | None) -> float:
        if self.class_weight is None or not _are_labels(t):
            positions = t.shape if _are_labels(t) else t.shape[:-1]
            weighed = 1 if sample_weight is None else sample_weight.ndim
            return super().total(backend, t, sample_weight) * float(math.prod(positions[weighed:]))
        weight = _of_labels(backend, self.class_weight, t)
        return float(backend.total(weight if sample_weight is None else weight * _spread(sample_weight, t)))

    def check(self, backend: Backend, z_shape: Shape, t: Array, dtype: Any) -> Array:
        if len(z_shape) < 2:
            raise ShapeError(f"CrossEntropy expects logits (N, ..., C), got {z_shape}")
        _refuse_other_classes(self.class_weight, z_shape[-1])
        if t.shape == z_shape:
            return _in_unit_interval(backend, t.astype(dtype, copy=False), "CrossEntropy: probabilities")
        if t.shape not in (z_shape[:-1], (*z_shape[:-1], 1)):
            raise ShapeError(f"CrossEntropy: the targets have shape {t.shape}, the logits {z_shape}")
        return _labels(backend, t.reshape(z_shape[:-1]), z_shape[-1])

    def _weighted_target(self, backend: Backend, z: Array, t: Array) -> Array:
        q = backend.one_hot(t, z.shape[1], z.dtype) if t.ndim == 1 else t.copy()
        if self.label_smoothing:
            q *= 1 - float(self.label_smoothing)
            q += float(self.label_smoothing) / z.shape[1]
        if self.class_weight is not None:
            q *= backend.asarray(_by_class(self.class_weight, z.shape[1]), z.dtype)
        return q


class BinaryCrossEntropy(Loss):
    """J_n = -mean over outputs of (q_1 log y + q_0 log(1 - y)),  y = 1 / (1 + exp(-z)),  q_1 = p v_1 t,  q_0 = v_0 (1 - t).

    dJ_n/dz = (y (q_0 + q_1) - q_1) / outputs
    z: (N, ...) logits   t: the same shape, in [0, 1]; (N, ...) is accepted for (N, ..., 1)

    p: pos_weight, a number or one for each of the last axis of outputs; default 1. The divisor of the mean ignores it.
    v: class_weight, (v_0, v_1) or a dict {0: v_0, 1: v_1}; default 1. With it the loss is averaged over the sum of
    sample weight x (v_1 t + v_0 (1 - t)), like CrossEntropy of two classes.
    Raises ValueError for weights that are negative or not numbers, ShapeError for weights of other outputs or classes,
    DataError for targets outside [0, 1]; those already on a GPU are not read back to be checked.
    """

    takes_logits = True

    def __init__(self, *, pos_weight: Any = None, class_weight: Any = None) -> None:
        self.pos_weight: Any = None if pos_weight is None else numbers("pos_weight", pos_weight, least=0)
        self.class_weight = None if class_weight is None else class_weights("class_weight", class_weight)

    def per_sample(self, backend: Backend, z: Array, t: Array) -> tuple[Array, Array]:
        if self.pos_weight is None and self.class_weight is None:
            return _mean(backend, *backend.binary_cross_entropy(z, t))
        v_0, v_1 = (1.0, 1.0) if self.class_weight is None else _by_class(self.class_weight, 2)
        p = backend.asarray(1.0 if self.pos_weight is None else self.pos_weight, t.dtype)
        return _mean(backend, *backend.weighted_binary_cross_entropy(z, t, v_0, v_1 * p))

    def total(self, backend: Backend, t: Array, sample_weight: Array | None) -> float:
        if self.class_weight is None:
            return super().total(backend, t, sample_weight)
        v_0, v_1 = _by_class(self.class_weight, 2)
        v = v_0 * (1 - t) + v_1 * t
        return float(backend.total(v if sample_weight is None else v * _spread(sample_weight, v)) / t[0].size)

    def check(self, backend: Backend, z_shape: Shape, t: Array, dtype: Any) -> Array:
        outputs, p = z_shape[-1] if len(z_shape) > 1 else 1, self.pos_weight
        if hasattr(p, "__len__") and len(p) != outputs:
            raise ShapeError(f"pos_weight has {len(p)} values for {outputs} outputs")
        _refuse_other_classes(self.class_weight, 2)
        return _in_unit_interval(backend, super().check(backend, z_shape, t, dtype), "BinaryCrossEntropy: targets")


class MSE(Loss):
    """J_n = mean over outputs of (z - t)^2.     dJ_n/dz = 2 (z - t) / outputs     z, t: (N, ...)"""

    def per_sample(self, backend: Backend, z: Array, t: Array) -> tuple[Array, Array]:
        d = z - t
        return _mean(backend, d * d, 2 * d)


class MAE(Loss):
    """J_n = mean over outputs of |z - t|.     dJ_n/dz = sign(z - t) / outputs     z, t: (N, ...)"""

    def per_sample(self, backend: Backend, z: Array, t: Array) -> tuple[Array, Array]:
        d = z - t
        return _mean(backend, abs(d), backend.xp.sign(d))


class Huber(Loss):
    """J_n = mean over outputs of d^2 / 2 where |d| <= threshold, else threshold (|d| - threshold / 2),  d = z - t.

    dJ_n/dz = clip(d, -threshold, threshold) / outputs     z, t: (N, ...)     threshold: in units of z, default 1.
    Raises ValueError unless threshold is positive.  Source: Huber 1964.
    """

    def __init__(self, threshold: float = 1.0) -> None:
        self.threshold = number("threshold", threshold, above=0)

    def per_sample(self, backend: Backend, z: Array, t: Array) -> tuple[Array, Array]:
        d, threshold = z - t, float(self.threshold)
        clipped = backend.xp.clip(d, -threshold, threshold)
        return _mean(backend, clipped * (d - 0.5 * clipped), clipped)


def softmax(z: Any) -> Array:
    """y_i = exp(z_i) / sum over j of exp(z_j), over the last axis: probabilities from logits. ShapeError if that is empty."""
    backend = backend_of(z)
    xp, z = backend.xp, _reals(backend.asarray(z))
    if not z.shape or not z.shape[-1]:
        raise ShapeError(f"softmax expects outputs (..., C), got {z.shape}")
    return backend.softmax(xp.ascontiguousarray(z))


def _spread(weight: Array, like: Array) -> Array:
    """(N,) as (N, 1, ...), to broadcast with `like`; also the weights of positions."""
    return weight.reshape(*weight.shape, *[1] * (like.ndim - weight.ndim))


def _of_those_there(backend: Backend, values: Array, weight: Array) -> Array:
    """The values of samples with non-zero weight, 0 for the others, whose values times zero may be NaN."""
    return backend.xp.where(_spread(weight, values), values, values.dtype.type(0))


def _reals(z: Array) -> Array:
    """Integers as float64."""
    return z if z.dtype.kind == "f" else z.astype("float64")


def _mean(backend: Backend, losses: Array, delta: Array) -> tuple[Array, Array]:
    """From losses and slopes of each output to those of each sample."""
    outputs = delta[0].size
    if outputs == 1:
        return losses.reshape(-1), delta
    delta /= max(1, outputs)
    return backend.row_means(losses.reshape(len(losses), -1))[:, 0], delta


def _by_class(weight: Any, classes: int) -> list[float]:
    """The weight of each class."""
    return [float(weight.get(c, 1)) for c in range(classes)] if isinstance(weight, dict) else [float(v) for v in weight]


def _of_labels(backend: Backend, weight: Any, t: Array) -> Array:
    """The weight of each label."""
    if not isinstance(weight, dict):
        return backend.asarray(_by_class(weight, len(weight)))[t]
    others = max(map(int, weight), default=0) + 1  # a class that is not in the dict
    return backend.asarray(_by_class(weight, others + 1))[backend.xp.minimum(t.astype("int64"), others)]


def _are_labels(t: Array) -> bool:
    """Whether checked targets are labels: probabilities are floats."""
    return bool(t.dtype.kind in "iu")


def _refuse_other_classes(weight: Any, classes: int) -> None:
    """Raise ShapeError for weights of more, fewer or other classes than there are."""
    if isinstance(weight, dict):
        for c in weight:
            if c >= classes:
                raise ShapeError(f"class_weight has a weight of class {c}, the classes are 0 ... {classes - 1}")
    elif weight is not None and len(weight) != classes:
        raise ShapeError(f"class_weight has {len(weight)} values for {classes} classes")


def _labels(backend: Backend, t: Array, classes: int) -> Array:
    if t.dtype.kind == "b":
        t = t.astype("uint8")
    if t.dtype.kind not in "iu":
        raise DataError(f"labels must be integers, not {t.dtype}")
    if backend.waits_for_reads:
        return t
    low, high = int(t.min()), int(t.max())
    if low < 0 or high >= classes:
        raise DataError(f"labels must be in 0 ... {classes - 1}, found {low if low < 0 else high}")
    return t


def _in_unit_interval(backend: Backend, t: Array, what: str) -> Array:
    if not backend.waits_for_reads and not bool(((t >= 0) & (t <= 1)).all()):
        raise DataError(f"{what} must be in [0, 1]")
    return t
