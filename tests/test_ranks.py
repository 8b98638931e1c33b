"""Data-parallel training in several processes of MPI, each test under `mpiexec`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mpi4py")
HERE = Path(__file__).resolve().parent
MPIEXEC = Path(sys.executable).parent / "mpiexec"


def launch(ranks, script, *arguments, seconds=60):
    """Run a script of tests/ranks under mpiexec. Processes that do not end in time fail the test, and are ended."""
    command = [MPIEXEC, "-n", ranks, sys.executable, HERE / "ranks" / script, *arguments]
    environment = os.environ | {"NNLITE_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=seconds, env=environment)


@pytest.fixture(scope="module", params=[2, 3, 4])
def results(request, tmp_path_factory):
    """What all processes found, by rank."""
    folder = tmp_path_factory.mktemp("gradients")
    run = launch(request.param, "gradients.py", folder)
    assert run.returncode == 0, run.stderr
    return json.loads((folder / "results.json").read_text())


def test_gradients_are_those_of_one_process(results):
    for cases in results:
        for name, case in cases.items():
            if not name.startswith("steps"):
                least = 1e-6 if name.endswith("native") else 1e-12
                assert max(case["gradient"], case["loss"], case["outputs"]) < least, name


def test_deterministic_is_the_bits_of_one_process(results):
    for cases in results:
        ordered = {name: case["same bits"] for name, case in cases.items() if "ordered" in name}
        assert ordered and all(ordered.values()), ordered
        assert not all(case["same bits"] for name, case in cases.items() if "summed" in name)


def test_all_processes_have_the_same_bits_and_repeat_them(results):
    for name, first in results[0].items():
        assert first["repeats"] and first.get("finite", True), name
        if name.startswith("steps"):
            assert {cases[name]["values"] for cases in results} == {first["values"]}, name


def test_the_work_is_shared(results):
    for name in ("mlp 97 summed native", "convolutions 97 ordered native"):
        assert sum(cases[name]["samples"] for cases in results) == 97
        assert max(cases[name]["samples"] for cases in results) < 60, name
