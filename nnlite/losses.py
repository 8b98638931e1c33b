"""Losses: each returns `(loss, delta)`, the loss J as a float and delta = dJ/dz in the shape of the outputs z."""

from typing import Any, ClassVar

from nnlite.arguments import as_call, number, vector, whole
from nnlite.backend import Array, Backend, backend_of, get_backend
from nnlite.errors import DataError, ShapeError


class NoWeightError(DataError):
    """The weights of a batch add up to zero: it has no mean, and in a longer one it counts nothing."""


class Loss:
    """J = sum over samples of w_n J_n / total,  total = sum of w_n;  without weights the plain mean.

    A sample of weight 0 is not there: whatever its outputs and its target are, loss and delta have nothing of it.
    A subclass writes `per_sample(z, t) -> (J_n, dJ_n/dz_n)` and `check(z_shape, t, dtype) -> t`. `takes_logits`: its y is
    sigmoid or softmax of z, so that a model that ends with one of these is refused by `Trainer`.
    """

    takes_logits: ClassVar[bool] = False

    __repr__ = as_call

    def __call__(self, z: Any, t: Any, sample_weight: Any = None, total: float | None = None) -> tuple[float, Array]:
        """z: (N, ...) outputs   t: targets   sample_weight: (N,) or None   total: what to divide by (None: see above).

        The loss is a float; on a GPU an array of no axes on the device, so that nobody waits: `float(loss)` does.

        A model that gives its batch piece by piece has checked t and passes the whole batch's `total`.
        Raises ShapeError or DataError for targets and weights that do not fit.
        """
        backend = backend_of(z)
        if total is None:
            z = _reals(backend.asarray(z))
            t, sample_weight, total = self.prepare(z.shape, z.dtype, t, sample_weight, backend)
        if sample_weight is not None:
            z = _of_those_there(z, sample_weight)
        losses, delta = self.per_sample(z, t)
        scale = 1 / total if sample_weight is None else (sample_weight / total).astype(z.dtype)
        if sample_weight is not None:
            losses = losses * sample_weight
            scale = _by_sample(scale, z)
        delta *= scale
        return backend.number(losses.sum(dtype="float64")) / total, delta

    def prepare(
        self, z_shape: tuple[int, ...], dtype: Any, t: Any, sample_weight: Any, backend: Backend
    ) -> tuple[Array, Array | None, float]:
        """Targets and weights, checked and on the device of the outputs, and the total to divide by."""
        if z_shape[:1] == (0,):
            raise DataError("the batch is empty")
        # What is on the host is checked there, before it is moved: reading back what is on a device would wait for it.
        on_device = hasattr(t, "__cuda_array_interface__") or hasattr(sample_weight, "__cuda_array_interface__")
        source = backend if on_device else get_backend("cpu")
        t = source.asarray(t)
        if sample_weight is not None:
            sample_weight = source.asarray(sample_weight).astype(dtype)
            if sample_weight.shape != z_shape[:1]:
                raise ShapeError(f"sample_weight must have shape {z_shape[:1]}, not {sample_weight.shape}")
        if t.shape[:1] == z_shape[:1]:
            sample_weight = self.weigh(t, sample_weight, dtype)
            t = t if sample_weight is None else _of_those_there(t, sample_weight)
        t = self.check(z_shape, t, dtype)
        total = self.total(t, sample_weight)
        if total == 0:
            raise NoWeightError("the weights of the samples add up to zero: nothing to average")
        if not total > 0:
            raise DataError(f"the weights of the samples add up to {total}: nothing to average")
        return backend.asarray(t), None if sample_weight is None else backend.asarray(sample_weight), total

    def weigh(self, t: Array, sample_weight: Array | None, dtype: Any) -> Array | None:
        """The weights of the samples, 0 for those that their targets exclude."""
        return sample_weight

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
    ignore_index: samples with this label count as samples of weight 0; default None.
    Raises ValueError for a label_smoothing outside [0, 1) and for class weights that are negative or no sequence of numbers,
    DataError for labels that are not integers or out of range, and for probabilities outside [0, 1]; targets that already lie
    on a GPU are not read back to be checked: a label out of range makes the loss NaN there.
    Source: Bishop 2006, equations 4.108 and 4.109; label smoothing: Szegedy et al. 2015, section 7.
    """

    takes_logits = True

    def __init__(self, *, label_smoothing: float = 0.0, class_weight: Any = None, ignore_index: int | None = None) -> None:
        self.label_smoothing = number("label_smoothing", label_smoothing, least=0, below=1)
        self.class_weight = None if class_weight is None else vector("class_weight", class_weight, least=0)
        self.ignore_index = None if ignore_index is None else whole("ignore_index", ignore_index, None)

    def per_sample(self, z: Array, t: Array) -> tuple[Array, Array]:
        sums_to_one = self.class_weight is None and t.ndim == 1
        return backend_of(z).cross_entropy(z, self._weighted_target(z, t), sums_to_one)

    def weigh(self, t: Array, sample_weight: Array | None, dtype: Any) -> Array | None:
        if self.ignore_index is None or t.size != len(t):
            return sample_weight
        there = t.reshape(-1) != self.ignore_index
        return there.astype(dtype) if sample_weight is None else _of_those_there(sample_weight, there)

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
            q *= 1 - float(self.label_smoothing)
            q += float(self.label_smoothing) / z.shape[1]
        if self.class_weight is not None:
            q *= backend_of(z).asarray(self.class_weight, z.dtype)
        return q


class BinaryCrossEntropy(Loss):
    """J_n = mean over outputs of -(t log y + (1 - t) log(1 - y)),  y = 1 / (1 + exp(-z)).     dJ_n/dz = (y - t) / outputs

    z: (N, ...) logits   t: the same shape, in [0, 1]; (N,) will do for (N, 1).  Raises DataError for other values.
    """

    takes_logits = True

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
        self.threshold = number("threshold", threshold, above=0)

    def per_sample(self, z: Array, t: Array) -> tuple[Array, Array]:
        xp, d, threshold = backend_of(z).xp, z - t, float(self.threshold)
        clipped = xp.clip(d, -threshold, threshold)
        return _mean(clipped * (d - 0.5 * clipped), clipped)


def softmax(z: Any) -> Array:
    """y_i = exp(z_i) / sum over j of exp(z_j), over the last axis: probabilities from logits. ShapeError if that is empty."""
    backend = backend_of(z)
    xp, z = backend.xp, _reals(backend.asarray(z))
    if not z.shape or not z.shape[-1]:
        raise ShapeError(f"softmax expects outputs (..., C), got {z.shape}")
    e = xp.exp(z - z.max(axis=-1, keepdims=True))
    y: Array = e / e.sum(axis=-1, keepdims=True)
    return y


def _by_sample(weight: Array, like: Array) -> Array:
    """(N,) as (N, 1, ...), to be multiplied with `like`."""
    return weight.reshape(-1, *[1] * (like.ndim - 1))


def _of_those_there(values: Array, weight: Array) -> Array:
    """The values of samples whose weight is not zero, and zeros: their own, times zero, may be NaN."""
    there: Array = backend_of(values).xp.where(_by_sample(weight, values), values, values.dtype.type(0))
    return there


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
