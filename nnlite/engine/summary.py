"""The table that `model.summary()` prints."""

from nnlite.engine.vectors import Vectors, everything, walk
from nnlite.layers.base import Layer


def summary(model: Layer, vectors: Vectors) -> str:
    """A line a layer: its name and kind, output shape, parameters, MFLOP of a forward pass for one sample; and the totals."""
    rows = [("layer", "output shape", "parameters", "MFLOP")]
    rows += [("input", str(model.in_shape), "", "")]
    rows += [_row(path, layer) for path, layer in everything(model) if path]
    trained = len(vectors.params) - sum(s.parameter.size for s in vectors.trained if s.frozen)
    flops = sum(layer.flops() for _, layer in walk(model.children()))
    total = ("total", str(model.out_shape), f"{len(vectors.params):,}", f"{flops / 1e6:.2f}")
    widths = [max(len(row[column]) for row in [*rows, total]) for column in range(4)]
    lines = [_line(row, widths) for row in rows]
    rule = "-" * len(lines[0])
    counts = f"{trained:,} trained, {len(vectors.params) - trained:,} frozen, {len(vectors.buffers):,} kept"
    backend = vectors.backend
    note = f"{counts}; {vectors.dtype} on {backend.device}, {backend.kernel_set} kernels"
    return "\n".join([lines[0], rule, *lines[1:], rule, _line(total, widths), note])


def _row(path: str, layer: Layer) -> tuple[str, str, str, str]:
    if layer.children():
        return f"{path} {type(layer).__name__}", str(layer.out_shape), "", ""
    parameters = sum(p.size for p in layer.declared.values() if p.trained)
    flops = f"{layer.flops() / 1e6:.2f}" if layer.flops() else ""
    return f"{path} {layer!r}", str(layer.out_shape), f"{parameters:,}" if parameters else "", flops


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    name, shape, parameters, mflop = row
    return f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {parameters:>{widths[2]}}  {mflop:>{widths[3]}}"
