"""Models and data in and out. Each module needs an extra of its own, and is loaded when it is first used."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`nn.interop.sklearn`, `nn.interop.onnx`, `nn.interop.torch`, `nn.interop.keras`."""
    if name == "sklearn":
        import nnlite.interop.sklearn
    elif name == "onnx":
        import nnlite.interop.onnx
    elif name == "torch":
        import nnlite.interop.torch
    elif name == "keras":
        import nnlite.interop.keras  # noqa: F401 (an attribute of this package then)
    else:
        raise AttributeError(f"module 'nnlite.interop' has no attribute {name!r}")
    return globals()[name]
