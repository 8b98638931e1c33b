"""The same mathematics as naive loops in float64: a second oracle, written from the definitions alone."""

import itertools
import math

import numpy as np


def pads(size, kernel, stride, dilation, padding):
    """(before, after) of one axis."""
    if padding == "valid":
        return 0, 0
    if padding == "same":
        out = math.ceil(size / stride)
        total = max(0, (out - 1) * stride + dilation * (kernel - 1) + 1 - size)
        return total // 2, total - total // 2
    return both(padding)


def both(value):
    return value if isinstance(value, tuple) else (value, value)


def positions(in_shape, kernel, stride, padding, dilation=(1, 1), ceil_mode=False):
    """Output size, and for each output pixel the list of (tap, its pixel or None, whether the padded image has it)."""
    out, rows, ends = [], [], []
    for axis in (0, 1):
        before, after = pads(in_shape[axis], kernel[axis], stride[axis], dilation[axis], padding[axis])
        steps = (in_shape[axis] + before + after - dilation[axis] * (kernel[axis] - 1) - 1) / stride[axis]
        length = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
        if ceil_mode and (length - 1) * stride[axis] >= in_shape[axis] + before:
            length -= 1
        out.append(length)
        ends.append(in_shape[axis] + after)
        rows.append([[i * stride[axis] + k * dilation[axis] - before for k in range(kernel[axis])] for i in range(length)])

    def taps(i, j):
        for (ki, y), (kj, x) in itertools.product(enumerate(rows[0][i]), enumerate(rows[1][j])):
            inside = 0 <= y < in_shape[0] and 0 <= x < in_shape[1]
            yield (ki, kj), (y, x) if inside else None, y < ends[0] and x < ends[1]

    return out, taps


def conv(a, W, b, delta, stride, padding, dilation, groups):
    """z and, for delta = dJ/dz (None: just z), da, dW, db."""
    stride, dilation, padding = both(stride), both(dilation), both(padding)
    (oh, ow), taps = positions(a.shape[1:3], W.shape[1:3], stride, padding, dilation)
    filters, share = W.shape[0], W.shape[3]
    z = np.zeros((len(a), oh, ow, filters)) + (0 if b is None else b)
    da, dW = np.zeros(a.shape), np.zeros(W.shape)
    for n, i, j, f in np.ndindex(*z.shape):
        first = f // (filters // groups) * share
        for (ki, kj), pixel, _ in taps(i, j):
            if pixel is None:
                continue
            for c in range(share):
                z[n, i, j, f] += a[n, *pixel, first + c] * W[f, ki, kj, c]
                if delta is not None:
                    da[n, *pixel, first + c] += delta[n, i, j, f] * W[f, ki, kj, c]
                    dW[f, ki, kj, c] += delta[n, i, j, f] * a[n, *pixel, first + c]
    return z, da, dW, None if delta is None else delta.sum(axis=(0, 1, 2))


def max_pool(a, delta, size, stride, padding, dilation, ceil_mode):
    """y, and da: each delta at the first pixel of its window that is largest, where NaN is larger than all."""
    size, stride, padding, dilation = both(size), both(stride), both(padding), both(dilation)
    (oh, ow), taps = positions(a.shape[1:3], size, stride, padding, dilation, ceil_mode)
    y, da = np.zeros((len(a), oh, ow, a.shape[3])), np.zeros(a.shape)
    for n, i, j, c in np.ndindex(*y.shape):
        pixels = [pixel for _, pixel, _ in taps(i, j) if pixel is not None]
        values = [a[n, *pixel, c] for pixel in pixels]
        first = next((k for k, value in enumerate(values) if math.isnan(value)), values.index(max(values)))
        y[n, i, j, c] = values[first]
        da[n, *pixels[first], c] += delta[n, i, j, c]
    return y, da


def average_pool(a, delta, size, stride, padding, dilation, ceil_mode, count_padding):
    size, stride, padding, dilation = both(size), both(stride), both(padding), both(dilation)
    (oh, ow), taps = positions(a.shape[1:3], size, stride, padding, dilation, ceil_mode)
    y, da = np.zeros((len(a), oh, ow, a.shape[3])), np.zeros(a.shape)
    for n, i, j, c in np.ndindex(*y.shape):
        pixels = [pixel for _, pixel, _ in taps(i, j) if pixel is not None]
        count = sum(padded for _, _, padded in taps(i, j)) if count_padding else len(pixels)
        for pixel in pixels:
            y[n, i, j, c] += a[n, *pixel, c] / count
            da[n, *pixel, c] += delta[n, i, j, c] / count
    return y, da


def upsample(a, delta, factor, mode):
    """y, from the place of each of its pixels in a, and da."""
    (fh, fw), (_, h, w, _) = both(factor), a.shape
    y, da = np.zeros((len(a), fh * h, fw * w, a.shape[3])), np.zeros(a.shape)

    def shares(i, size, f):
        if mode == "nearest":
            return {i // f: 1.0}
        place = min(max((i + 0.5) / f - 0.5, 0), size - 1)
        below = math.floor(place)
        return {below: 1 - (place - below)} | ({below + 1: place - below} if place > below else {})

    for i, j in np.ndindex(y.shape[1:3]):
        for (row, down), (column, across) in itertools.product(shares(i, h, fh).items(), shares(j, w, fw).items()):
            y[:, i, j] += down * across * a[:, row, column]
            da[:, row, column] += down * across * delta[:, i, j]
    return y, da


def batch_norm(a, gamma, beta, delta, eps):
    """y and da, dgamma, dbeta by the chain rule through mean and variance, channel by channel."""
    y, da = np.zeros(a.shape), np.zeros(a.shape)
    dgamma, dbeta = np.zeros(a.shape[-1]), np.zeros(a.shape[-1])
    for c in range(a.shape[-1]):
        v, d = a[..., c].ravel(), delta[..., c].ravel()
        m = len(v)
        mean = math.fsum(v) / m
        var = math.fsum((v - mean) ** 2) / m
        x = (v - mean) / math.sqrt(var + eps)
        dx = d * gamma[c]
        dvar = math.fsum(dx * (v - mean)) * -0.5 * (var + eps) ** -1.5
        dmean = -math.fsum(dx) / math.sqrt(var + eps)
        y[..., c] = (gamma[c] * x + beta[c]).reshape(a.shape[:-1])
        da[..., c] = (dx / math.sqrt(var + eps) + dvar * 2 * (v - mean) / m + dmean / m).reshape(a.shape[:-1])
        dgamma[c], dbeta[c] = math.fsum(d * x), math.fsum(d)
    return y, da, dgamma, dbeta


def group_norm(a, gamma, beta, eps, groups):
    """y, sample by sample and group by group."""
    y, width = np.zeros(a.shape), a.shape[-1] // groups
    for n, g in np.ndindex(len(a), groups):
        channels = slice(g * width, (g + 1) * width)
        values = a[n, ..., channels]
        mean = math.fsum(values.flat) / values.size
        var = math.fsum(((values - mean) ** 2).flat) / values.size
        y[n, ..., channels] = gamma[channels] * (values - mean) / math.sqrt(var + eps) + beta[channels]
    return y


def layer_norm(a, gamma, beta, eps):
    """y, sample by sample and pixel by pixel."""
    y = np.zeros(a.shape)
    for place in np.ndindex(a.shape[:-1]):
        mean = math.fsum(a[place]) / a.shape[-1]
        var = math.fsum((a[place] - mean) ** 2) / a.shape[-1]
        for c in range(a.shape[-1]):
            y[*place, c] = gamma[c] * (a[*place, c] - mean) / math.sqrt(var + eps) + beta[c]
    return y
