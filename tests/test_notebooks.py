"""The notebooks run as scripts, and what they say of their results holds."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("marimo", reason="the notebooks need marimo: pip install 'nnlite-numpy[notebooks]'")
FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture(autouse=True)
def images_of_everybody(tmp_path, monkeypatch):
    monkeypatch.setenv("NNLITE_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


def run(name):
    """What the cells of a notebook define, run as `python notebooks/NAME.py` does."""
    _, defined = import_module(name).app.run()
    return defined


def test_backpropagation_by_hand_is_that_of_the_layers():
    found = run("backpropagation")
    losses = np.array([J for J, _ in found["path"]])
    assert len(found["gaps"]) == 5 and max(found["gaps"]) < 1e-15
    np.testing.assert_allclose(found["losses_here"], losses, rtol=1e-9)
    assert losses[-1] < 0.01 < 0.5 < losses[0]


def test_filters_become_smooth():
    found = run("filters")
    taken, model = found["snapshots"].taken, found["model"]
    assert found["data"].name == "shapes" and len(taken) == 9 and found["history"]["accuracy"][-1] > 0.5

    def smoothness(snapshot):
        """The correlation of neighbouring weights."""
        model.restore(snapshot)
        W = model[1].W
        return np.corrcoef(W[:, :, 1:].ravel(), W[:, :, :-1].ravel())[0, 1]

    assert smoothness(taken[0]) < 0.1 and smoothness(taken[-1]) > 0.7


def test_the_suggested_rate_learns():
    found = run("learning_rate")
    slow, suggested, _ = (losses[-1] for losses, _ in found["three"].values())
    assert 1e-4 < found["found"].suggestion < 1 and found["own_losses"][-1] < suggested < slow


def test_the_page_names_every_notebook():
    page = (FOLDER.parent / "docs" / "notebooks.md").read_text()
    assert len(NAMES) == 3 and all(f"notebooks/{name}.py" in page for name in NAMES)
