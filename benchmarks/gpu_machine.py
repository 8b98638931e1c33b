"""A section of `gpu.py`: the device, the driver, versions, and what is missing."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from shutil import which
from typing import Any

from gpu_common import Record, attempt

PACKAGES = ("numpy", "torch", "triton", "pytest", "hypothesis", "threadpoolctl", "safetensors", "tqdm")
PROGRAMS = ("nvidia-smi", "compute-sanitizer", "g++")


def machine(record: Record, quick: bool) -> None:
    """Raises DeviceError without a device."""
    import nnlite as nn

    packages = {name: installed(name) for name in PACKAGES}
    found = {name: value for name, value in packages.items() if value}
    record("host", python=sys.version.split()[0], system=platform.platform(), cores=os.cpu_count(), **found)
    missing = [name for name, value in packages.items() if not value] + [name for name in PROGRAMS if not which(name)]
    record("missing", names=missing)
    nn.Sequential(nn.Dense(1), input_shape=(1,)).to("cuda")
    attempt(record, "device", lambda: record("device", **device()))
    attempt(record, "settings", print_settings)


def installed(package: str) -> str | None:
    """The version of a module, or None."""
    if not find_spec(package):
        return None
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def device() -> dict[str, Any]:
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    return {
        "name": properties["name"].decode(),
        "capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_bytes": properties["totalGlobalMem"],
        "l2_bytes": properties["l2CacheSize"],
        "cuda_driver": runtime.driverGetVersion(),
        "cuda_runtime": runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
    }


def print_settings() -> None:
    """Prints to the log."""
    import cupy

    if which("nvidia-smi"):
        subprocess.run(["nvidia-smi"], timeout=10)
    cupy.show_config()
    print({name: value for name, value in os.environ.items() if name.startswith(("CUDA", "CUPY", "NVIDIA", "TORCH", "NNLITE"))})
