"""Data-parallel training in several processes of MPI, each test under `mpiexec`."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import nnlite as nn
from nnlite.distributed.launch import refuse_other_launchers
from nnlite.engine import cut
from nnlite.insight.run import hash_of_weights
from nnlite.training import checkpoint
from nnlite.training.ranks import Ranks

pytest.importorskip("mpi4py")
HERE = Path(__file__).resolve().parent
MPIEXEC = Path(sys.executable).parent / "mpiexec"


def launch(ranks, script, *arguments, seconds=120, folder=None):
    """Run a script, of tests/ranks or a whole path, under mpiexec; the test fails if it does not end in time."""
    command = [MPIEXEC, "-n", ranks, sys.executable, HERE / "ranks" / script, *arguments]
    environment = os.environ | {"NNLITE_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=seconds, env=environment, cwd=folder)


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
    assert results[0]["convolutions 800 ordered native"]["shards"] > 32
    for name in ("mlp 97 summed native", "convolutions 97 ordered native"):
        assert sum(cases[name]["samples"] for cases in results) == 97
        assert max(cases[name]["samples"] for cases in results) < 60, name


# ---- fit


@contextmanager
def functions_of(script):
    """Those of a script of tests/ranks, in this process."""
    spec = importlib.util.spec_from_file_location(f"ranks_{script}", HERE / "ranks" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    before = cut.BUDGET, cut.WORTH_CUTTING
    spec.loader.exec_module(module)
    yield module
    cut.BUDGET, cut.WORTH_CUTTING = before


@pytest.fixture
def training():
    with functions_of("training") as module:
        yield module


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


# ---- samples in files


@pytest.fixture
def streams():
    pytest.importorskip("PIL")
    with functions_of("streams") as module:
        yield module


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """What the processes of two runs found, by their number, and the folder, in which the second run goes on with the first."""
    pytest.importorskip("PIL")
    folder, every = tmp_path_factory.mktemp("streams"), {}
    with functions_of("streams") as module:
        module.write(folder)
    for ranks, kill in ((2, 3), (3, 6)):  # in the first epoch, and in the second
        run = launch(ranks, "streams.py", folder, kill)
        assert run.returncode == 0, run.stderr
        every[ranks] = json.loads((folder / "results.json").read_text())
    return every, folder


def cases_of(every):
    return [(kind, cases) for ranks in every.values() for kind in ranks[0] for cases in [[found[kind] for found in ranks]]]


def test_streams_resumed_in_mid_epoch_have_the_same_bits(streamed):
    for kind, cases in cases_of(streamed[0]):
        assert all(case["resumed"] == case["whole"] == cases[0]["whole"] for case in cases), kind
        assert cases[0]["whole"]["steps"] == 8


def test_streams_go_on_in_other_numbers_of_processes_with_the_bits_of_one(streams, streamed):
    every, folder = streamed
    for kind in streams.KINDS:
        assert [ranks[0][kind]["shared"]["steps"] for ranks in every.values()] == [3, 6]
        last = streams.train(None, streams.source(kind, folder), folder / f"{kind} shared")
        assert last == streams.train(None, streams.source(kind, folder)), kind
    assert last != streams.train(None, streams.source("memory", folder))  # shards come in another order


def test_each_process_reads_its_part_of_streams_ahead(streams, streamed):
    for kind, cases in cases_of(streamed[0]):
        for what in ("training", "validation"):
            read = [case[what][0] for case in cases]
            assert sum(read) == streams.EPOCHS * streams.SAMPLES, (kind, what)
            assert max(read) - min(read) <= 4 * streams.EPOCHS
        assert [case["resuming"][1] for case in cases] == [1] + [0] * (len(cases) - 1), kind  # process 0 compares the data


# ---- faults, with a deadline of 3 seconds


MESSAGES = {
    "exception": "rank 1 of 3: RuntimeError: the disk is on fire",
    "exit": "rank 1 did not come to the sum of gradients within 3 s",
    "stop": "rank 1 did not come to the sum of gradients within 3 s",
    "writer": "rank 0 did not come to an exchange of values within 3 s",
    "diverge": "rank 1 of 3 has other parameters or statistics than rank 0",
}


def run_fault(fault, folder):
    """The run, the seconds from its beginning to its end, and those from the fault."""
    begun = time.time()
    run, ended = launch(3, "faults.py", fault, folder), time.time()
    mark = folder / "begun"
    return run, ended - begun, ended - mark.stat().st_mtime if mark.exists() else None


@pytest.fixture(scope="module")
def waiting(tmp_path_factory):
    """The faults that others wait for, and two runs on a pretended device: four at a time, because they wait."""
    folders = {fault: tmp_path_factory.mktemp(fault) for fault in ("slow", "exit", "stop", "writer", "early", "exception")}
    with ThreadPoolExecutor(4) as pool:
        runs = {fault: pool.submit(run_fault, fault, folder) for fault, folder in folders.items()}
        devices = {work: pool.submit(launch, 2, "device.py", work) for work in ("train", "alone")}
    return {fault: (*run.result(), folders[fault]) for fault, run in runs.items()} | {
        work: run.result() for work, run in devices.items()
    }


@pytest.mark.parametrize("fault", ["diverge", "kill", "terminate"])
def test_a_fault_of_one_process_ends_all_and_leaves_a_checkpoint(fault, tmp_path):
    run, _, seconds = run_fault(fault, tmp_path)
    assert run.returncode != 0 and seconds < 10
    if fault == "kill":  # the launcher names the process, or one that it ended after it; training has said which rank that is
        ended = re.search(r"PID (\d+)", run.stdout + run.stderr).group(1)
        assert re.search(rf"rank \d: process {ended} on", run.stdout) and run.returncode == 9
    elif fault == "terminate":
        assert run.returncode == 15
    else:
        assert MESSAGES[fault] in run.stderr
        assert run.stderr.count("all processes end") == 1  # what all raise is printed once
    arrays, description = checkpoint.Folder(tmp_path, 2).load()
    assert description["steps"] == {"terminate": 7}.get(fault, 4) and np.isfinite(arrays["params"]).all()


@pytest.mark.parametrize("fault", ["exit", "stop", "writer", "exception"])
def test_a_fault_that_others_wait_for_ends_all_and_leaves_a_checkpoint(fault, waiting):
    run, _, seconds, folder = waiting[fault]
    assert run.returncode != 0 and seconds < 13
    assert MESSAGES[fault] in run.stderr
    arrays, description = checkpoint.Folder(folder, 2).load()
    assert description["steps"] == {"writer": 8}.get(fault, 4) and np.isfinite(arrays["params"]).all()


def test_a_process_that_ends_before_training_ends_all(waiting):
    run, seconds, *_ = waiting["early"]
    assert run.returncode != 0 and seconds < 13
    assert "no data here" in run.stderr and "rank 1 did not come to the first exchange within 3 s" in run.stderr


def test_all_wait_for_one_that_compares_the_data_or_writes(waiting):
    run, seconds, *_ = waiting["slow"]
    assert run.returncode == 0, run.stderr
    assert seconds > 7


def test_a_process_that_cannot_write_ends_all(tmp_path):
    run = launch(3, "faults.py", "log", tmp_path)
    assert run.returncode != 0
    assert "rank 0 of 3: FileError" in run.stderr and "is a folder" in run.stderr
    assert run.stderr.count("all processes end") == 1


REFUSED = {
    "model": ("StateError: rank 1 of 2 and rank 0 differ in model.layers[0].units: 17 and 16", ""),
    "own layer": ("StateError: rank 1 of 2 and rank 0 differ in model.shapes.0.W[0]: 17 and 16", ""),
    "seed": ("StateError: rank 1 of 2 and rank 0 differ in model.seed: 1 and 0", ""),
    "dropout": ("StateError: rank 1 of 2 and rank 0 differ in model.layers[1].rate: 0.2 and 0.1", ""),
    "dtype": ("StateError: rank 1 of 2 and rank 0 differ in model.dtype: 'float64' and 'float32'", ""),
    "loss": ("StateError: rank 1 of 2 and rank 0 differ in loss.label_smoothing: 0.1 and 0.0", ""),
    "deterministic": ("StateError: rank 1 of 2 and rank 0 differ in deterministic of the communicator: True and False", ""),
    "sync": ("StateError: rank 1 of 2 and rank 0 differ in sync_batch_norm of the communicator: True and False", ""),
    "order of labels": ("StateError: rank 1 of 2 and rank 0 differ in the checksum of labels and weights: ", ""),
    "weights": ("StateError: rank 1 of 2 and rank 0 differ in the checksum of labels and weights: ", ""),
    "augmentation": ("StateError: rank 1 of 2 and rank 0 differ in augmentations: [{'class': 'RandomFlip'}] and []", ""),
    "kernels": ("StateError: rank 1 of 2 and rank 0 differ in kernels: 'numpy' and 'native'", ""),
    "length": ("StateError: rank 1 of 2 and rank 0 differ in the number of samples: 63 and 64", ""),
    "labels": ("StateError: rank 1 of 2 failed: DataError: the training data: labels", "DataError: the training data: labels"),
    "rate": ("StateError: rank 1 of 2 and rank 0 differ in optimizer.learning_rate: 0.001 and 0.01", ""),
    "order": ("StateError: rank 1 of 2 and rank 0 differ in fit.seed: 1 and 0", ""),
    "validation": ("StateError: rank 1 of 2 and rank 0 differ in fit.validation.samples: 63 and 64", ""),
    "no validation": ("StateError: rank 1 of 2 and rank 0 differ in fit.validation: None and {'samples': 64, ", ""),
    "no checkpoint": ("StateError: rank 1 of 2 and rank 0 differ in fit.checkpoint: None and {'every': None, ", ""),
    "batch": ("ok", ""),
    "shorter": ("StateError: rank 1 of 2 and rank 0 differ in the samples of their next batch: 0 and 16", ""),
    "longer": ("StateError: rank 1 of 2 and rank 0 differ in the samples of their next batch: 17 and 16", ""),
    "shorter validation": ("StateError: rank 1 of 2 and rank 0 differ in the samples of their next batch: 0 and 16", ""),
    "folder": ("FileError: no checkpoints can be written", "StateError: rank 0 of 2 failed: FileError: no checkpoints can be "),
    "values": ("DivergedError: rank 1 of 2 has other parameters or statistics than rank 0", ""),
    "device": ("DeviceError: the model is on cpu, the communicator takes arrays of cuda", ""),
}


def test_what_differs_is_refused_by_all(tmp_path):
    run = launch(2, "refused.py", tmp_path)
    assert run.returncode == 0, run.stderr
    first, second = json.loads((tmp_path / "results.json").read_text())
    for case, (said, by_the_other) in REFUSED.items():
        if said == "ok":
            assert first[case] is second[case] is None
        else:
            assert first[case].startswith(said), first[case]
            assert second[case].startswith(by_the_other or said), second[case]
    assert first["nothing"] is second["nothing"] is None


def test_batches_smaller_than_the_number_of_processes_are_refused():
    class Three:
        rank, size, device, deterministic, sync_batch_norm = 0, 3, "cpu", False, False

    with pytest.raises(nn.DataError, match="a batch of 2 has no sample for each of 3 processes"):
        Ranks(Three()).check(nn.Sequential(nn.Dense(2), input_shape=(3,)), 2)


def test_other_communicators_are_refused():
    model = nn.Sequential(nn.Dense(2), input_shape=(3,))
    for wrong in (nn.distributed.mpi, 2, "mpi"):
        with pytest.raises(ValueError, match=r"communicator must be an object such as nn\.distributed\.mpi\(\)"):
            nn.Trainer(model, nn.MSE(), nn.Adam(), communicator=wrong)


@pytest.mark.parametrize(
    ("size", "environment", "said"),
    [
        (1, {}, "found one process and no launcher: start the script with mpiexec -n 2"),
        (1, {"PMI_SIZE": "3"}, "the launcher started 3 processes, MPI finds 1"),
        (1, {"OMPI_COMM_WORLD_SIZE": "2"}, "the launcher started 2 processes, MPI finds 1"),
        (1, {"PMI_SIZE": "1"}, ""),
        (2, {"SLURM_STEP_NUM_TASKS": "2"}, ""),
    ],
)
def test_what_the_launcher_started_is_compared_with_what_mpi_finds(size, environment, said):
    with pytest.raises(nn.StateError, match=said) if said else nullcontext():
        refuse_other_launchers(size, environment)


@pytest.fixture
def one_process(monkeypatch):
    """MPI is not begun in the process of the tests."""
    world = SimpleNamespace(rank=0, size=1)
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=world)))
    monkeypatch.setenv("PMI_SIZE", "1")


@pytest.mark.parametrize("wrong", [{"deadline": 0}, {"deadline": "300"}, {"deterministic": 1}, {"device": "tpu"}])
def test_arguments(wrong, one_process):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        nn.distributed.mpi(**wrong)


@pytest.mark.parametrize("ranks", [2, 3])
def test_both_communicators_exchange_the_same(ranks):
    run = launch(ranks, "device.py", "exchange")
    assert run.returncode == 0, run.stderr


def test_models_train_on_a_pretended_device(waiting):
    assert waiting["train"].returncode == 0, waiting["train"].stderr


def test_a_sum_on_a_device_has_a_deadline(waiting):
    run = waiting["alone"]
    assert run.returncode != 0 and "rank 1 did not come to the sum of gradients within 2 s" in run.stderr


def test_the_code_of_the_document(tmp_path):
    run = launch(2, "page.py", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert nn.load(tmp_path / "shapes.safetensors").out_shape == (10,)


def test_cifar10_in_two_processes_has_the_weights_of_one(tmp_path):
    sys.path.insert(0, str(HERE.parent / "examples"))
    import cifar10
    import recipes

    arguments = ["--data", "shapes", "--limit", "300", "--epochs", "1", "--batch-size", "128", "--out"]
    run = launch(2, HERE.parent / "examples" / "cifar10.py", "--distributed", "--deterministic", *arguments, tmp_path / "two")
    assert run.returncode == 0, run.stderr
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert two["processes"] == 2
    settings = cifar10.parse([*arguments, str(tmp_path)])
    recipe, data = cifar10.choose_recipe(settings), cifar10.load_data(settings)
    trainer = recipes.make_trainer(recipe, len(data.train), settings.seed)
    recipes.fit(recipe, trainer, data.train.subset(300), progress=False)
    assert two["weights"] == hash_of_weights(trainer.model)


def test_a_missing_nccl_is_said(one_process, monkeypatch):
    cuda = SimpleNamespace(nccl=SimpleNamespace(available=False))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    with pytest.raises(nn.DeviceError, match="need NCCL: pip install nvidia-nccl-cu12"):
        nn.distributed.mpi(device="cuda")
