"""What TensorBoard shows of a run, read back by its own EventAccumulator."""

import sys
import warnings
from contextlib import suppress

import numpy as np
import pytest
from test_checkpoint import Killed
from test_log_to import KillAt

import nnlite as nn

pytest.importorskip("tensorboardX")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

rng = np.random.default_rng(0)
X, T = rng.integers(0, 256, (40, 6, 5, 3)).astype("uint8"), rng.integers(0, 3, 40)


def train(callbacks, folder=None, **options):
    layers = nn.Normalize(mean=128, std=64), nn.Flatten(), nn.Dense(6), nn.ReLU(), nn.Dense(3)
    trainer = nn.Trainer(nn.Sequential(*layers, input_shape=(6, 5, 3)), nn.CrossEntropy(), nn.Adam(0.03), [], callbacks)
    trainer.fit((X, T), **({"epochs": 3, "batch_size": 8, "checkpoint": folder, "progress": False} | options))
    return trainer


def read(folder):
    """For each tag its steps and values."""
    events = accumulator.EventAccumulator(str(folder), size_guidance=dict.fromkeys(accumulator.DEFAULT_SIZE_GUIDANCE, 0))
    events.Reload()
    tags = events.Tags()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    for tag in tags["histograms"]:
        values = [event.histogram_value for event in events.Histograms(tag)]
        found[tag] = [(e.step, (v.num, v.sum, v.max)) for e, v in zip(events.Histograms(tag), values, strict=True)]
    for tag in tags["images"]:
        found[tag] = [(event.step, event.encoded_image_string) for event in events.Images(tag)]
    return {tag: rows for tag, rows in found.items() if rows and "second" not in tag}


def test_what_is_written_is_what_was_trained(tmp_path):
    board = nn.insight.TensorBoard(tmp_path, every=4, data=(X, T), images=4, classes=np.array(["a", "b", "c"]))
    trainer = train([board])
    found = read(tmp_path)
    weights = {f"{kind}/{name}" for kind in ("weights", "gradients") for name in ("2.W", "2.b", "4.W", "4.b")}
    numbers = {"loss", "learning_rate", "step/loss", "step/learning_rate"}
    assert set(found) == numbers | weights | {"confusion_matrix", "samples"}
    assert found["loss"] == [(5 * (i + 1), pytest.approx(loss)) for i, loss in enumerate(trainer.history["loss"])]
    assert [step for step, _ in found["step/loss"]] == [4, 8, 12]
    for kind, named in (("weights", trainer.model.named_params()), ("gradients", trainer.model.named_grads())):
        for name, values in named.items():
            step, (count, total, most) = found[f"{kind}/{name}"][-1]
            assert (step, count) == (15, values.size)
            assert (total, most) == (pytest.approx(values.sum(), abs=1e-5), pytest.approx(values.max()))
    for tag in ("confusion_matrix", "samples"):
        assert [step for step, _ in found[tag]] == [5, 10, 15] and found[tag][0][1].startswith(b"\x89PNG")
    assert found["samples"][0][1] != found["samples"][2][1]


@pytest.mark.parametrize("kills", [[(7, False)], [(5, True), (12, False), (15, True)], [(4, False), (4, False), (10, True)]])
def test_a_resumed_run_is_shown_as_an_uninterrupted_one(tmp_path, kills):
    def board(name):
        return nn.insight.TensorBoard(tmp_path / name, every=1)

    for step, at_end in kills:
        with suppress(Killed):
            train([board("resumed"), KillAt(step, at_end)], tmp_path / "run", every=3, resume=True)
    train([board("resumed")], tmp_path / "run", every=3, resume=True)
    train([board("whole")])
    resumed, whole = read(tmp_path / "resumed"), read(tmp_path / "whole")
    assert resumed == whole and [step for step, _ in whole["step/loss"]] == list(range(1, 16))


def test_a_new_run_hides_the_one_before(tmp_path):
    train([nn.insight.TensorBoard(tmp_path)])
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / "events.out.tfevents.1000000000.here")  # of an earlier second
    trainer = train([nn.insight.TensorBoard(tmp_path, histograms=False)], epochs=2)
    trainer.fit((X, T), batch_size=8, progress=False)
    found = read(tmp_path)
    assert [step for step, _ in found["loss"]] == [5, 10, 15] and "weights/2.W" not in found


def test_bad_arguments_are_refused_before_the_first_step(tmp_path):
    for folder in ("s3://bucket/run", 3, None):
        with pytest.raises(ValueError, match="folder must be a path, not "):
            nn.insight.TensorBoard(folder)
    (tmp_path / "file").write_text("")
    for options, error, words in (
        ({"folder": tmp_path / "file"}, nn.FileError, "no events can be written"),
        ({"data": [(X, T)]}, nn.DataError, r"data must be \(x, t\)"),
        ({"data": (X, rng.random(40))}, nn.DataError, "labels must be integers"),
        ({"data": (X, T), "classes": ["a"]}, nn.DataError, "classes must be the names of 3 classes"),
        ({"data": (X, T), "classes": 3}, nn.DataError, "classes must be a list of names"),
        ({"data": (X, np.where(np.arange(40) == 39, 3, T))}, nn.DataError, r"labels must be in 0 \.\.\. 2, found 3"),
        ({"data": (X[:, 1:], T)}, nn.ShapeError, r"expects inputs \(N, 6, 5, 3\)"),
    ):
        board = nn.insight.TensorBoard(**{"folder": tmp_path / "board", **options})
        with pytest.raises(error, match=words):
            train([board, Never()])


class Never(nn.Callback):
    def on_step_end(self, trainer):
        raise AssertionError("a step was made")


def test_without_tensorboardx_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.raises(ImportError, match=r"pip install 'nnlite-numpy\[tensorboard\]'"):
        nn.insight.TensorBoard("out")
