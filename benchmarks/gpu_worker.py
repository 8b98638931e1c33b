"""The process of one section of `gpu.py`. The other end is `gpu_runner.py`.

usage: python benchmarks/gpu_worker.py ROWS SECONDS QUICK MODULE FUNCTION [ARGUMENT ...]

Calls the function with record, quick and the arguments; its records are appended to the file ROWS, a line of JSON each.
Shortly before SECONDS are over, when it will be killed, it prints where it is.
"""

import faulthandler
import importlib
import json
import sys
from typing import Any

from gpu_common import attempt

SOON = 3.0  # seconds before the end


def main(rows: str, seconds: str, quick: str, *call: str) -> None:
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(1.0, float(seconds) - SOON))
    with open(rows, "a") as file:

        def record(name: str, /, **values: Any) -> None:
            file.write(json.dumps([name, values]) + "\n")
            file.flush()

        if not attempt(record, "section", run, record, quick == "quick", *call):
            sys.exit(1)


def run(record: Any, quick: bool, module: str, function: str, *arguments: str) -> None:
    getattr(importlib.import_module(module), function)(record, quick, *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
