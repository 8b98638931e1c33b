"""Losses: each returns `(loss, delta)`, the loss J as a float and delta = dJ/dz in the shape of the outputs z."""

from typing import Any

from nnlite.backend import Array, Backend, backend_of, get_backend
from nnlite.errors import DataError, ShapeError


class NoWeightError(DataError):
    """The weights of a batch add up to zero: it has no mean, and in a longer one it counts nothing."""


class Loss:
    """J = sum over samples of w_n J_n / total,  total = sum of w_n;  without weights the plain mean.

    A subclass writes `per_sample(z, t) -> (J_n, dJ_n/dz_n)` and `check(z_shape, t, dtype) -> t`.
    """

    def __call__(self, z: Any, t: Any, sample_weight: Any = None, total: float | None = None) -> tuple[float, Array]:
        """z: (N, ...) outputs   t: targets   sample_weight: (N,) or None   total: what to divide by (None: see above).

        The loss is a float; on a GPU an array of no axes on the device, so that nobody waits: `float(loss)` does.

        A model that gives its batch piece by piece has checked t and passes the whole batch's `total`.
        Raises ShapeError or DataError for targets and weights that do not fit.
        """
        backend = backend_of(z)
        if total is None:
            z = backend.xp.ascontiguousarray(_reals(backend.asarray(z)))  # NumPy's sums along rows lose no digits, others do
            t, sample_weight, total = self.prepare(z.shape, z.dtype, t, sample_weight, backend)
        losses, delta = self.per_sample(z, t)
        scale = 1 / total if sample_weight is None else (sample_weight / total).astype(z.dtype)
        if sample_weight is not None:
            losses = losses * sample_weight
            scale = scale.reshape(-1, *[1] * (z.ndim - 1))  # type: ignore[union-attr]
        delta *= scale
        return backend.number(losses.sum(dtype="float64")) / total, delta

    def prepare(
        self, z_shape: tuple[int, ...], dtype: Any, t: Any, sample_weight: Any, backend: Backend
    ) -> tuple[Array, Array | None, float]:
        """Targets and weights, checked and on the device of the outputs, and the total to divide by."""
        # What is on the host is checked there, before it is moved: reading back what is on a device would wait for it.
        source = backend if hasattr(t, "__cuda_array_interface__") else get_backend("cpu")
        t = backend.asarray(self.check(z_shape, source.asarray(t), dtype))
        if sample_weight is not None:
            sample_weight = backend.asarray(sample_weight).astype(dtype)
            if sample_weight.shape != z_shape[:1]:
                raise ShapeError(f"sample_weight must have shape {z_shape[:1]}, not {sample_weight.shape}")
        total = self.total(t, sample_weight)
        if total == 0:
            raise NoWeightError("the weights of the samples add up to zero: nothing to average")
        if not total > 0:
            raise DataError(f"the weights of the samples add up to {total}: nothing to average")
        return t, sample_weight, total

    def total(self, t: Array, sample_weight: Array | None) -> float:
        """The sum of the weights of all samples."""
        return float(len(t)) if sample_weight is None else float(sample_weight.sum(dtype="float64"))

    def check(self, z_shape: tuple[int, ...], t: Array, dtype: Any) -> Array:
        """t as `per_sample` wants it: here, of the shape of z; (N,) will do for (N, 1)."""
        if t.shape == z_shape[:1] and z_shape[1:] == (1,):
            t = t.reshape(z_shape)
        if t.shape != z_shape:
            raise ShapeError(f"{type(self).__name__}: the targets have shape {t.shape}, the outputs {z_shape}")
        return t.astype(dtype, copy=False)

    def per_sample(self, z: Array, t: Array) -> tuple[Array, Array]:
        """J_n (N,) and dJ_n/dz_n in the shape of z, both new arrays."""
        raise TypeError(f"{type(self).__name__} has no per_sample")


class CrossEntropy(Loss):
    """J_n = -sum over c of q_c log y_c,  y = softmax(z),  q_c = v_c p_c.     dJ_n/dz = y sum(q) - q

    z: (N, C) logits   t: (N,) or (N, 1) integer labels, or (N, C) probabilities

    p is the target: t, or 1 at the label; with label_smoothing s it is (1 - s) p + s / C. v: class_weight (C,), default 1.
    Integer labels are averaged over the sum of class weight x sample weight, probabilities over the sum of sample weights.
    Raises DataError for labels that are not integers or out of range, and for probabilities outside [0, 1]; targets that
    already lie on a GPU are not read back to be checked: a label out of range makes the loss NaN there.
    Source: Bishop 2006, equations 4.108 and 4.109; label smoothing: Szegedy et al. 2015, section 7.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weight: Any = None) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
        self.label_smoothing, self.class_weight = label_smoothing, class_weight

    def per_sample(self, z: Array, t: Array) -> tuple[Array, Array]:
        sums_to_one = self.class_weight is None and t.ndim == 1
        return backend_of(z).cross_entropy(z, self._weighted_target(z, t), sums_to_one)

    def total(self, t: Array, sample_weight: Array | None) -> float:
        if self.class_weight is None or t.ndim > 1:
            return super().total(t, sample_weight)
        weight = backend_of(t).asarray(self.class_weight)[t]
        return float((weight if sample_weight is None else weight * sample_weight).sum(dtype="float64"))

    def check(self, z_shape: tuple[int, ...], t: Array, dtype: Any) -> Array:
        if len(z_shape) != 2:
            raise ShapeError(f"CrossEntropy expects logits (N, C), got {z_shape}")
        if self.class_weight is not None and len(self.class_weight) != z_shape[1]:
            raise ShapeError(f"class_weight has {len(self.class_weight)} values for {z_shape[1]} classes")
        if t.shape == z_shape:
            return _in_unit_interval(t.astype(dtype, copy=False), "CrossEntropy: probabilities")
        if t.shape not in (z_shape[:1], (z_shape[0], 1)):
            raise ShapeError(f"CrossEntropy: the targets have shape {t.shape}, the logits {z_shape}")
        return _labels(t.reshape(-1), z_shape[1])

    def _weighted_target(self, z: Array, t: Array) -> Array:
        q: Array = backend_of(z).one_hot(t, z.shape[1], z.dtype) if t.ndim == 1 else t.copy()
        if self.label_smoothing:
            q *= 1 - self.label_smoothing
            q += self.label_smoothing / z.shape[1]
        if self.class_weight is not None:
            q *= backend_of(z).asarray(self.class_weight, z.dtype)
        return q


class BinaryCrossEntropy(Loss):
    """J_n = mean over outputs of -(t log y + (1 - t) log(1 - y)),  y = 1 / (1 + exp(-z)).     dJ_n/dz = (y - t) / outputs

    z: (N, ...) logits   t: the same shape, in [0, 1]; (N,) will do for (N, 1).  Raises DataError for other values.
    """

    def per_sample(self, z: Array, t: Array) -> tuple[Array, Array]:
        xp = backend_of(z).xp
        e = xp.exp(-abs(z))  # of -|z|, so that nothing overflows
        losses = xp.maximum(z, 0) - z * t + xp.log1p(e)
        return _mean(losses, xp.where(z >= 0, 1, e) / (1 + e) - t)

    def check(self, z_shape: tuple[int, ...], t: Array, dtype: Any) -> Array:
        return _in_unit_interval(super().check(z_shape, t, dtype), "BinaryCrossEntropy: targets")


class MSE(Loss):
    """J_n = mean over outputs of (z - t)^2.     dJ_n/dz = 2 (z - t) / outputs     z, t: (N, ...)"""

    def per_sample(self, z: Array, t: Array) -> tuple[Array, Array]:
        d = z - t
        return _mean(d * d, 2 * d)


class MAE(Loss):
    """J_n = mean over outputs of |z - t|.     dJ_n/dz = sign(z - t) / outputs     z, t: (N, ...)"""

    def per_sample(self, z: Array, t: Array) -> tuple[Array, Array]:
        d = z - t
        return _mean(abs(d), backend_of(z).xp.sign(d))


class Huber(Loss):
    """J_n = mean over outputs of d^2 / 2 where |d| <= threshold, else threshold (|d| - threshold / 2),  d = z - t.

    dJ_n/dz = clip(d, -threshold, threshold) / outputs     z, t: (N, ...)     threshold: in units of z, default 1.
    Raises ValueError unless threshold is positive.  Source: Huber 1964.
    """

    def __init__(self, threshold: float = 1.0) -> None:
        if not threshold > 0:
            raise ValueError(f"threshold must be positive, not {threshold}")
        self.threshold = threshold

    def per_sample(self, z: Array, t: Array) -> tuple[Array, Array]:
        xp, d = backend_of(z).xp, z - t
        clipped = xp.clip(d, -self.threshold, self.threshold)
        return _mean(clipped * (d - 0.5 * clipped), clipped)


def softmax(z: Any) -> Array:
    """y_i = exp(z_i) / sum over j of exp(z_j), over the last axis: probabilities from logits."""
    backend = backend_of(z)
    xp = backend.xp
    z = xp.ascontiguousarray(_reals(backend.asarray(z)))
    e = xp.exp(z - z.max(axis=-1, keepdims=True))
    y: Array = e / e.sum(axis=-1, keepdims=True)
    return y


def _reals(z: Array) -> Array:
    """Integers as float64."""
    return z if z.dtype.kind == "f" else z.astype("float64")


def _mean(losses: Array, delta: Array) -> tuple[Array, Array]:
    """From values and slopes of each output to those of each sample."""
    delta /= max(1, delta[0].size)
    return losses.reshape(len(losses), -1).mean(axis=1), delta


def _labels(t: Array, classes: int) -> Array:
    if t.dtype.kind not in "iu":
        raise DataError(f"labels must be integers, not {t.dtype}")
    if backend_of(t).device != "cpu":
        return t
    low, high = int(t.min()), int(t.max())
    if low < 0 or high >= classes:
        raise DataError(f"labels must be in 0 ... {classes - 1}, found {low if low < 0 else high}")
    return t


def _in_unit_interval(t: Array, what: str) -> Array:
    if backend_of(t).device == "cpu" and not bool(((t >= 0) & (t <= 1)).all()):
        raise DataError(f"{what} must be in [0, 1]")
    return t
