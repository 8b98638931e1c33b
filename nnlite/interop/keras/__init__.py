"""Keras's models and weights as files, in and out, without Keras: https://keras.io."""

try:
    from nnlite.interop.keras.reader import load
    from nnlite.interop.keras.writer import save
except ModuleNotFoundError as error:
    raise ImportError("nnlite.interop.keras needs h5py 3.11 or later: pip install 'nnlite-numpy[keras]'") from error

__all__ = ["load", "save"]
