"""Convolutions of fixed shapes as plans. Images are (N, H, W, C), filters W (F, kh, kw, C / groups).

A plan is made when a model is built, prepared once a pass, used by the shards, and finished once a pass:

    filters = plan.prepare(W, b)                            what all shards share
    z = plan.forward(a, filters, memory, out)               z = W patch(a) + b
    plan.weight_gradient(a, delta, memory, work)            a shard's part, in the plan's own form, of `work_size` values
    da = plan.input_gradient(delta, filters, memory, out)   after weight_gradient, where both are wanted
    plan.finish(work, dW, db)                               from the sum of all parts
"""

from typing import TYPE_CHECKING, Any

from nnlite.backend.window import Array, Window

if TYPE_CHECKING:
    from nnlite.backend.base import Backend
    from nnlite.backend.memory import Memory


class ConvPlan:
    """Convolution as a product with patches (im2col), for every shape.

        forward           z       = P [W b]'          P: (N OH OW, kh kw C + 1), the patches, each with a 1 at its end
        weight gradient   [dW db] = delta' P          delta: (N OH OW, F)
        input gradient    da      = col2im(delta W)   each patch's deltas are added back to the pixels it was cut from

    The column of ones makes the bias a part of both products. With groups there is one product for each.
    """

    def __init__(self, backend: "Backend", window: Window, filters: int, groups: int, bias: bool) -> None:
        self.backend, self.window, self.filters, self.groups, self.bias = backend, window, filters, groups, bias
        kh, kw = window.kernel
        self.channels = window.in_shape[2] // groups
        self.patch = kh * kw * self.channels
        self.row = self.patch + bias  # values of a row of P
        self.positions = window.out_size[0] * window.out_size[1]
        self.out_shape = (*window.out_size, filters)
        self.work_size = filters * self.row
        self.temporaries = self.positions * self.row * groups  # values of the patches of one image

    def prepare(self, W: Array, b: Array | None) -> Any:
        """[W b] as (groups, filters / groups, row)."""
        W = W.reshape(self.groups, -1, self.patch)
        if b is None:
            return W
        return self.backend.xp.concatenate([W, b.reshape(self.groups, -1, 1)], axis=2)

    def forward(self, a: Array, filters: Any, memory: "Memory", out: Array | None) -> Array:
        """z, (N, OH, OW, F)."""
        z = self._out((len(a), *self.out_shape), a.dtype, out)
        self.backend.xp.matmul(self._patches(a, memory), filters.transpose(0, 2, 1), out=self._grouped(z))
        return z

    def weight_gradient(self, a: Array, delta: Array, memory: "Memory", work: Array) -> None:
        """delta' P."""
        patches = memory.kept("patches")
        if patches is None:
            patches = self._patches(a, memory)
        work = work.reshape(self.groups, -1, self.row)
        self.backend.xp.matmul(self._grouped(delta).transpose(0, 2, 1), patches, out=work)

    def input_gradient(self, delta: Array, filters: Any, memory: "Memory", out: Array | None) -> Array:
        """col2im(delta W), (N, H, W, C)."""
        window, n = self.window, len(delta)
        columns = self.backend.scratch("columns", (self.groups, n * self.positions, self.patch), delta.dtype)
        self.backend.xp.matmul(self._grouped(delta), filters[:, :, : self.patch], out=columns)
        da = self._out((n, *window.in_shape), delta.dtype, out)
        padded = da
        if window.is_padded:
            padded = self.backend.scratch("padded", (n, *window.padded_size, window.in_shape[2]), delta.dtype)
        padded[...] = 0
        # (groups, N, OH, OW, taps, C / groups) -> (taps, N, OH, OW, groups, C / groups)
        spread = columns.reshape(self.groups, n, *window.out_size, -1, self.channels).transpose(4, 1, 2, 3, 0, 5)
        by_group = padded.reshape(*padded.shape[:3], self.groups, self.channels)
        for tap, part in zip(window.taps, spread, strict=True):
            by_group[tap] += part
        if padded is not da:
            da[...] = padded[window.interior]
        return da

    def finish(self, work: Array, dW: Array, db: Array | None) -> None:
        """[dW db], taken apart."""
        work = work.reshape(self.filters, self.row)
        dW[...] = work[:, : self.patch].reshape(dW.shape)
        if db is not None:
            db[...] = work[:, -1]

    def _patches(self, a: Array, memory: "Memory") -> Array:
        """P, (groups, N OH OW, row)."""
        window, n, c = self.window, len(a), self.channels
        image, (sh, sw), (dh, dw) = self._pad(a), window.stride, window.dilation
        size = (self.groups, n * self.positions, self.row)
        patches = memory.keep_if_swept("patches", size, a.dtype)
        if patches is None:
            patches = self.backend.scratch("patches", size, a.dtype)
        strided, shape = self.backend.strided, (self.groups, n, *window.out_size, *window.kernel, c)
        s, p = image.strides, patches.strides
        source = strided(image, shape, (s[3] * c, s[0], s[1] * sh, s[2] * sw, s[1] * dh, s[2] * dw, s[3]))
        # Rows of P may end with a 1, so the patches in it are no plain reshape.
        rows = [p[1] * k for k in (self.positions, window.out_size[1], 1)]
        target = strided(patches, shape, (p[0], *rows, p[2] * window.kernel[1] * c, p[2] * c, p[2]))
        target[...] = source
        if self.bias:
            patches[..., -1] = 1
        return patches

    def _pad(self, a: Array) -> Array:
        if not self.window.is_padded:
            return a
        padded = self.backend.scratch("padded", (len(a), *self.window.padded_size, a.shape[3]), a.dtype)
        for border in self.window.borders():
            padded[border] = 0
        padded[self.window.interior] = a
        return padded

    def _out(self, shape: tuple[int, ...], dtype: Any, out: Array | None) -> Array:
        return self.backend.xp.empty(shape, dtype) if out is None else out

    def _grouped(self, z: Array) -> Array:
        """(N, OH, OW, F) seen as (groups, N OH OW, F / groups)."""
        return z.reshape(-1, self.groups, self.filters // self.groups).transpose(1, 0, 2)


class PointwisePlan(ConvPlan):
    """A 1 x 1 convolution of stride 1 without padding: its patches are its pixels, so it is a plain product."""

    def __init__(self, backend: "Backend", window: Window, filters: int, bias: bool) -> None:
        super().__init__(backend, window, filters, 1, bias)
        self.temporaries = 0

    def prepare(self, W: Array, b: Array | None) -> Any:
        return W.reshape(self.filters, -1), b

    def forward(self, a: Array, filters: Any, memory: "Memory", out: Array | None) -> Array:
        W, b = filters
        z = self.backend.xp.matmul(a, W.T, out=out)
        if b is not None:
            z += b
        return z

    def weight_gradient(self, a: Array, delta: Array, memory: "Memory", work: Array) -> None:
        xp, work = self.backend.xp, work.reshape(self.row, self.filters)
        delta = delta.reshape(-1, self.filters)
        xp.matmul(a.reshape(len(delta), -1).T, delta, out=work[: self.channels])
        if self.bias:
            work[-1] = self.backend.column_sums(delta)

    def input_gradient(self, delta: Array, filters: Any, memory: "Memory", out: Array | None) -> Array:
        return self.backend.xp.matmul(delta, filters[0], out=out)

    def finish(self, work: Array, dW: Array, db: Array | None) -> None:
        work = work.reshape(self.row, self.filters)
        dW[...] = work[: self.channels].T.reshape(dW.shape)
        if db is not None:
            db[...] = work[-1]


class DepthwisePlan(ConvPlan):
    """One filter for each channel: a weighted sum of shifted images, tap by tap, without patches."""

    def __init__(self, backend: "Backend", window: Window, filters: int, bias: bool) -> None:
        super().__init__(backend, window, filters, filters, bias)
        self.temporaries = self.positions * filters

    def prepare(self, W: Array, b: Array | None) -> Any:
        return self.backend.xp.ascontiguousarray(W.reshape(self.filters, -1).T), b  # (taps, C)

    def forward(self, a: Array, filters: Any, memory: "Memory", out: Array | None) -> Array:
        xp, image, (W, b) = self.backend.xp, self._pad(a), filters
        z = self._out((len(a), *self.out_shape), a.dtype, out)
        product = self.backend.scratch("product", z.shape, z.dtype)
        z[...] = 0 if b is None else b
        for tap, w in zip(self.window.taps, W, strict=True):
            z += xp.multiply(image[tap], w, out=product)
        return z

    def weight_gradient(self, a: Array, delta: Array, memory: "Memory", work: Array) -> None:
        image, work = self._pad(a), work.reshape(self.row, self.filters)
        for k, tap in enumerate(self.window.taps):
            self.backend.xp.einsum("nhwc,nhwc->c", image[tap], delta, out=work[k])
        if self.bias:
            work[-1] = self.backend.column_sums(delta.reshape(-1, self.filters))

    def input_gradient(self, delta: Array, filters: Any, memory: "Memory", out: Array | None) -> Array:
        xp, window = self.backend.xp, self.window
        da = self._out((len(delta), *window.in_shape), delta.dtype, out)
        padded = da
        if window.is_padded:
            padded = self.backend.scratch("padded", (len(delta), *window.padded_size, self.filters), delta.dtype)
        product = self.backend.scratch("product", delta.shape, delta.dtype)
        padded[...] = 0
        for tap, w in zip(window.taps, filters[0], strict=True):
            padded[tap] += xp.multiply(delta, w, out=product)
        if padded is not da:
            da[...] = padded[window.interior]
        return da

    def finish(self, work: Array, dW: Array, db: Array | None) -> None:
        work = work.reshape(self.row, self.filters)
        dW[...] = work[: self.patch].T.reshape(dW.shape)
        if db is not None:
            db[...] = work[-1]
