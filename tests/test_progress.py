"""What is seen of training: bars, lines, and nothing where nobody can see; no stream ends training."""

import contextlib
import hashlib
import io
import itertools
import sys
import types
from email.message import Message

import numpy as np
import pytest
import tqdm.auto
from test_checkpoint import KillAt, Killed

import nnlite as nn
from nnlite.data import files
from nnlite.training import progress

X = np.random.default_rng(0).standard_normal((90, 2)).astype("float32")
T = (X[:, 0] > 0).astype(int)


def fit(data=(X, T), **options):
    trainer = nn.Trainer(nn.Sequential(nn.Dense(2), input_shape=(2,)), nn.CrossEntropy(), nn.SGD(0.1), [nn.Accuracy()])
    trainer.fit(data, **options)
    return trainer


class Tee:
    """Somebody's own stream: it can write, and nothing else."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


class Closed(io.StringIO):
    def __init__(self):
        super().__init__()
        self.close()


class Broken(Tee):
    """Its reader has gone, as that of a pipe may; it does not even say whether it is a terminal."""

    def isatty(self):
        raise OSError("no such device")

    def write(self, text):
        raise BrokenPipeError


STREAMS = {"Tee": Tee, "None": lambda: None, "Closed": Closed, "Broken": Broken}


@pytest.mark.parametrize("stderr", STREAMS)
@pytest.mark.parametrize("stdout", STREAMS)
def test_no_stream_ends_training(monkeypatch, tmp_path, stdout, stderr):
    out, err = STREAMS[stdout](), STREAMS[stderr]()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    trainer = fit(epochs=2, validation=(X, T), checkpoint=tmp_path, resume=True)
    fit(epochs=2, checkpoint=tmp_path / "again")
    fit((X, T) for _ in range(3))
    assert trainer.epochs == 2
    if stdout == "Tee":
        assert "starting afresh" in out.text and out.text.count("epoch 2  loss") == 2 and "val_accuracy" in out.text
    if stderr == "Tee":
        assert not err.text


class Recorder:
    """Stands in for tqdm's bar in a notebook."""

    made = None

    def __init__(self, **options):
        self.options, self.shown, self.seen, self.closed = options, [], options["initial"], False
        Recorder.made.append(self)

    def update(self, n):
        self.seen += n

    def set_postfix(self, values, refresh=True):
        self.shown.append(values)

    def close(self):
        self.closed = True


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setattr(Recorder, "made", [])
    return Recorder.made


@pytest.fixture
def notebook(monkeypatch, bars):
    """A kernel with widgets, as far as tqdm looks for one: it finds that out when it is imported."""
    shell = type("ZMQInteractiveShell", (), {"config": {"IPKernelApp": {}}})()
    modules = {
        "ipykernel.zmqshell": types.ModuleType("zmqshell"),
        "IPython": types.SimpleNamespace(get_ipython=lambda: shell),
        "tqdm.notebook": types.SimpleNamespace(IProgress=object, WARN_NOIPYW="", tqdm=Recorder, trange=None),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("auto", "autonotebook"):
        monkeypatch.setattr(tqdm, name, getattr(tqdm, name))  # which the import replaces
        monkeypatch.delitem(sys.modules, f"tqdm.{name}")
    for name in ("QT_API", "VSCODE_PID"):
        monkeypatch.delenv(name, raising=False)
    return bars


@pytest.mark.parametrize("stream", [io.StringIO, lambda: None, Tee])
def test_a_live_bar_in_a_notebook(notebook, monkeypatch, capsys, stream):
    """Whose stderr is no terminal."""
    monkeypatch.setattr(sys, "stderr", stream())
    fit(epochs=2, validation=(X, T))
    assert len(notebook) == 2 and all(bar.closed and bar.seen == 90 for bar in notebook)
    assert {"loss", "accuracy", "val_loss"} <= notebook[0].shown[-1].keys()
    assert notebook[1].options["desc"] == "epoch 2" and notebook[1].options["total"] == 90
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("cost", "updates"), [(0.0, 51), (0.5, 2)])
def test_values_that_take_long_are_shown_seldom(notebook, monkeypatch, cost, updates):
    """Such as the area under a curve of a million samples. A step takes a hundredth of a second."""
    now = 0.0
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now))

    def values():
        nonlocal now
        now += cost
        return {"loss": 1.0}

    bar = progress.Bar(Recorder, "epoch 1", None, "sample", 0, progress.Progress())
    for _ in range(1050):
        now += 0.01
        bar.advance(1, values)
    assert len(notebook[0].shown) == updates


def test_whatever_tqdm_recognises_is_live(bars, monkeypatch):
    monkeypatch.setattr(tqdm.auto, "tqdm", Recorder)
    fit()
    assert [bar.seen for bar in bars] == [90]


def test_without_progress_nothing_is_shown(notebook, capsys, monkeypatch):
    monkeypatch.setattr(progress, "time", None)  # not even a clock is read
    fit(epochs=2, progress=False)
    assert not notebook and capsys.readouterr() == ("", "")


def test_the_bar_counts_steps_where_an_epoch_is_so_many(notebook):
    fit(epochs=2, steps_per_epoch=5)
    assert [(bar.options["total"], bar.options["unit"], bar.seen) for bar in notebook] == [(5, "step", 5)] * 2
    fit([(X, T)])
    assert (notebook[2].options["total"], notebook[2].options["unit"], notebook[2].seen) == (None, "sample", 90)


@pytest.mark.parametrize(("steps", "done"), [(None, 64), (6, 4)])
def test_the_bar_of_a_resumed_epoch_begins_where_it_stood(notebook, tmp_path, steps, done):
    for step in (5, 0):
        trainer = nn.Trainer(nn.Sequential(nn.Dense(2), input_shape=(2,)), nn.CrossEntropy(), nn.SGD(0.1), [], [KillAt(step)])
        with contextlib.suppress(Killed):
            trainer.fit((X, T), batch_size=16, checkpoint=tmp_path, every=4, steps_per_epoch=steps, resume=True)
    assert [bar.options["initial"] for bar in notebook] == [0, done] and notebook[1].seen == notebook[1].options["total"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stdout", [Terminal, io.StringIO])
def test_a_log_has_lines_while_the_terminal_has_bars(monkeypatch, stdout):
    """As in `python train.py | tee log`."""
    out, err = stdout(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    fit(epochs=2, validation=(X, T))
    assert err.getvalue().count("90/90") >= 2 and "val_loss=" in err.getvalue()
    lines = [line.split("  ") for line in out.getvalue().splitlines()]
    assert [line[0] for line in lines] == ([] if stdout is Terminal else ["epoch 1", "epoch 2"])
    assert all(line[1].startswith("loss ") and line[-1].endswith("samples/s") for line in lines)
    assert not {"\r", "\x1b"} & set(out.getvalue())


class Clock:
    """Each step takes a quarter of a second."""

    def __init__(self):
        self.now = itertools.count(0, 0.25)

    def monotonic(self):
        return next(self.now)


def test_an_epoch_of_unknown_length_shows_how_many_samples_were_seen(monkeypatch, capsys):
    """After 1, 2, 4, 8 seconds; the clock is read once at the beginning and once a step."""
    monkeypatch.setattr(progress, "time", Clock())
    fit((X[:10], T[:10]) for _ in range(40))
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [["epoch 1", f"{n} samples"] for n in (40, 80, 160, 320)]
    assert all("  loss " in line and "  accuracy " in line and line.endswith("  40 samples/s") for line in lines)
    assert last.startswith("epoch 1  loss ")


@pytest.mark.parametrize("options", [{}, {"steps_per_epoch": 40}])
def test_an_epoch_of_known_length_is_one_line(monkeypatch, capsys, options):
    monkeypatch.setattr(progress, "time", Clock())
    fit(batch_size=2, **options)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_small_values_are_seen(capsys):
    """And neither times nor learning rates: those are in the history."""
    row = {"loss": 3.21e-5, "val_loss": -3.21e-5, "r2": 0.0, "mae": 1e-3, "f1": float("nan"), "learning_rate": 0.1}
    progress.Lines("epoch 1", False, 0).end(row | {"learning_rate_*": 0.1, "seconds": 2.0, "samples_per_second": 45.0})
    shown = ["loss 3.2100e-05", "val_loss -3.2100e-05", "r2 0.0000", "mae 0.0010", "f1 nan"]
    assert capsys.readouterr().out.strip().split("  ") == ["epoch 1", *shown, "45 samples/s"]


def test_lines_come_at_least_every_ten_minutes(monkeypatch, capsys):
    seconds = 0
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: seconds))
    shown = progress.Lines("epoch 1", is_endless=True, samples=5)
    for seconds in range(1, 4001):  # noqa: B007 (the clock reads it)
        shown.advance(1, dict)
    lines = capsys.readouterr().out.splitlines()
    wanted = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1624, 2224, 2824, 3424]
    assert lines == [f"epoch 1  {5 + seconds:,} samples  1 samples/s" for seconds in wanted]


@pytest.mark.parametrize("stream", ["Tee", "None", "Closed"])
def test_no_stream_ends_a_download(monkeypatch, tmp_path, stream):
    def urlopen(url, timeout):
        response = io.BytesIO(b"right")
        response.headers = Message()
        return response

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setattr(sys, "stderr", STREAMS[stream]())
    files.fetch(tmp_path / "file", ["https://a"], hashlib.md5(b"right").hexdigest(), allowed=True)
    assert (tmp_path / "file").read_bytes() == b"right"
