"""What all tests of the C kernels share."""

import pytest

import nnlite as nn
from nnlite.backend.native.backend import get_native_backend


@pytest.fixture(scope="session")
def native():
    """The backend of the C kernels."""
    try:
        return get_native_backend()
    except nn.DeviceError as error:
        pytest.skip(f"no C kernels here: {error}")
