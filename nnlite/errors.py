"""The errors that nnlite raises. Each is also the built-in exception that a reader would expect to catch."""


class NNLiteError(Exception):
    """The base of all nnlite errors."""


class ShapeError(NNLiteError, ValueError):
    """An array, or a layer's input, has the wrong shape. The message names the layer and both shapes."""


class DataError(NNLiteError, ValueError):
    """A data set or a batch is unusable: wrong labels, different lengths, no samples, a damaged file."""


class DownloadError(DataError, OSError):
    """A data set was not found and could not be downloaded. The message says what was tried and what to do."""


class FileError(NNLiteError, ValueError, OSError):
    """A saved model is damaged, or does not fit the model that it is loaded into; or a file cannot be written."""


class DeviceError(NNLiteError, RuntimeError):
    """A device does not exist, or arrays of two devices were mixed. The message names both sides."""


class StateError(NNLiteError, RuntimeError):
    """A call at the wrong time: backward without a training forward, a layer that another model has taken."""


class NonFiniteError(NNLiteError, FloatingPointError):
    """A loss became NaN or infinite. The message says at which step."""


class GradientError(NNLiteError, AssertionError):
    """A backward pass disagrees with central differences. The message says where and by how much."""
