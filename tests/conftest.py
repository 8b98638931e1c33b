"""Settings of the whole suite."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import nnlite as nn
from nnlite.backend.native.backend import get_native_backend

settings.register_profile(
    "nnlite", deadline=None, max_examples=15, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("nnlite")


@pytest.fixture(autouse=True)
def _settings():
    """Tests that change the number of threads or the kernels leave them as they were."""
    nn.set_num_threads(2)
    yield
    nn.set_num_threads(2)
    nn.set_kernels(os.environ.get("NNLITE_KERNELS", "auto"))


@pytest.fixture(params=["numpy", "native"])
def both_kernels(request):
    """The test runs with NumPy's kernels and with those in C."""
    if request.param == "native":
        request.getfixturevalue("native")
    nn.set_kernels(request.param)


@pytest.fixture
def numpy_kernels():
    """The test is about NumPy's kernels."""
    nn.set_kernels("numpy")


@pytest.fixture(scope="session")
def native():
    """The backend of the C kernels."""
    try:
        return get_native_backend()
    except nn.DeviceError as error:
        pytest.skip(f"no C kernels here: {error}")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the real data sets."""
    folder = os.environ.get("NNLITE_DATA")
    if not folder:
        pytest.skip("NNLITE_DATA is not set: no real data here")
    return Path(folder)
