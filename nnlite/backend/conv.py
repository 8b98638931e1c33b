"""Convolution as a product with patches (im2col), in all three directions. Images are (N, H, W, C), W (F, kh, kw, C / groups).

forward           z      = P W' + b           P: (N OH OW, kh kw C)   the patches of the padded image
weight gradient   dW     = delta' P           delta: (N OH OW, F)
input gradient    da     = col2im(delta W)    each patch's deltas are added back to the pixels it was cut from
"""

from typing import TYPE_CHECKING, Any

from nnlite.backend.window import Array, Window

if TYPE_CHECKING:
    from nnlite.backend.base import Backend
    from nnlite.backend.memory import Memory


class ConvPlan:
    """A convolution of fixed shapes. Made when a model is built; `prepare` once a step, the rest once a shard.

    `work_shape` is the shape in which shards add up the weight gradient; `finish` turns the sum into dW.
    """

    def __init__(self, backend: "Backend", window: Window, filters: int, groups: int) -> None:
        self.backend, self.window, self.filters, self.groups = backend, window, filters, groups
        kh, kw = window.kernel
        self.channels = window.in_shape[2] // groups
        self.work_shape = (filters, kh, kw, self.channels)
        self.patch_size = kh * kw * self.channels
        self.out_shape = (*window.out_size, filters)
        self.temporaries = self._positions * self.patch_size * groups  # values of the patches of one image

    def prepare(self, W: Array) -> Array:
        """The filters as the products want them: (groups, filters / groups, kh kw C / groups)."""
        return W.reshape(self.groups, self.filters // self.groups, self.patch_size)

    def forward(self, a: Array, b: Array | None, filters: Array, memory: "Memory", out: Array | None) -> Array:
        """z = P W' + b, (N, OH, OW, F)."""
        patches = self._patches(a, memory)
        product = self._product(patches, filters.transpose(0, 2, 1), len(a), out)
        if b is not None:
            product += b
        return product

    def weight_gradient(self, a: Array, delta: Array, memory: "Memory", out: Array) -> None:
        """Write delta' P into `out`, of `work_shape`."""
        patches = memory.kept("patches")
        if patches is None:
            patches = self._patches(a, memory)
        delta = self._grouped(delta)
        self.backend.xp.matmul(delta.transpose(0, 2, 1), patches, out=out.reshape(self.groups, -1, self.patch_size))

    def input_gradient(self, delta: Array, filters: Array, memory: "Memory", out: Array | None) -> Array:
        """da = col2im(delta W), (N, H, W, C)."""
        xp, window, n = self.backend.xp, self.window, len(delta)
        columns = self.backend.scratch("columns", (self.groups, n * self._positions, self.patch_size), delta.dtype)
        xp.matmul(self._grouped(delta), filters, out=columns)
        padded = self._target(n, delta.dtype, out)
        padded[...] = 0
        # (groups, N, OH, OW, taps, C / groups) -> (taps, N, OH, OW, groups, C / groups)
        spread = columns.reshape(self.groups, n, *window.out_size, -1, self.channels).transpose(4, 1, 2, 3, 0, 5)
        by_channel = padded.reshape(n, *window.padded_size, self.groups, self.channels)
        for tap, part in zip(window.taps, spread, strict=True):
            by_channel[tap] += part
        if not window.is_padded:
            return padded
        if out is None:
            return xp.ascontiguousarray(padded[window.interior])
        out[...] = padded[window.interior]
        return out

    def finish(self, work: Array, dW: Array) -> None:
        """Turn the sum over shards into the weight gradient."""
        dW[...] = work

    @property
    def _positions(self) -> int:
        return self.window.out_size[0] * self.window.out_size[1]

    def _patches(self, a: Array, memory: "Memory") -> Array:
        """The patches (groups, N OH OW, kh kw C / groups)."""
        window, n, c = self.window, len(a), self.channels
        image, (sh, sw), (dh, dw) = self._pad(a), window.stride, window.dilation
        s = image.strides
        shape = (self.groups, n, *window.out_size, *window.kernel, c)
        strides = (s[3] * c, s[0], s[1] * sh, s[2] * sw, s[1] * dh, s[2] * dw, s[3])
        view = self.backend.xp.lib.stride_tricks.as_strided(image, shape, strides)
        size = (self.groups, n * self._positions, self.patch_size)
        patches = memory.keep_if_swept("patches", size, a.dtype)
        if patches is None:
            patches = self.backend.scratch("patches", size, a.dtype)
        patches.reshape(shape)[...] = view
        return patches

    def _pad(self, a: Array) -> Array:
        if not self.window.is_padded:
            return a
        padded = self.backend.scratch("padded", (len(a), *self.window.padded_size, a.shape[3]), a.dtype)
        for border in self.window.borders():
            padded[border] = 0
        padded[self.window.interior] = a
        return padded

    def _target(self, n: int, dtype: Any, out: Array | None) -> Array:
        if out is not None and not self.window.is_padded:
            return out
        array: Array = self.backend.xp.empty((n, *self.window.padded_size, self.window.in_shape[2]), dtype)
        return array

    def _product(self, patches: Array, filters: Array, n: int, out: Array | None) -> Array:
        if out is None:
            out = self.backend.xp.empty((n, *self.out_shape), patches.dtype)
        self.backend.xp.matmul(patches, filters, out=self._grouped(out))
        return out

    def _grouped(self, z: Array) -> Array:
        """(N, OH, OW, F) seen as (groups, N OH OW, F / groups)."""
        return z.reshape(-1, self.groups, self.filters // self.groups).transpose(1, 0, 2)
