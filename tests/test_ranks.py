"""Data-parallel training in several processes of MPI, each test under `mpiexec`."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nnlite as nn
from nnlite.engine import cut

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


# ---- fit


@pytest.fixture(scope="module")
def training():
    """The script's functions, in this process."""
    path = HERE / "ranks" / "training.py"
    spec = importlib.util.spec_from_file_location("ranks_training", path)
    module = importlib.util.module_from_spec(spec)
    before = cut.BUDGET, cut.WORTH_CUTTING
    spec.loader.exec_module(module)
    yield module
    cut.BUDGET, cut.WORTH_CUTTING = before


def fitted(ranks, folder, *arguments):
    run = launch(ranks, "training.py", folder, *arguments)
    assert run.returncode == 0, run.stderr
    return run, json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def summed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("summed")
    return *fitted(2, folder, "summed", 2, "new"), folder


def columns_of(history):
    return {name: column for name, column in history.items() if name not in ("seconds", "samples_per_second")}


def test_a_run_goes_on_in_other_numbers_of_processes_with_the_bits_of_one(training, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        folder.mkdir()
    one = training.fit(training.trainer_for(None, alone), alone, 4, False, progress=False)
    for ranks, epochs, begin in ((2, 1, "new"), (4, 2, "resume"), (1, 3, "resume")):
        _, every = fitted(ranks, shared, "ordered", epochs, begin)
        assert len(every) == ranks and all(found["fit"] == every[0]["fit"] for found in every)
        assert len(every[0]["fit"]["history"]["loss"]) == epochs
    last = training.fit(training.trainer_for(None, shared), shared, 4, True, progress=False)
    assert last["values"] == one["values"]
    assert columns_of(last["history"]) == columns_of(one["history"])
    assert (shared / "log.csv").read_text().count("\n") == 5


def test_metrics_and_history_are_those_of_one_process(training, summed, tmp_path):
    _, every, _ = summed
    one = training.fit(training.trainer_for(None, tmp_path), None, 2, False, progress=False)
    for name, column in columns_of(one["history"]).items():
        # Batch norm is local: the networks differ a little.
        np.testing.assert_allclose(every[0]["fit"]["history"][name], column, atol=0.15, err_msg=name)
    assert every[0]["fit"]["steps"] == one["steps"]
    for case in ("fit", "list", "set", "steps", "stopped"):
        assert every[0][case] == every[1][case], case


def test_a_list_of_batches_trains_as_the_data_set_does(summed):
    _, every, _ = summed
    assert columns_of(every[0]["list"]["history"]) == columns_of(every[0]["set"]["history"])
    assert every[0]["list"]["values"] == every[0]["set"]["values"]
    assert every[0]["steps"]["steps"] == 6


def test_one_process_shows_and_writes(summed):
    run, _, folder = summed
    assert run.stdout.count("epoch 1 ") == 1 and run.stdout.count("epoch 2 ") == 1
    assert "rank 1: process" in run.stdout
    assert nn.load(folder / "best.safetensors").out_shape == (10,)
    assert len(list(folder.glob("step-*.safetensors"))) == 2


def test_all_stop_if_one_does(summed):
    assert len(summed[1][0]["stopped"]["history"]["loss"]) == 1


def test_a_bad_value_is_located_in_its_process(summed):
    for found in summed[1]:
        assert "rank 1: the inputs of row 40 of the data set are not finite" in found["bad"]


def test_validation_is_shared_and_the_same(summed):
    for found in summed[1]:
        np.testing.assert_allclose(*found["validated"], rtol=1e-6)
