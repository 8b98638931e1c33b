"""Convolutions of fixed shapes as plans. Images are (N, H, W, C), filters W (F, kh, kw, C / groups).

Results, and the `out` that they may be written to, are stored in the order of `backend.lay_out`, on the CPU (H, W, N, C);
inputs and deltas may have any order. A plan is made when a model is built, prepared once a pass, and used by all shards:

    filters = plan.prepare(W, b, memory)                    what all shards share
    z = plan.forward(a, filters, memory, out)               z = W patch(a) + b, and with relu=True max(z, 0)
    plan.weight_gradient(a, delta, memory, dW, db)          a shard's part
    da = plan.input_gradient(delta, filters, memory, out)   a shard's
    da = plan.gradients(a, delta, filters, memory, dW, db, out)   both, sharing what they can
"""

from collections.abc import Callable
from typing import Any

from nnlite.backend.memory import Memory
from nnlite.backend.operations import Operations
from nnlite.backend.pool import max_of_taps, spread_to_taps
from nnlite.backend.window import Array, Pair, Window

JOINED = 64  # channels of a block of groups


class ConvPlan:
    """Convolution as a product with patches (im2col), for every shape.

        forward           z       = P [W b]'          P: (N OH OW, kh kw C + 1), the patches, each ending with a 1
        weight gradient   dW      = delta' P          delta: (N OH OW, F), P without the ones
        input gradient    da      = col2im(delta W)   deltas are added back, tap by tap, to the pixels they came from

    The column of ones makes the bias part of the product. With groups there is one product per group.

    pool: (height, width) of a max-pooling of the outputs, which then belongs to the plan. The rows of P come in the order
    (tap of the pool, row, column, n), so that pooling is the maximum of a few long contiguous arrays.
    normalizes: whether it normalises and rectifies inputs that a batch norm left to it.
    """

    normalizes = False

    def __init__(self, backend: Operations, window: Window, filters: int, groups: int, bias: bool, pool: Pair = (1, 1)) -> None:
        self.backend, self.window, self.filters, self.groups, self.bias = backend, window, filters, groups, bias
        self.pool, self.taps = pool, pool[0] * pool[1]
        kh, kw = window.kernel
        self.channels = window.in_shape[2] // groups
        self.patch = kh * kw * self.channels
        self.row = self.patch + bias  # values in a row of P
        self.positions = window.out_size[0] * window.out_size[1]
        self.out_shape = (window.out_size[0] // pool[0], window.out_size[1] // pool[1], filters)
        self.weights = self.row * filters  # values in the prepared filters
        # Per image: its patches, and its outputs if only their maxima leave the plan.
        self.temporaries = self.positions * (self.row * groups + (filters if self.taps > 1 else 0))

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        """[W b]' as (groups, row, filters / groups), and W tap by tap as (kh kw, groups, filters / groups, channels)."""
        prepared = memory.persist("filters", (self.groups, self.row, self.filters // self.groups), W.dtype)
        prepared[:, : self.patch] = W.reshape(self.groups, -1, self.patch).transpose(0, 2, 1)
        if b is not None:
            prepared[:, -1] = b.reshape(self.groups, -1)
        shape = (self.patch // self.channels, self.groups, self.filters // self.groups, self.channels)
        by_tap = memory.persist("by tap", shape, W.dtype)
        by_tap[...] = W.reshape(*shape[1:3], -1, self.channels).transpose(2, 0, 1, 3)
        return prepared, by_tap

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None, relu: bool = False) -> Array:
        """z, (N, OH, OW, F), or its pooled maxima."""
        memory.forget("delta")
        z = self._out((len(a), *self.out_shape), a.dtype, out)
        pixels = self.backend.row_view(z)
        taps = pixels if self.taps == 1 else self.backend.scratch("taps", (self.taps, *pixels.shape), a.dtype)
        self.backend.matmul(self._patches(a, memory), filters[0], self._grouped(taps))
        if self.taps > 1:
            max_of_taps(self.backend.xp, taps, memory, pixels)
        return self.backend.relu(z, z) if relu else z

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        """delta' P."""
        patches = memory.kept("patches")
        if patches is None:
            patches = self._patches(a, memory)
        gradient = self.backend.matmul_rows(patches[..., : self.patch], self._grouped(self._before_pool(delta, memory)))
        dW.reshape(self.groups, -1, self.patch)[...] = gradient.transpose(0, 2, 1)
        if db is not None:
            db[...] = self.backend.column_sums(self.backend.rows(delta))  # pooling only spreads it

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        """col2im(delta W), (N, H, W, C)."""
        window, n, (th, tw), (_, W) = self.window, len(delta), self.pool, filters
        delta = self._grouped(self._before_pool(delta, memory))
        columns = self.backend.scratch("columns", (len(W), self.groups, n * self.positions, self.channels), delta.dtype)
        self.backend.matmul(delta[None], W, columns)
        # (kh kw, groups, th, tw, PH, PW, N, C / groups) -> (kh kw, PH, th, PW, tw, N, groups, C / groups)
        size = (-1, self.groups, th, tw, *self.out_shape[:2], n, self.channels)
        spread = columns.reshape(size).transpose(0, 4, 2, 5, 3, 6, 1, 7)
        # One plane for each remainder by the stride: in it a tap meets neighbouring pixels.
        planes = self.backend.scratch("planes", (*window.stride, *window.plane_size, n, window.in_shape[2]), delta.dtype)
        planes[...] = 0
        by_group = planes.reshape(*planes.shape[:5], self.groups, self.channels)
        for tap, part in zip(window.plane_taps, spread, strict=True):
            target = by_group[tap].reshape(part.shape)
            target += part
        da = self._out((n, *window.in_shape), delta.dtype, out)
        by_pixel = da.transpose(1, 2, 0, 3)
        for place, pixels in window.plane_pixels:
            by_pixel[pixels] = planes[place]
        return da

    def gradients(
        self, a: Array, delta: Array, filters: Any, memory: Memory, dW: Array, db: Array | None, out: Array | None
    ) -> Array | None:
        """Both gradients: `weight_gradient`, then `input_gradient`."""
        self.weight_gradient(a, delta, memory, dW, db)
        return self.input_gradient(delta, filters, memory, out)

    def _before_pool(self, delta: Array, memory: Memory) -> Array:
        """The delta of the convolution's outputs, in the order of P; kept for whichever gradient is computed second."""
        if self.taps == 1:
            return self.backend.rows(delta)
        taps = memory.kept("delta")
        if taps is None:
            pixels = self.backend.rows(delta)
            taps = memory.keep("delta", self.backend.scratch("delta taps", (self.taps, *pixels.shape), delta.dtype))
            spread_to_taps(self.backend.xp, pixels, memory, taps)
        return taps

    def _patches(self, a: Array, memory: Memory) -> Array:
        """P, (groups, N OH OW, row)."""
        window, n, c = self.window, len(a), self.channels
        (sh, sw), (dh, dw), (th, tw), (ph, pw) = window.stride, window.dilation, self.pool, self.out_shape[:2]
        image = self._pad(a)
        size = (self.groups, n * self.positions, self.row)
        patches = memory.keep_if_swept("patches", size, a.dtype)
        has_ones = patches is not None and memory.kept("ones") is patches  # left by the previous shard
        if patches is None:
            patches = self.backend.scratch("patches", size, a.dtype)
        s, p, (kh, kw) = image.strides, patches.strides, window.kernel
        value = s[3] if image.shape[3] > 1 else image.itemsize  # an axis of one value may have any stride
        # A row of the kernel is contiguous unless it is dilated or a group takes only part of each pixel.
        run = kw * c if dw * s[2] == c * value else c
        strided, shape = self.backend.strided, (self.groups, th, tw, ph, pw, n, kh, kw * c // run, run)
        dy, dx = s[1] * sh, s[2] * sw
        source = strided(image, shape, (value * c, dy, dx, th * dy, tw * dx, s[0], s[1] * dh, s[2] * dw, value))
        # Rows of P may end with a 1, so the patches in it are not a plain reshape.
        rows = [p[1] * k for k in (tw * n * ph * pw, n * ph * pw, n * pw, n, 1)]
        target = strided(patches, shape, (p[0], *rows, p[2] * kw * c, p[2] * run, p[2]))
        self.backend.copy_runs(target, source)
        if self.bias and not has_ones:
            patches[..., -1] = 1
            memory.keep("ones", patches)
        return patches

    def _pad(self, a: Array) -> Array:
        if not self.window.is_padded:
            return a
        padded = self.backend.scratch("padded", (len(a), *self.window.padded_size, a.shape[3]), a.dtype)
        for border in self.window.borders():
            padded[border] = 0
        self.backend.copy_runs(padded[self.window.interior], a)
        return padded

    def _out(self, shape: tuple[int, ...], dtype: Any, out: Array | None) -> Array:
        return self.backend.empty_batch(shape, dtype) if out is None else out

    def _pixels(self, a: Array) -> Array:
        """(N, H, W, C) as (H, W, N C), the order in memory."""
        n, h, w, c = a.shape
        return self.backend.rows(a).reshape(h, w, n * c)

    def _grouped(self, z: Array) -> Array:
        """View (..., rows, F) as (groups, rows of P, F / groups)."""
        return z.reshape(-1, self.groups, self.filters // self.groups).transpose(1, 0, 2)


class PointwisePlan(ConvPlan):
    """A 1 x 1 convolution of stride 1 without padding: its patches are its pixels, so it is a plain product."""

    def __init__(self, backend: Operations, window: Window, filters: int, bias: bool) -> None:
        super().__init__(backend, window, filters, 1, bias)
        self.temporaries = 0

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        return W.reshape(self.filters, -1), b

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None, relu: bool = False) -> Array:
        W, b = filters
        z = self._out((len(a), *self.out_shape), a.dtype, out)
        pixels = self.backend.row_view(z)
        self.backend.matmul(self.backend.rows(a), W.T, pixels)
        if b is not None:
            pixels += b
        return self.backend.relu(z, z) if relu else z

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        delta = self.backend.rows(delta)
        dW.reshape(self.filters, -1)[...] = self.backend.matmul_rows(delta, self.backend.rows(a))
        if db is not None:
            db[...] = self.backend.column_sums(delta)

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        da = self._out((len(delta), *self.window.in_shape), delta.dtype, out)
        self.backend.matmul(self.backend.rows(delta), filters[0], self.backend.row_view(da))
        return da


class DepthwisePlan(ConvPlan):
    """One filter per channel: a weighted sum of shifted images, tap by tap, without patches."""

    def __init__(self, backend: Operations, window: Window, filters: int, bias: bool) -> None:
        super().__init__(backend, window, filters, filters, bias)
        self.temporaries = self.positions * filters

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        return self.backend.xp.ascontiguousarray(W.reshape(self.filters, -1).T), b  # (taps, C)

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None, relu: bool = False) -> Array:
        xp, n, (W, b) = self.backend.xp, len(a), filters
        image, z = self._padded_pixels(a), self._out((n, *self.out_shape), a.dtype, out)
        pixels = self._pixels(z)
        product = self.backend.scratch("product", pixels.shape, z.dtype)
        pixels[...] = 0 if b is None else xp.tile(b, n)
        for (_, *tap), w in zip(self.window.taps, xp.tile(W, n), strict=True):
            pixels += xp.multiply(image[tuple(tap)], w, out=product)
        return self.backend.relu(z, z) if relu else z

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        image, pixels, dW = self._padded_pixels(a), self._pixels(delta), dW.reshape(self.filters, -1)
        for k, (_, *tap) in enumerate(self.window.taps):
            sums = self.backend.column_products(image[tuple(tap)], pixels)
            dW[:, k] = self.backend.column_sums(sums.reshape(len(a), -1))
        if db is not None:
            db[...] = self.backend.column_sums(self.backend.rows(delta))

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        xp, n, window, pixels = self.backend.xp, len(delta), self.window, self._pixels(delta)
        da = self._out((n, *window.in_shape), delta.dtype, out)
        padded = self._pixels(da)
        if window.is_padded:
            padded = self.backend.scratch("padded pixels", (*window.padded_size, n * self.filters), delta.dtype)
        product = self.backend.scratch("product", pixels.shape, delta.dtype)
        padded[...] = 0
        for (_, *tap), w in zip(window.taps, xp.tile(filters[0], n), strict=True):
            part = padded[tuple(tap)]
            part += xp.multiply(pixels, w, out=product)
        if window.is_padded:
            self._pixels(da)[...] = padded[window.interior[1:]]
        return da

    def _padded_pixels(self, a: Array) -> Array:
        """(N, H, W, C) as (padded H, padded W, N C)."""
        if not self.window.is_padded:
            return self._pixels(a)
        padded = self.backend.scratch("padded pixels", (*self.window.padded_size, len(a) * self.filters), a.dtype)
        for _, *border in self.window.borders():
            padded[tuple(border)] = 0
        padded[self.window.interior[1:]] = self._pixels(a)
        return padded


class GroupedPlan(ConvPlan):
    """Groups joined into blocks, each a dense convolution whose filters are zero outside their group.

    A product with many zeros is faster than many small products, up to about JOINED channels. A result that is not finite is
    computed again, so that no zero is multiplied by an infinity or NaN of another group.

    plan_of: makes the plan of a block.
    """

    def __init__(
        self, backend: Operations, window: Window, filters: int, groups: int, bias: bool, plan_of: Callable[..., ConvPlan]
    ) -> None:
        super().__init__(backend, window, filters, groups, bias)
        height, width, channels = window.in_shape
        widest = max(channels, filters) // groups
        self.joined = max(g for g in range(1, groups + 1) if groups % g == 0 and (g == 1 or g * widest <= JOINED))
        self.blocks = groups // self.joined
        self.inputs, self.outputs = channels // self.blocks, filters // self.blocks  # channels of a block
        block = Window((height, width, self.inputs), window.kernel, window.stride, window.dilation, window.padding)
        self.block_plan = plan_of(block, self.outputs, 1, bias)
        self.weights = self.blocks * self.block_plan.weights
        self.temporaries = self.block_plan.temporaries + height * width * self.inputs + self.positions * self.outputs

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        """The prepared filters of each block."""
        prepared = []
        for k in range(self.blocks):
            part = memory.part(k)
            dense = part.persist("dense", (self.outputs, *self.window.kernel, self.inputs), W.dtype)  # plans may keep it
            dense[...] = 0
            for i in range(self.joined):
                self._group(dense, i)[...] = self._filters(W, k)[i]
            bias = None if b is None else b.reshape(self.blocks, -1)[k]
            prepared.append(self.block_plan.prepare(dense, bias, part))
        return prepared

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None, relu: bool = False) -> Array:
        z = self._out((len(a), *self.out_shape), a.dtype, out)
        for k in range(self.blocks):
            block = self._block("block of a", a, k, self.inputs)
            target = self.backend.scratch_batch("block of z", (*z.shape[:3], self.outputs), z.dtype)
            self.block_plan.forward(block, filters[k], memory.part(k), target)
            self._keep_apart(self.block_plan.forward, block, filters[k], memory, target)
            z[..., self._place(k, self.outputs)] = target
        return self.backend.relu(z, z) if relu else z

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        dense = self.backend.scratch("dense filters", (self.outputs, *self.window.kernel, self.inputs), dW.dtype)
        for k in range(self.blocks):
            bias = None if db is None else db.reshape(self.blocks, -1)[k]
            block, block_delta = self._block("block of a", a, k, self.inputs), self._block("block of z", delta, k, self.outputs)
            self.block_plan.weight_gradient(block, block_delta, memory.part(k), dense, bias)
            memory.part(k).forget_all()  # the next block uses the same scratch memory
            for i in range(self.joined):
                self._filters(dW, k)[i] = self._group(dense, i)

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        da = self._out((len(delta), *self.window.in_shape), delta.dtype, out)
        for k in range(self.blocks):
            block = self._block("block of z", delta, k, self.outputs)
            target = self.backend.scratch_batch("block of a", (*da.shape[:3], self.inputs), da.dtype)
            self.block_plan.input_gradient(block, filters[k], memory.part(k), target)
            self._keep_apart(self.block_plan.input_gradient, block, filters[k], memory, target)
            da[..., self._place(k, self.inputs)] = target
        return da

    def _keep_apart(self, run: Callable[..., Array], block: Array, filters: Any, memory: Memory, result: Array) -> None:
        """If 0 times infinity or NaN spoiled other groups, recompute the finite groups together and the others one by one."""
        if self.backend.waits_for_reads or self.backend.all_finite(result):
            return
        inputs, outputs = ([self._place(i, a.shape[3] // self.joined) for i in range(self.joined)] for a in (block, result))
        finite = [i for i in range(self.joined) if self.backend.all_finite(block[..., inputs[i]])]
        for chosen in (finite, *([i] for i in range(self.joined) if i not in finite)):
            alone, spare = self.backend.xp.zeros_like(block), memory.part(self.blocks)
            for i in chosen:
                alone[..., inputs[i]] = block[..., inputs[i]]
            spare.forget_all()
            part = run(alone, filters, spare, None)
            for i in chosen:
                result[..., outputs[i]] = part[..., outputs[i]]

    def _place(self, k: int, channels: int) -> slice:
        return slice(k * channels, (k + 1) * channels)

    def _block(self, name: str, a: Array, k: int, channels: int) -> Array:
        """The channels of block k, contiguous."""
        block = self.backend.scratch_batch(name, (*a.shape[:3], channels), a.dtype)
        block[...] = a[..., self._place(k, channels)]
        return block

    def _group(self, dense: Array, i: int) -> Array:
        """The part of the dense filters that group i fills."""
        rows, columns = self._place(i, self.outputs // self.joined), self._place(i, self.channels)
        return dense[rows, :, :, columns]

    def _filters(self, W: Array, k: int) -> Array:
        """The filters of block k, group by group."""
        return W.reshape(self.blocks, self.joined, -1, *self.window.kernel, self.channels)[k]
