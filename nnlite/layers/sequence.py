"""Convolution and pooling of sequences (N, T, C)."""

from typing import Any, Literal

from nnlite.arguments import flag, sequence_padding, shortened, whole
from nnlite.backend import Array, Memory
from nnlite.errors import ShapeError
from nnlite.init import initialiser
from nnlite.layers.base import Context, Init, Layer, Shape
from nnlite.layers.conv import Conv2D
from nnlite.layers.pool import AvgPool2D, MaxPool2D

Sides = int | tuple[int, int] | Literal["same", "valid"]


def _of_row(padding: Any) -> Any:
    """The padding of an image of one row."""
    if isinstance(padding, str):
        return padding
    return (0, 0), padding if isinstance(padding, list | tuple) else (padding, padding)


class OfSequences(Layer):
    """A layer of images for sequences (N, T, C): images (N, 1, T, C) of one row. Only here is the axis added and removed."""

    shares_memory = False

    def of_rows(self, length: int) -> Any:
        """The layer of images, for sequences of this length."""
        raise NotImplementedError

    def build(self, in_shape: Shape) -> Shape:
        if len(in_shape) != 2:
            raise ShapeError(f"expects sequences of shape (length, channels), got {shortened(in_shape)}")
        self.inner = self.of_rows(in_shape[0])
        self.inner.backend = self.backend
        out_shape: Shape = self.inner.declare_shapes((1, *in_shape))
        return out_shape[1:]

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.aim(ctx.persist_batch("rows", (len(a), *self.inner.out_shape), a.dtype))
        return self.inner.forward(a[:, None], ctx)[:, 0]

    def backward(self, delta: Array, ctx: Context) -> Array | None:
        if ctx.needs_delta:
            ctx.aim(ctx.persist_batch("delta of rows", (len(delta), 1, *self.in_shape), delta.dtype))
        da = self.inner.backward(delta[:, None], ctx)
        return None if da is None else da[:, 0]

    def flops(self) -> int:
        return int(self.inner.flops())

    def weights(self) -> int:
        return int(self.inner.weights())

    def temporaries(self) -> int:
        return int(self.inner.temporaries())


class Conv1D(OfSequences):
    """z[t] = W patch(a, t) + b: a Dense layer on every stretch of a sequence, with the same weights.

    a: (N, T, C)   W: (filters, k, C / groups)   b: (filters,)   z: (N, OT, filters)
    OT = (T + padding - dilation (k - 1) - 1) // stride + 1.   Backward: as for `Conv2D`.

    kernel_size (k), stride, padding, dilation: whole numbers; padding also (before, after), "valid" (none) or "same"
    (OT = ceil(T / stride), surplus behind).  groups, bias, init: as for `Conv2D`.  Raises ShapeError for inputs that are not
    sequences, a kernel larger than the padded input, and groups that do not divide the channels and the filters.
    """

    keeps = "input"

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: Sides = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        init: Init = "he_normal",
    ) -> None:
        self.filters, self.kernel_size = whole("filters", filters, 1), whole("kernel_size", kernel_size, 1)
        self.stride, self.padding, self.dilation = (
            whole("stride", stride, 1),
            sequence_padding(padding),
            whole("dilation", dilation, 1),
        )
        self.groups, self.bias, self.init = whole("groups", groups, 1), flag("bias", bias), initialiser(init)

    def of_rows(self, length: int) -> Conv2D:
        return Conv2D(
            self.filters,
            (1, self.kernel_size),
            stride=(1, self.stride),
            padding=_of_row(self.padding),
            dilation=(1, self.dilation),
            groups=self.groups,
            bias=self.bias,
            init=self.init,
        )

    def build(self, in_shape: Shape) -> Shape:
        out_shape = super().build(in_shape)
        (filters, _, k, channels), groups = self.inner.declared["W"].shape, int(self.groups)
        self.declare("W", (filters, k, channels), self.init, fan_out=filters // groups * k)
        if self.bias:
            self.declare("b", (filters,), "zeros")
        return out_shape

    def bind(self, name: str, view: Array) -> None:
        super().bind(name, view)
        self.inner.bind(name, view[:, None] if name == "W" else view)

    def prepare(self, memory: Memory) -> Any:
        return self.inner.prepare(memory)


class _Pooling1D(OfSequences):
    """What both poolings of sequences share."""

    keeps, gives_probabilities = None, None

    def _of_rows(self, kind: Any, **options: Any) -> Any:
        stride = self.size if self.stride is None else self.stride
        options |= {"padding": _of_row(self.padding), "dilation": (1, self.dilation), "ceil_mode": self.ceil_mode}
        return kind((1, self.size), (1, stride), **options)


class MaxPool1D(_Pooling1D):
    """y[t] = the largest a of each window, channel by channel.     a: (N, T, C)   y: (N, OT, C)

    OT = (T + padding - dilation (size - 1) - 1) // stride + 1.   Backward: as for `MaxPool2D`.

    size, stride (default: size), padding, dilation: whole numbers; padding also (before, after), "valid" or "same".  ceil_mode:
    as for `MaxPool2D`.  Raises ShapeError for inputs that are not sequences, a window that does not fit or meets only padding.
    """

    def __init__(
        self, size: int, stride: int | None = None, *, padding: Sides = 0, dilation: int = 1, ceil_mode: bool = False
    ) -> None:
        self.size, self.stride = whole("size", size, 1), None if stride is None else whole("stride", stride, 1)
        self.padding, self.dilation = sequence_padding(padding), whole("dilation", dilation, 1)
        self.ceil_mode = flag("ceil_mode", ceil_mode)

    def of_rows(self, length: int) -> Layer:
        layer: MaxPool2D = self._of_rows(MaxPool2D)
        return layer


class AvgPool1D(_Pooling1D):
    """y[t] = the mean of a over each window, channel by channel.     a: (N, T, C)   y: (N, OT, C)

    Backward: as for `AvgPool2D`.

    size, stride, padding, dilation, ceil_mode: as for `MaxPool1D`.  count_padding: as for `AvgPool2D`.  Raises ShapeError as
    `MaxPool1D`.
    """

    def __init__(
        self,
        size: int,
        stride: int | None = None,
        *,
        padding: Sides = 0,
        dilation: int = 1,
        ceil_mode: bool = False,
        count_padding: bool = True,
    ) -> None:
        self.size, self.stride = whole("size", size, 1), None if stride is None else whole("stride", stride, 1)
        self.padding, self.dilation = sequence_padding(padding), whole("dilation", dilation, 1)
        self.ceil_mode, self.count_padding = flag("ceil_mode", ceil_mode), flag("count_padding", count_padding)

    def of_rows(self, length: int) -> Layer:
        layer: AvgPool2D = self._of_rows(AvgPool2D, count_padding=self.count_padding)
        return layer


class GlobalMaxPool1D(_Pooling1D):
    """y = the largest a along the sequence, channel by channel.     a: (N, T, C)   y: (N, C)

    Backward: each delta goes to the place that was largest; among equal ones the first.
    Raises ShapeError for inputs that are not sequences.
    """

    def of_rows(self, length: int) -> Layer:
        return MaxPool2D((1, length))

    def build(self, in_shape: Shape) -> Shape:
        return super().build(in_shape)[1:]

    def forward(self, a: Array, ctx: Context) -> Array:
        return super().forward(a, ctx)[:, 0]

    def backward(self, delta: Array, ctx: Context) -> Array | None:
        return super().backward(delta[:, None], ctx)
