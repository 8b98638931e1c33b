"""`benchmarks/gpu.py` brings everything home, whatever its sections do: they run in processes of their own, on toys here."""

import importlib.util
import json
import operator
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]

import gpu  # noqa: E402
import gpu_runner  # noqa: E402
from gpu_report import Report  # noqa: E402
from gpu_runner import Deadline, Section  # noqa: E402

TOYS = """
import json, os, signal, subprocess, sys, threading
from pathlib import Path

def works(record, quick, *arguments):
    record("first", quick=quick, arguments=arguments)
    record("second", value=1)
    record("second", more=2)

def raises(record, quick):
    record("before", value=1)
    raise ValueError("the toy is broken")

def fails_in_part(record, quick):
    from gpu_common import attempt
    attempt(record, "bad", int, "x")
    attempt(record, "good", record, "good")

def hangs(record, quick, held):
    file = os.open(held, os.O_WRONLY | os.O_CREAT)
    subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"], pass_fds=[file])
    record("before", value=1)
    threading.Event().wait()

def dies(record, quick):
    record("before", value=1)
    os.kill(os.getpid(), signal.SIGSEGV)

def breaks_off(record, quick):
    record("before", value=1)
    os.write(record.__closure__[0].cell_contents.fileno(), b'["after", {"val')
    os._exit(3)

def prints(record, quick, count):
    print("begin" + "x" * int(count) + "end")
    print("and this", file=sys.stderr)

def looks(record, quick, folder):
    folder = Path(folder)
    record("saw", report=json.loads((folder / "gpu.json").read_text()), text=(folder / "gpu.md").read_text())

def path(record, quick):
    record("path", path=sys.path, variable=os.environ["PYTHONPATH"])
"""


@pytest.fixture
def toys(tmp_path, monkeypatch):
    folder = tmp_path / "toys"
    folder.mkdir()
    (folder / "toys.py").write_text(TOYS)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.fixture
def run(toys, tmp_path):
    """Run one toy section; gives its outcome and its rows."""

    def run(function, *arguments, seconds=60.0, deadline=None, needs=(), quick=False):
        rows = {}
        section, deadline = Section("toy", seconds, ("toys", function, *arguments), needs), deadline or Deadline(60)

        def record(name, values):
            rows.setdefault(name, {}).update(values)

        return gpu_runner.run(section, deadline, run.log, record, quick), rows

    run.log = tmp_path / "gpu.log"
    return run


def test_rows_of_a_section_come_home(run):
    outcome, rows = run("works", "a", "b", quick=True)
    assert (outcome.text, outcome.passed) == ("done", True) and outcome.seconds > 0
    assert rows == {"first": {"quick": True, "arguments": ["a", "b"]}, "second": {"value": 1, "more": 2}}


def test_a_section_that_raises_keeps_its_rows_and_its_traceback(run):
    outcome, rows = run("raises")
    assert (outcome.text, outcome.passed) == ("failed with exit code 1", False)
    assert rows == {"before": {"value": 1}, "section": {"error": "ValueError: the toy is broken"}}
    log = run.log.read_text()
    assert "==== toy" in log and 'raise ValueError("the toy is broken")' in log and "Traceback" in log


def test_a_section_that_dies_is_reported_with_the_signal(run):
    outcome, rows = run("dies")
    assert (outcome.text, outcome.passed) == ("died by SIGSEGV", False)
    assert rows == {"before": {"value": 1}}
    assert "in dies" in run.log.read_text()  # where it was


def test_half_a_row_is_no_row(run):
    outcome, rows = run("breaks_off")
    assert outcome.text == "failed with exit code 3" and rows == {"before": {"value": 1}}


def test_a_section_that_hangs_is_killed_with_all_that_it_started(run, tmp_path):
    run.log.write_text("")

    def clock():
        """Goes on once the section has said where it hangs."""
        return 1e9 if "in hangs" in run.log.read_text() else 0.0

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    outcome, rows = run("hangs", str(pipe), seconds=4.0, deadline=Deadline(60, clock))
    assert (outcome.text, outcome.passed) == ("killed after 4 s", False) and rows == {"before": {"value": 1}}
    with open(reading) as file:
        assert select.select([file], [], [], 20)[0]  # it ends once nobody holds it any more


def test_a_section_that_prints_a_lot_leaves_beginning_and_end(run, monkeypatch):
    monkeypatch.setattr(gpu_runner, "LOG_LIMIT", 1000)
    run.log.write_text("before\n")
    run("prints", "50000")
    log = run.log.read_text()
    assert log.startswith("before\n\n==== toy") and "beginx" in log and "xend\nand this\n" in log
    assert "bytes are left out" in log and 1000 < len(log) < 1200
    run("prints", "10")
    assert "begin" + 10 * "x" + "end\nand this\n" in run.log.read_text()


def test_what_is_missing_is_named_and_costs_no_time(run):
    outcome, rows = run("works", needs=("json", "no_such_module", "no-such-program"))
    assert outcome == ("left out: no_such_module, no-such-program missing", None, 0.0) and not rows


def test_the_deadline_shrinks_what_is_left():
    now = [100.0]
    deadline = Deadline(50, lambda: now[0])
    shares = []
    for passed in (0, 30, 15, 10):
        now[0] += passed
        shares.append(deadline.share(20))
    assert shares == [20, 20, 5, -5]


def test_without_time_left_nothing_is_begun(run):
    assert run("works", deadline=Deadline(0.9 * gpu_runner.LEAST))[0].text == "left out: no time was left"
    assert run("works", deadline=Deadline(0), seconds=1.0)[0].text == "left out: no time was left"


def test_the_projects_folders_come_before_what_pythonpath_has(run, toys):
    _, rows = run("path")
    expected = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "examples"), str(toys)]
    assert rows["path"]["variable"] == os.pathsep.join(expected)
    assert [path for path in rows["path"]["path"] if path in expected][-4:] == expected


# ---- the command


def test_the_command_goes_on_after_every_kind_of_failure(toys, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    calls = {
        "machine": ("works",),
        "raising": ("raises",),
        "hanging": ("hangs", str(tmp_path / "held")),
        "looking": ("looks", str(out)),
        "in part": ("fails_in_part",),
    }
    sections = [Section(name, 1.0 if name == "hanging" else 60.0, ("toys", *call)) for name, call in calls.items()]
    monkeypatch.setattr(gpu, "SECTIONS", (*sections, Section("needing", 60.0, ("toys", "works"), ("no_such_module",))))
    assert gpu.main(["--out", str(out)]) == 1
    report = json.loads((out / "gpu.json").read_text())["sections"]
    outcomes = {name: section["outcome"].split(" after")[0] for name, section in report.items()}
    assert outcomes == {
        "machine": "done",
        "raising": "failed with exit code 1",
        "hanging": "killed",
        "looking": "done",
        "in part": "done, 1 failed",
        "needing": "left out: no_such_module missing",
    }
    seen = report["looking"]["rows"]["saw"]  # what was written before that section ended
    assert seen["report"]["sections"].keys() == {"machine", "raising", "hanging", "looking"}
    assert seen["report"]["sections"]["looking"]["outcome"] == "under way"
    assert "raising: section: ValueError: the toy is broken" in seen["text"]
    text = (out / "gpu.md").read_text()
    assert "| hanging | killed after 1 s" in text and "in part: bad: ValueError" in text
    assert "in part: done, 1 failed" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"gpu.json", "gpu.md", "gpu.log"}


def test_every_row_is_written_when_it_comes(tmp_path):
    report = Report(tmp_path)
    report.begin("speed, a net")
    record = report.recorder("speed, a net")
    for values in ({"rounds": [1.0]}, {"rounds": [1.0, 2.0]}):
        record("row", values)
        written = json.loads((tmp_path / "gpu.json").read_text())["sections"]["speed, a net"]
        assert written["rows"] == {"row": values}


def test_a_fault_in_a_table_costs_the_table_alone(tmp_path):
    report = Report(tmp_path)
    report.begin("parity")
    report.recorder("parity")("net", {"gradient": "no number"})
    assert "no number" in (tmp_path / "gpu.json").read_text() and "Traceback" in (tmp_path / "gpu.md").read_text()


def names(*arguments):
    return [section.name for section in gpu.chosen(gpu.parse(arguments))]


def test_the_order_of_the_sections_and_how_to_choose():
    speeds = ["speed, tutorial CNN", "speed, VGG-like", "speed, ResNet-20", "speed, compiled"]
    first, last = ["machine", "parity", *speeds, "profile", "operations", "fast90"], ["tests", "memcheck", "racecheck"]
    assert names() == first + last and names("--no-tests") == first
    assert names("--quick") == [name for name in first + last if name not in ("speed, compiled", "fast90")]
    assert names("--only", "speed", "racecheck") == ["machine", *speeds, "racecheck"]
    assert gpu.parse([]).deadline == 450


def test_every_section_can_be_called():
    for section in gpu.SECTIONS:
        module, function, *arguments = section.call
        assert not arguments or arguments[0] in gpu.tasks()
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed here")
def test_cupy_has_what_the_sections_ask_it_for():
    import cupy

    names = "cuda.Event.record cuda.Event.synchronize cuda.get_elapsed_time cuda.runtime.deviceSynchronize show_config"
    names += " cuda.runtime.getDeviceProperties cuda.runtime.driverGetVersion cuda.runtime.runtimeGetVersion"
    for name in names.split():
        assert callable(operator.attrgetter(name)(cupy))
    pool = cupy.get_default_memory_pool()
    assert callable(pool.free_all_blocks) and callable(pool.total_bytes)


NO_CUPY = "None"
BROKEN_CUPY = "importlib.util.module_from_spec(importlib.machinery.ModuleSpec('cupy', None))"


@pytest.mark.parametrize(("cupy", "said"), [(NO_CUPY, "needs CuPy"), (BROKEN_CUPY, "no attribute")])
def test_only_a_missing_device_ends_it_all(tmp_path, cupy, said):
    text = f"import importlib.machinery, importlib.util, sys\nsys.modules['cupy'] = {cupy}\n"
    (tmp_path / "sitecustomize.py").write_text(text)
    command = [sys.executable, "benchmarks/gpu.py", "--only", "operations", "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), "."])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stdout and "Traceback" not in done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "gpu.json").read_text())["sections"]
    assert report["machine"]["rows"]["host"]["numpy"]
    assert ("operations" in report) == (cupy == BROKEN_CUPY)
