"""Settings of the whole suite."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import nnlite as nn

settings.register_profile(
    "nnlite", deadline=None, max_examples=15, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("nnlite")


@pytest.fixture(autouse=True)
def _two_threads():
    """Tests that change the number of threads leave it as it was."""
    nn.set_num_threads(2)
    yield
    nn.set_num_threads(2)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the real data sets."""
    folder = os.environ.get("NNLITE_DATA")
    if not folder:
        pytest.skip("NNLITE_DATA is not set: no real data here")
    return Path(folder)
