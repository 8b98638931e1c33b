"""`benchmarks/peers.py`: the tasks, the limits of the machine, and the pages that are made from the rounds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import peers  # noqa: E402
from peers_parts import limits, pages, report, worker  # noqa: E402
from peers_parts import nnlite as ours  # noqa: E402
from peers_parts import tasks as net  # noqa: E402

import nnlite as nn  # noqa: E402

LAYERS = {
    "conv": net.Conv(4, kernel=5, stride=2, padding=4, dilation=2),
    "depthwise": net.DepthwiseConv(stride=2),
    "layer norm": net.LayerNorm(),
    "gelu": net.GELU(),
}


@pytest.mark.parametrize("key", net.TASKS)
def test_a_task_costs_what_its_network_in_nnlite_does(key):
    task = net.TASKS[key]
    model = nn.Sequential(*map(ours.translate, task.network), input_shape=task.in_shape, dtype="float32")
    assert model.params.size == net.count_parameters(task) and model.layers[-1].out_shape == (task.classes,)


@pytest.mark.parametrize("name", LAYERS)
def test_shapes_and_costs_of_a_layer(name):
    task = net.Task("one", "one layer", lambda: (LAYERS[name],), (9, 7, 3), batch=2, training=False)
    model = nn.Sequential(ours.translate(LAYERS[name]), input_shape=task.in_shape)
    assert model.layers[0].out_shape == net.out_shape(LAYERS[name], task.in_shape)
    assert model.params.size == net.count_parameters(task)
    flops = model.layers[0].flops() if "conv" in name or name == "depthwise" else 0
    assert net.flops_per_sample(task) == flops


def test_a_task_of_other_parameters_is_refused(monkeypatch):
    monkeypatch.setattr(worker, "count_parameters", lambda task: 1)
    with pytest.raises(RuntimeError, match="131 parameters instead of 1"):
        worker.build("nnlite", net.TASKS["tiny@16"], 1)


def test_scikit_learn_takes_part_in_plain_mlps_alone():
    mlps = [key for key, task in net.TASKS.items() if peers.takes_part("sklearn", task)]
    assert mlps == ["mlp@32", "mlp@256", "tiny@16"]


def test_the_peak_is_of_multiply_adds_that_are_done(native):
    sums = np.zeros(16, np.float32)
    limits.compile_peak()(0.5, 0.5, limits.MULTIPLY_ADDS, sums.ctypes.data)
    assert set(sums[:4]) == {12.0}  # chains of x = x / 2 + 1 / 2
    assert limits.MULTIPLY_ADDS % (12 * 16) == 0


@pytest.mark.parametrize("name", net.LIMITS)
def test_limits(native, name):
    built, flops = limits.build(name)
    built.variants.popitem()[1](0)
    assert flops >= 2 * 512**3 if name != "peak-1" else flops == 2 * limits.MULTIPLY_ADDS


def test_one_core_beside_its_peak():
    rates = {"sgemm": [2e11, 2e11], "sgemm-1": [1e11, 1e11], "peak-1": [1.2e11, 1e11], "product-1": [0.9e11, 0.9e11]}
    text = report.limits_line({"a task": {"samples_per_second": {}}, "another": {"samples_per_second": rates}})
    assert "200 GFLOP/s on all threads, 100 on one" in text
    assert "One core does 110 GFLOP/s" in text and "0.82 (0.75 to 0.90) of its peak" in text
    assert report.limits_line({}) == ""


def test_quick_is_a_choice_of_rounds_blocks_and_systems(monkeypatch):
    def parsed(*options):
        monkeypatch.setattr(sys, "argv", ["peers.py", "--threads", "1", *options])
        args = peers.parse()
        return args.rounds, args.seconds, "torch.compile" in args.systems

    assert parsed() == (5, 1.0, True) and parsed("--quick") == (2, 0.3, False)
    assert parsed("--quick", "--rounds", "3", "--systems", "torch.compile") == (3, 0.3, True)


def test_a_table_is_replaced_by_its_first_column():
    text = "# Page\n\n| a | b |\n| :-- | --: |\n| 1 | 2 |\n\nText.\n"
    assert pages.replaced(text, "| a | c |\n| :-- | --: |") == "# Page\n\n| a | c |\n| :-- | --: |\n\nText.\n"
    with pytest.raises(ValueError, match="no table begins"):
        pages.replaced(text, "| other |")


def test_the_pages_are_made_from_the_committed_rounds():
    for page, made in pages.pages(pages.committed()).items():
        assert made in (ROOT / page).read_text(), f"python -m peers_parts.pages writes another table to {page}"


def test_a_task_runs_from_beginning_to_end(tmp_path):
    out = tmp_path / "rounds.json"
    options = ["--tasks", "tiny@16", "--systems", "nnlite", "--threads", "1", "--rounds", "1", "--seconds", "0.01"]
    subprocess.run([sys.executable, "benchmarks/peers.py", *options, "--json", out], cwd=ROOT, check=True, capture_output=True)
    measured = json.loads(out.read_text())
    assert measured["tasks"]["tiny@16"]["samples_per_second"]["nnlite"][0] > 0
    assert measured["machine"]["cores"] >= 1 and measured["versions"]["numpy"] == np.__version__
