"""The sections of `benchmarks/gpu.py` on the pretended device, at toy sizes. A failure costs one row."""

import itertools
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]

import gpu_common  # noqa: E402
import gpu_fast90  # noqa: E402
import gpu_machine  # noqa: E402
import gpu_micro  # noqa: E402
import gpu_parity  # noqa: E402
import gpu_profile  # noqa: E402
import gpu_report  # noqa: E402
import gpu_speed  # noqa: E402
import gpu_tests  # noqa: E402
from gpu_speed import System  # noqa: E402
from peers_parts import tasks as net  # noqa: E402
from recipes import Recipe, adam  # noqa: E402

import nnlite as nn  # noqa: E402
from nnlite.backend.cuda.cupy import CupyBackend  # noqa: E402


def tiny_net():
    block = net.Residual((net.BatchNorm(), net.ReLU(), net.Conv(2, padding=1, bias=False)))
    return (net.Conv(2, padding=1), net.ReLU(), net.MaxPool(), block, net.GlobalAvgPool(), net.Dense(3))


TASK = net.Task("tiny", "a tiny net", tiny_net, (6, 6, 3), batch=4, classes=3)
OURS = (System("nnlite", "float32"), System("nnlite", "tf32"))


@pytest.fixture(autouse=True)
def device(pretended, monkeypatch):
    """The pretended device with a pool, and a clock that goes on by a millisecond with every event; there is no torch."""
    ticks = itertools.count()

    class Event:
        def record(self):
            self.tick = next(ticks)

        def synchronize(self):
            pass

    properties = {"name": b"pretended", "major": 9, "minor": 0, "multiProcessorCount": 1, "totalGlobalMem": 1, "l2CacheSize": 1}
    runtime = SimpleNamespace(**vars(pretended.cuda.runtime))
    runtime.getDeviceProperties, runtime.driverGetVersion, runtime.runtimeGetVersion = lambda i: properties, int, int
    monkeypatch.setattr(pretended.cuda, "runtime", runtime)
    monkeypatch.setattr(pretended.cuda, "Event", Event, raising=False)
    monkeypatch.setattr(pretended.cuda, "get_elapsed_time", lambda a, b: b.tick - a.tick, raising=False)
    pool = SimpleNamespace(total_bytes=lambda: 1000, free_all_blocks=lambda: None)
    monkeypatch.setattr(pretended, "get_default_memory_pool", lambda: pool, raising=False)
    monkeypatch.setattr(pretended, "show_config", lambda: None, raising=False)
    monkeypatch.setattr(pretended, "__version__", "pretended", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(gpu_common, "which", lambda name: None)
    return pretended


@pytest.fixture
def record(tmp_path):
    """Keeps the rows, through the JSON that they travel in; the report can be written after each."""

    def record(name, /, **values):
        record.rows.setdefault(name, {}).update(json.loads(json.dumps(values)))
        sections = {title: {"outcome": "", "seconds": 1.0, "rows": record.rows} for title in record.sections}
        record.text = gpu_report.markdown(sections)

    record.rows, record.sections, record.text = {}, [], ""
    return record


def errors(rows):
    return {name: row["error"] for name, row in rows.items() if "error" in row}


def test_parity(record):
    record.sections = ["parity"]
    gpu_parity.compare(record, "net", TASK, ("float32", "tf32"))
    assert record.rows.keys() == {"net, float32", "net, tf32"} and not errors(record.rows)
    row = record.rows["net, float32"]
    assert 0 <= row["gradient"] <= row["worst"] < 1e-5 and row["loss"] < 1e-5
    assert re.fullmatch(r"[0-9a-z.]+\.(W|b|gamma|beta)", row["worst_at"])
    assert "## Parity" in record.text and "| net, tf32 |" in record.text


def test_parity_of_float64_is_that_of_the_last_bits(record):
    gpu_parity.compare(record, "net", net.Task("dense", "one layer", lambda: (net.Dense(3),), (4,), 5, 3), ("float64",))
    assert not errors(record.rows) and record.rows["net, float64"]["worst"] < 1e-14


def test_parity_notices_a_wrong_gradient(record, monkeypatch):
    monkeypatch.setattr(CupyBackend, "relu_delta", lambda self, delta, y, out: delta)
    gpu_parity.compare(record, "net", TASK, ("float32",))
    assert "the gradient differs by" in errors(record.rows)["net, float32"] and "gradient" in record.rows["net, float32"]


def test_a_precision_that_cannot_be_had_is_reported_and_the_others_go_on(record):
    gpu_parity.compare(record, "net", TASK, ("float16", "float32"))
    assert errors(record.rows).keys() == {"net, float16"} and "gradient" in record.rows["net, float32"]


def test_speed_and_what_goes_with_it(record):
    record.sections = ["speed, net"]
    gpu_speed.compare(record, "net", TASK, (System("torch", "float32"), *OURS), steps=2, rounds=3)
    assert record.rows.keys() == {"net, torch float32", "net, nnlite float32", "net, nnlite tf32"}
    assert errors(record.rows).keys() == {"net, torch float32"}  # it fails, and the others go on
    for name in ("net, nnlite float32", "net, nnlite tf32"):
        row = record.rows[name]
        assert row["rounds"] == [4 * 2 / 1e-3] * 3 and row["images_per_second"] == 8000
        assert row["host_ms"] > 0 and row["first_step_seconds"] > 0 and row["pool_bytes"] == 0 and row["clocks"] is None
    assert "| net | 4 | nnlite tf32 | 8,000 | 8,000 to 8,000 |" in record.text


def test_without_torch_its_systems_are_left_out():
    assert gpu_speed.installed(gpu_speed.EAGER) == list(OURS) and gpu_profile.installed(gpu_profile.PROFILED) == [OURS[0]]


def test_launches_of_a_step_are_counted(device, record):
    import fake_cupy

    gpu_speed.compare(record, "net", TASK, OURS[:1], steps=1, rounds=1)
    model = gpu_speed.Nnlite(TASK, net.make_batches(TASK), OURS[0])
    model.step(0)
    before = fake_cupy.counter["kernels"]
    model.step(1)
    assert record.rows["net, nnlite float32"]["launches"] == fake_cupy.counter["kernels"] - before > 10


def test_a_system_that_fails_later_keeps_its_speeds(record, monkeypatch):
    steps = itertools.count()
    step = gpu_speed.Nnlite.step

    def failing(self, i):
        if self.model.backend.precision == "tf32" and next(steps) == 40:
            raise MemoryError("no memory left")
        return step(self, i)

    monkeypatch.setattr(gpu_speed.Nnlite, "step", failing)
    gpu_speed.compare(record, "net", TASK, OURS, steps=3, rounds=9)
    assert errors(record.rows) == {"net, nnlite tf32": "MemoryError: no memory left"}
    assert next(steps) == 41  # it stays out
    assert 1 <= len(record.rows["net, nnlite tf32"]["rounds"]) < 9 == len(record.rows["net, nnlite float32"]["rounds"])


def test_a_loss_that_is_not_finite_is_no_speed(record, monkeypatch):
    monkeypatch.setattr(gpu_speed.Nnlite, "step", lambda self, i: np.float32("nan"))
    gpu_speed.compare(record, "net", TASK, OURS[:1], steps=1, rounds=2)
    assert errors(record.rows) == {"net, nnlite float32": "FloatingPointError: the loss is nan"}


def test_the_kernels_of_a_step_by_events_where_there_is_no_torch(record):
    record.sections = ["profile"]
    gpu_profile.profile_task(record, "net", TASK, (System("torch", "float32"), *OURS[:1]))
    assert errors(record.rows).keys() == {"net, torch float32"}  # it fails, and the other goes on
    row = record.rows["net, nnlite float32"]
    assert row["method"].startswith("events") and row["ms"] >= sum(kernel["ms"] for kernel in row["longest"]) > 0
    names = {kernel["kernel"]: kernel["count"] for kernel in row["longest"]}
    assert names["adam"] == names["cross_entropy"] == 1 and any(name.startswith("product (") for name in names)
    assert "## Kernels: net, nnlite float32" in record.text and "| `adam` | 1.0 |" in record.text


def test_the_longest_kernels_come_first():
    kernels = [(f"k{i}", 1e-3) for i in range(30)] * 2 + [("long", 9e-3), ("often", 1e-3), *[("often", 1e-3)] * 9]
    row = gpu_profile.longest(kernels, steps=2)
    assert row["kernels"] == 71 / 2 and row["ms"] == pytest.approx(79 / 2) and len(row["longest"]) == 25
    assert row["longest"][:2] == [
        {"kernel": "often", "count": 5, "ms": pytest.approx(5)},
        {"kernel": "long", "count": 0.5, "ms": pytest.approx(4.5)},
    ]


def test_kernels_of_other_libraries_by_the_profiler_of_torch(monkeypatch):
    """As far as that goes without torch: what it says of other devices and of marks is left out."""
    span = SimpleNamespace(elapsed_us=lambda: 5.0)
    events = [
        ("kernel", "cuda", False),
        ("aten::add", "cpu", False),
        ("a mark", "cuda", True),
        ("Memset (Device)", "cuda", False),
    ]
    events = [SimpleNamespace(name=n, device_type=d, is_user_annotation=mark, time_range=span) for n, d, mark in events]

    class Profile:
        def __init__(self, activities):
            assert activities == ["CUDA"]

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def events(self):
            return events

    monkeypatch.setattr(gpu_profile, "find_spec", lambda name: name)
    for name, values in {
        "torch": {},
        "torch.autograd": {"DeviceType": SimpleNamespace(CUDA="cuda")},
        "torch.profiler": {"profile": Profile, "ProfilerActivity": SimpleNamespace(CUDA="CUDA")},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**values))
    method, kernels = gpu_profile.kernels_of(lambda: None)
    assert method == "torch.profiler" and kernels == [("kernel", 5e-6), ("Memset (Device)", 5e-6)]


def test_single_operations(record, monkeypatch):
    record.sections = ["operations"]

    def moments(self, a):
        raise AttributeError("no such operation")

    monkeypatch.setattr(CupyBackend, "moments", moments)
    gpu_micro.operations(record, images=2, side=4, long=8)
    assert errors(record.rows) == {"moments": "AttributeError: no such operation"}
    measured = {name: row for name, row in record.rows.items() if name != "moments"}
    assert measured.keys() > {"copy", "column_sums", "im2col, 3 channels", "max_pool_delta, global", "sgemm float32, n = 1"}
    assert all(row["us"] > 0 and row["gb_per_s"] > 0 for row in measured.values())
    assert all(("sgemm" in name) == ("gflop_per_s" in row) for name, row in measured.items())
    assert list(measured["max_pool_delta, 2 x 2"]["kernels"]) == ["max_pool_delta"]
    square = measured["sgemm tf32, square"]  # 2 x 8^3 operations on 3 x 8^2 values, all calls in a tick
    assert square["us"] == pytest.approx(1000 / gpu_micro.CALLS)
    assert square["gflop_per_s"] * square["us"] == pytest.approx(1024 * 1e-3) and square["sizes"] == "8 x 8, 8 x 8"
    assert square["gb_per_s"] * square["us"] == pytest.approx(4 * 192 * 1e-3)
    assert "| im2col, 3 channels | 2 x 4 x 4 x 3 |" in record.text


def test_moments_alone(record):
    bench = gpu_micro.Bench(images=2, side=4, long=8)
    bench.measure(record, "moments", bench.moments)
    assert any("finish_moments" in kernel for kernel in record.rows["moments"]["kernels"])


def test_the_time_of_a_recipe(record):
    record.sections = ["fast90"]

    def model(seed):
        return nn.Sequential(
            nn.Conv2D(2, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Dense(10), input_shape=(32, 32, 3), seed=seed
        )

    recipe = Recipe(model, epochs=3, batch_size=8, optimizer=adam)
    drawn = nn.data.shapes(16, seed=0)
    gpu_fast90.train(record, "tf32", recipe, drawn.train, drawn.test)
    row = record.rows["tf32"]
    assert len(row["epochs"]) == 3 and row["seconds"] > 0 and row["images"] == 16 and 0 <= row["accuracy"] <= 1
    assert "## fast90" in record.text


def test_generated_images_again_and_again(monkeypatch):
    monkeypatch.setattr(gpu_fast90, "DRAWN", 6)
    train, test = gpu_fast90.shapes(15)
    assert len(train) == 15 and len(test) == 1 and np.array_equal(train.images[:3], train.images[12:])


def test_the_machine(record, monkeypatch):
    record.sections = ["machine"]
    monkeypatch.setattr(gpu_machine, "which", lambda name: name if name == "g++" else None)
    gpu_machine.machine(record, quick=False)
    assert record.rows["device"]["name"] == "pretended" and record.rows["host"]["numpy"] == np.__version__
    missing = set(record.rows["missing"]["names"])
    assert missing >= {"torch", "nvidia-smi", "compute-sanitizer"} and not missing & {"numpy", "g++"}
    assert not errors(record.rows) and "Missing: torch" in record.text


def test_what_pytest_says_is_read(record, tmp_path, capsys):
    """From a real run of it, as the section begins one."""
    record.sections = ["tests"]
    (tmp_path / "test_toy.py").write_text(
        "import pytest, warnings\n"
        "def test_good(): warnings.warn('only a warning')\n"
        "@pytest.mark.parametrize('a', ['x y'])\n"
        "def test_bad(a): assert a == 'z', 'not good'\n"
        "def test_skipped(): pytest.skip('not here')\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('gone')\n"
        "def test_broken(broken): pass\n"
    )
    with pytest.raises(RuntimeError, match="ended with 1"):
        gpu_tests.run(record, [*gpu_tests.python(), str(tmp_path / "test_toy.py")])
    counts = record.rows["counts"]
    assert {name: counts[name] for name in ("PASSED", "FAILED", "SKIPPED", "ERROR")} == dict.fromkeys(
        ("PASSED", "FAILED", "SKIPPED", "ERROR"), 1
    )
    found = {name.split("::")[1]: error for name, error in errors(record.rows).items()}
    assert found.keys() == {"test_bad[x y]", "test_broken"}
    assert "not good" in found["test_bad[x y]"] and "OSError: gone" in found["test_broken"]
    assert "1 failed, 1 passed, 1 skipped" in record.text
    assert "SKIPPED [1]" in capsys.readouterr().out  # the log has the reasons


def test_what_the_sanitizer_says_is_read(record):
    record.sections = ["memcheck"]
    counts = {}
    for line in (
        "========= COMPUTE-SANITIZER",
        "tests/cuda/test_kernels.py::test_gelu PASSED          [ 50%]",
        "========= Invalid __global__ write of size 4 bytes",
        "================== 1 passed in 2.31s ==================",
        "========= ERROR SUMMARY: 2 errors",
    ):
        gpu_tests.note(record, counts, line + "\n")
    assert counts == {"PASSED": 1} and record.rows["sanitizer"] == {"summary": "2 errors"}
    assert "- memcheck: 2 errors; 1 passed in 2.31s" in record.text


def test_all_tests_of_kernels_are_there_for_the_sanitizer():
    files = gpu_tests.files(gpu_tests.KERNELS)
    tests = {name for file in files for name in re.findall(r"^def (test_\w+)", Path(file).read_text(), re.MULTILINE)}
    racing = {name for name in tests if any(word in name for word in gpu_tests.RACES.split(" or "))}
    assert {"test_batch_norm", "test_depthwise", "test_cross_entropy"} <= racing < tests
    assert any("test_device" in file for file in gpu_tests.files(gpu_tests.OTHERS))
