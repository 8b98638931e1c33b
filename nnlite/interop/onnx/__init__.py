"""ONNX files, which onnxruntime and others run and write: https://onnx.ai."""

try:
    from nnlite.interop.onnx.reader import from_onnx, load
    from nnlite.interop.onnx.writer import export, to_onnx
except ModuleNotFoundError as error:
    raise ImportError("nnlite.interop.onnx needs onnx 1.17 or later: pip install 'nnlite-numpy[onnx]'") from error

__all__ = ["export", "from_onnx", "load", "to_onnx"]
