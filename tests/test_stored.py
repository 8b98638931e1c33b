"""Samples in files: memory-mapped arrays and shards train as the same arrays in memory do, read ahead by a thread."""

import contextlib
import itertools
import os
import pickle
import signal
import threading
import tracemalloc
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_checkpoint import KillAt, Killed

import nnlite as nn
from nnlite.data import Dataset, as_stored, npz_shards, stored
from nnlite.data.stored import MappedArray

rng = np.random.default_rng(0)
X = rng.standard_normal((61, 4, 5, 2)).astype("float32")
T = rng.integers(0, 3, 61)
W = (rng.random(61) + 0.1).astype("float32")
ENDS = [0, 9, 10, 30, 45, 61]  # of the shards


def write_shards(folder, x=X, t=T, w=W, ends=ENDS, save=np.savez):
    folder.mkdir(parents=True, exist_ok=True)
    for i, (first, end) in enumerate(itertools.pairwise(ends)):
        save(folder / f"{i}.npz", x=x[first:end], t=t[first:end], w=w[first:end])
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(write_shards(tmp_path_factory.mktemp("shards")) / "*.npz")


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    path = tmp_path_factory.mktemp("mapped") / "x.npy"
    np.save(path, X)
    return path


def open_map(path, mode="r"):
    return np.load(path, mmap_mode=mode)


def make_trainer(callbacks=()):
    model = nn.Sequential(nn.Conv2D(2, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Dense(3), input_shape=(4, 5, 2))
    return nn.Trainer(model, nn.CrossEntropy(), nn.Adam(0.01), metrics=[nn.Accuracy()], callbacks=callbacks)


def trained(data, callbacks=(), **options):
    trainer = make_trainer(callbacks)
    trainer.fit(data, **{"epochs": 3, "batch_size": 7, "progress": False} | options)
    return trainer


def same(a, b):
    assert np.array_equal(a.model.params, b.model.params) and a.history["loss"] == b.history["loss"]


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "nnlite-ahead"]


@pytest.fixture(autouse=True)
def _no_thread_stays():
    yield
    assert not readers()


# ---- arrays


ROWS = [slice(None), slice(3, 11), slice(50, 5, -3), slice(7, 7), np.array([5, 60, 5, 0, -1]), np.arange(61) % 3 == 0, 4, -1]


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_they_are_indexed_as_arrays_in_memory(rows, shards, mapped):
    for x in (as_stored(open_map(mapped)), npz_shards(shards, window=2).images):
        assert x[rows].dtype == X.dtype and np.array_equal(x[rows], X[rows])
        if not isinstance(rows, int):
            part = x.part(rows)
            assert part.shape == X[rows].shape and part.nbytes == X[rows].nbytes and np.array_equal(part, X[rows])
            assert np.array_equal(part.part(slice(1, None))[:], X[rows][1:])
        copy = pickle.loads(pickle.dumps(x))
        assert np.array_equal(copy[rows], X[rows]) and repr(copy) == repr(x)


def test_every_view_of_a_map_stays_in_its_file(mapped):
    whole = open_map(mapped)
    for view in (whole, whole[3:], whole[::-2], np.asarray(whole)[5:9], whole.transpose(0, 2, 1, 3), open_map(mapped, "c")):
        assert isinstance(as_stored(view), MappedArray) and np.array_equal(as_stored(view)[:], view)
    for values in (X, X[2:], whole[[1, 2]], [1, 2], np.array(whole)):
        assert as_stored(values) is values


def test_a_private_map_keeps_its_changes(mapped):
    array = open_map(mapped, "c")
    array[3] = 7
    data = as_stored(array)
    assert (data[:][3] == 7).all() and (data[3] == 7).all() and np.array_equal(np.load(mapped), X)
    shared = np.lib.format.open_memmap(mapped.with_name("y.npy"), "w+", X.dtype, X.shape)
    shared[:] = X
    assert np.array_equal(as_stored(shared)[:], X) and np.array_equal(as_stored(shared)[9], X[9])


def test_memory_does_not_grow_with_the_file(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "uint8", (2048, 1 << 16))  # 128 MiB, sparse

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("memory is read from /proc")
    data, before, most = Dataset(array, np.zeros(2048)), resident(), 0
    for x, _ in data.batches(64, shuffle=False):
        most = max(most, resident())
        assert not x.any()
    data.digest()
    assert max(most, resident()) - before < 56 << 20
    kept, held_out = data.split(0.5)
    assert kept.in_files and held_out.in_files and resident() - before < 56 << 20


def test_pages_are_given_back_often_where_samples_lie_apart(mapped, monkeypatch):
    array, given_back = open_map(mapped), []
    memory = SimpleNamespace(size=lambda: 1 << 40, madvise=given_back.append)
    data = as_stored(array)
    monkeypatch.setattr(stored, "_map_of", lambda _: (array, memory))
    monkeypatch.setattr(stored, "_APART", 4)
    for rows, times in ((slice(None), 1), (slice(50, 10, -1), 1), (np.array([60, 0, 31, 5, 9]), 2), (7, 1), (slice(7, 7), 0)):
        given_back.clear()
        assert np.array_equal(data[rows], X[rows]) and len(given_back) == times


def test_a_view_of_a_map_is_not_read_whole(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "uint8", (256, 1 << 16))  # 16 MiB, sparse
    views = [as_stored(view) for view in (array[::-2], array.T, array[:, ::3])]
    tracemalloc.start()
    for view in views:
        view[np.array([5, 9])]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 20


def test_targets_of_many_numbers_stay_in_their_file(mapped, shards):
    data = Dataset(open_map(mapped), open_map(mapped))
    x, t = next(data[3:].batches(5, shuffle=False))
    assert isinstance(data.labels, MappedArray) and np.array_equal(t, X[3:8]) and np.array_equal(x, t)
    both = npz_shards(shards, t="x")
    assert np.array_equal(next(both.batches(61, shuffle=False))[1], X)
    assert type(npz_shards(shards).labels) is np.ndarray and Dataset(open_map(mapped), np.zeros(61)).in_files
    assert not Dataset(X, T).in_files


# ---- training


def sources(mapped, shards):
    return {"map": Dataset(open_map(mapped), T, weights=W), "tuple": (open_map(mapped), T, W)}


@pytest.mark.parametrize("kind", ["map", "tuple"])
@pytest.mark.parametrize("options", [{}, {"steps_per_epoch": 4}, {"validation": 0.2}, {"shuffle": False}], ids=str)
def test_a_map_trains_as_the_array_in_memory(kind, options, mapped, shards):
    data = sources(mapped, shards)[kind]
    trainer, wanted = trained(data, **options), trained((X, T, W), **options)
    same(trainer, wanted)
    assert trainer.history.get("val_loss") == wanted.history.get("val_loss")
    assert trainer.evaluate(data, 9) == trainer.evaluate((X, T, W), 9)
    for x in (data, open_map(mapped)):
        assert np.array_equal(trainer.predict(x, 9), trainer.predict(X, 9))


@given(window=st.integers(1, 6), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_shards_are_shuffled_and_few_are_in_memory(window, seed, epoch, shards):
    data = npz_shards(shards, weights="w", window=window)
    shard_of = np.searchsorted(ENDS, np.arange(61), side="right") - 1
    order = np.concatenate([data.rows(i, 7, epoch=epoch, seed=seed) for i in range(9)])
    assert sorted(order) == list(range(61))
    windows = list(dict.fromkeys(shard_of[order]))
    for first in range(0, 5, window):
        group = windows[first : first + window]
        places = np.flatnonzero(np.isin(shard_of[order], group))
        assert np.array_equal(places, np.arange(places[0], places[0] + len(places))), "a window ends before the next begins"
    for (x, t, w), rows in zip(data.batches(7, epoch=epoch, seed=seed), np.split(order, range(7, 61, 7)), strict=True):
        assert np.array_equal(x, X[rows]) and np.array_equal(t, T[rows]) and np.array_equal(w, W[rows])
        assert len(data.images.kept) <= window


def test_each_shard_is_read_once_an_epoch(shards, monkeypatch):
    data, read = npz_shards(shards, window=2), []
    load = type(data.images)._values
    monkeypatch.setattr(type(data.images), "_values", lambda *args: read.append(args[-1]) or load(*args))
    for epoch in range(3):
        for _ in data.batches(7, epoch=epoch):
            pass
    assert len(read) <= 15 + 2 and set(read) == set(range(5))  # a shard may be there from the epoch before


def test_orders_differ_and_repeat(shards):
    data = npz_shards(shards, window=2)
    orders = {tuple(data.rows(0, 61, epoch=epoch, seed=seed)) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9 and len({np.searchsorted(ENDS, order[0], side="right") for order in orders}) > 2
    assert np.array_equal(data.rows(0, 61, epoch=2, seed=1), npz_shards(shards, window=2).rows(0, 61, epoch=2, seed=1))


def test_shards_train_predict_and_validate(shards):
    data = npz_shards(shards, weights="w", classes=["a", "b", "c"])
    trainer = trained(data, validation=data, shuffle=False)
    same(trainer, trained((X, T, W), validation=(X, T, W), shuffle=False))
    assert trainer.evaluate(data, 9) == trainer.evaluate((X, T, W), 9)
    assert np.array_equal(trainer.predict(data, 9), trainer.predict(X, 9))
    assert trained(data, validation=0.2).history["val_loss"]


@pytest.mark.parametrize("shuffle", [True, False])
def test_one_of_several_processes_reads_its_own_part(shuffle, mapped, shards):
    for data in (Dataset(open_map(mapped), T), npz_shards(shards, window=2)):
        whole = data.batches(7, shuffle=shuffle)
        own = data.batches(7, shuffle=shuffle, part=lambda n: slice(n // 3, n // 2))
        for (x, t), (mine, every) in zip(whole, own, strict=True):
            assert np.array_equal(mine, x[len(x) // 3 : len(x) // 2]) and np.array_equal(every, t)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("options", [{}, {"steps_per_epoch": 4}], ids=str)
def test_interrupted_within_an_epoch_it_ends_with_the_same_bits(save, options, tmp_path):
    folder = write_shards(tmp_path / "data", save=save)
    data = npz_shards(folder / "*.npz", window=2).augmented(nn.data.RandomFlip())
    wanted = trained(data, [KillAt(0)], **options)
    for step in (2, 5, 11):
        with contextlib.suppress(Killed):
            trained(data, [KillAt(step)], checkpoint=tmp_path / "run", every=1, resume=True, **options)
    again = npz_shards(folder / "*.npz", window=2).augmented(nn.data.RandomFlip())
    same(trained(again, [KillAt(0)], checkpoint=tmp_path / "run", every=1, resume=True, **options), wanted)


def test_files_that_have_changed_are_another_run(tmp_path):
    folder, run = write_shards(tmp_path / "data"), tmp_path / "run"
    options = {"checkpoint": run, "resume": True}
    trained(npz_shards(folder / "*.npz"), epochs=1, **options)
    trained(npz_shards(folder.rename(tmp_path / "moved") / "*.npz"), epochs=2, **options)
    folder = tmp_path / "moved"
    with pytest.raises(nn.StateError, match=r"data.sha256 was"):
        trained(npz_shards(folder / "*.npz", window=2), epochs=3, **options)
    (folder / "0.npz").rename(folder / "9.npz")
    with pytest.raises(nn.StateError, match=r"data.sha256 was"):
        trained(npz_shards(folder / "*.npz"), epochs=3, **options)
    np.savez(folder / "0.npz", x=X[:9] + 1, t=T[:9], w=W[:9])
    (folder / "9.npz").unlink()
    with pytest.raises(nn.StateError, match=r"data.sha256 was"):
        trained(npz_shards(folder / "*.npz"), epochs=3, **options)
    np.save(tmp_path / "x.npy", X)
    trained((X, T), epochs=1, checkpoint=tmp_path / "map")
    trained((open_map(tmp_path / "x.npy"), T), epochs=2, checkpoint=tmp_path / "map", resume=True)
    np.save(tmp_path / "x.npy", X + 1)
    with pytest.raises(nn.StateError, match=r"data.sha256 was"):
        trained((open_map(tmp_path / "x.npy"), T), epochs=3, checkpoint=tmp_path / "map", resume=True)


# ---- files that are no shards, or no longer


def cut(path, keep=-40):
    path.write_bytes(path.read_bytes()[:keep])


def rewrite(path, **arrays):
    np.savez(path, **{"x": X[:3], "t": T[:3], "w": W[:3]} | arrays)


REFUSED = {
    "truncated": (cut, "1.npz cannot be read: File is not a zip file"),
    "empty": (lambda path: path.write_bytes(b""), "1.npz cannot be read"),
    "missing": (lambda path: path.unlink(), "1.npz cannot be read: No such file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "1.npz cannot be read: Is a directory"),
    "no x": (lambda path: np.savez(path, images=X, t=T, w=W), r"1.npz cannot be read: it has no array x, but \['images'"),
    "another shape": (
        lambda path: rewrite(path, x=X[:3, :3]),
        r"x of the shard .*1.npz is float32 \(n, 3, 5, 2\), of .*0.npz ",
    ),
    "another dtype": (lambda path: rewrite(path, x=X[:3].astype("float64")), r"1.npz is float64"),
    "another kind of target": (lambda path: rewrite(path, t=T[:3] + 0.5), r"t of the shard .*1.npz is float64 \(n, "),
    "other lengths": (lambda path: rewrite(path, t=T[:4]), "1.npz has 3 samples, but 4 targets"),
    "other weights": (lambda path: rewrite(path, w=W[:4]), "1.npz has 3 samples, but 4 targets or weights"),
    "no samples": (lambda path: rewrite(path, x=X[:0], t=T[:0], w=W[:0]), r"1.npz cannot be read: it must hold samples"),
    "text": (lambda path: rewrite(path, x=np.array(["a", "b", "c"])), "1.npz cannot be read: it must hold samples of real"),
    "objects": (
        lambda path: rewrite(path, x=np.array([{}, 1, 2], object)),
        "1.npz cannot be read: it must hold samples of real",
    ),
    "a number": (lambda path: rewrite(path, x=np.float32(3)), "1.npz cannot be read: it must hold samples"),
}


@pytest.mark.parametrize(("spoil", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_shards_are_refused_at_once(spoil, words, tmp_path):
    folder = write_shards(tmp_path)
    paths = [folder / f"{i}.npz" for i in range(5)]
    spoil(paths[1])
    with pytest.raises(nn.DataError, match=words):
        npz_shards(paths, weights="w")


def test_no_shards_and_bad_arguments(tmp_path, shards):
    with pytest.raises(nn.DataError, match=r"no file fits .*train-\*\.npz"):
        npz_shards(tmp_path / "train-*.npz")
    with pytest.raises(nn.DataError, match="no shards"):
        npz_shards([])
    with pytest.raises(ValueError, match="window must be a whole number, at least 1"):
        npz_shards(shards, window=0)
    with pytest.raises(nn.DataError, match=r"labels must be in 0 ... 1, found 0 ... 2"):
        npz_shards(shards, classes=["a", "b"])


def test_more_values_than_bytes_are_refused_before_memory_is_taken(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 99)}"
    npy = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(64)
    with zipfile.ZipFile(tmp_path / "0.npz", "w") as archive:
        archive.writestr("x.npy", npy)
    with pytest.raises(nn.DataError, match=r"0.npz cannot be read: .* bytes are no float32 \(1000000000, 99\)"):
        npz_shards(tmp_path / "0.npz")


@given(data=st.data())
def test_damaged_shards_raise_data_errors_or_are_whole(data, tmp_path_factory):
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    folder = write_shards(tmp_path_factory.mktemp("damaged"), ends=[0, 5, 9], save=save)
    path = folder / "1.npz"
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    with contextlib.suppress(nn.DataError):
        shards = npz_shards(folder / "*.npz", weights="w")
        assert np.array_equal(shards.images[:], X[:9]) and np.array_equal(shards.labels, T[:9])


def test_labels_out_of_range_are_refused_before_the_first_step(tmp_path):
    data = npz_shards(write_shards(tmp_path / "data", t=np.where(np.arange(61) == 60, 3, T)) / "*.npz")
    trainer = make_trainer()
    with pytest.raises(nn.DataError, match=r"the training data: "):
        trainer.fit(data, progress=False, checkpoint=tmp_path / "run")
    assert trainer.steps == 0 and not (tmp_path / "run").exists()


CHANGES = {
    "gone": (lambda path: path.unlink(), "No such file"),
    "renamed": (lambda path: path.rename(path.with_name("other")), "No such file"),
    "truncated": (cut, "not a zip file"),
    "other values": (lambda path: np.savez(path, x=X[45:] + 1, t=T[45:]), "it has changed since it was opened"),
}


@pytest.mark.parametrize(("spoil", "words"), CHANGES.values(), ids=CHANGES)
def test_a_shard_that_changes_while_training_ends_it_with_its_name(spoil, words, tmp_path):
    folder = write_shards(tmp_path / "data")
    data = npz_shards(folder / "*.npz", window=1)
    spoil(folder / "4.npz")
    trainer = make_trainer()
    with pytest.raises(nn.DataError, match=rf"the shard .*4\.npz cannot be read: .*{words}") as caught:
        trainer.fit(data, batch_size=7, shuffle=False, progress=False, checkpoint=tmp_path / "run")
    assert caught.value.__traceback__ is not None and trainer.steps == 6, "the batches before it are trained on"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-000000006.safetensors"]
    with pytest.raises(nn.DataError, match=r"4\.npz"):
        trainer.evaluate(data)
    with pytest.raises(nn.DataError, match=r"4\.npz"):
        trainer.predict(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_values_are_found_by_their_checksum(method, tmp_path):
    def save(path, **arrays):
        with zipfile.ZipFile(path, "w", method, compresslevel=0) as file:
            for name, values in arrays.items():
                with file.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, values)

    folder = write_shards(tmp_path, save=save)
    path = folder / "2.npz"
    before = path.read_bytes()
    path.write_bytes(before.replace(X[20, 0, 0].tobytes(), X[20, 0, 0].tobytes()[::-1]))
    assert path.read_bytes() != before
    with pytest.raises(nn.DataError, match=r"2\.npz cannot be read: Bad CRC-32"):
        make_trainer().evaluate(npz_shards(folder / "*.npz"))


def test_a_shortened_map_is_an_error_and_not_the_end_of_the_process(tmp_path):
    np.save(tmp_path / "x.npy", X)
    data = Dataset(open_map(tmp_path / "x.npy"), T)
    os.truncate(tmp_path / "x.npy", 4096)
    with pytest.raises(nn.DataError, match=r"x\.npy has 4,096 bytes, the array in it ends at 9,888"):
        trained(data)


# ---- the thread that reads ahead


class Slow(nn.Callback):
    def __init__(self, act):
        self.act = act

    def on_step_end(self, trainer):
        if trainer.steps == 2:
            assert len(readers()) == 1
            self.act()


def fail():
    raise RuntimeError("in a callback")


def interrupt():
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize(("act", "error"), [(fail, RuntimeError), (interrupt, KeyboardInterrupt)])
@pytest.mark.parametrize("kept", [False, True])
def test_no_thread_stays_after_an_error(act, error, kept, steps, mapped, tmp_path):
    options = {"checkpoint": tmp_path} if kept else {}
    with pytest.raises(error) as caught:
        trained((open_map(mapped), T), [Slow(act)], steps_per_epoch=steps, **options)
    assert not readers(), caught  # whose traceback holds the frames
    if kept:
        resumed = trained((open_map(mapped), T), [KillAt(0)], steps_per_epoch=steps, resume=True, **options)
        same(resumed, trained((X, T), [KillAt(0)], steps_per_epoch=steps))


def test_a_damaged_image_ends_training_with_its_name(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for i in range(21):
        image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / f"{i:02}.png")
    data = Dataset(nn.data.ImageFiles(sorted(tmp_path.glob("*.png"))), T[:21])
    cut(tmp_path / "16.png")
    trainer = nn.Trainer(nn.Sequential(nn.Flatten(), nn.Dense(3), input_shape=(4, 5, 3)), nn.CrossEntropy(), nn.Adam())
    with pytest.raises(nn.DataError, match=r"the image .*16\.png cannot be read"):
        trainer.fit(data, batch_size=7, shuffle=False, progress=False)
    assert trainer.steps == 2 and not readers()


def test_waiting_for_a_slow_file_can_be_interrupted(mapped, monkeypatch):
    is_read = threading.Event()
    monkeypatch.setattr(MappedArray, "__getitem__", lambda *args: is_read.wait() and X[:1])
    timers = [threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)), threading.Timer(0.3, is_read.set)]
    for timer in timers:
        timer.start()
    with pytest.raises(KeyboardInterrupt):
        make_trainer().evaluate((open_map(mapped), T), 1)
    assert not readers()


def test_no_thread_stays_after_an_evaluation_of_a_few_batches(mapped):
    make_trainer().evaluate((open_map(mapped), T), 3, steps=2)


def test_at_most_two_batches_wait(mapped, monkeypatch):
    read, most = [], []
    take = MappedArray.__getitem__
    monkeypatch.setattr(MappedArray, "__getitem__", lambda *args: read.append(1) or take(*args))

    class Watch(nn.Callback):
        def on_step_end(self, trainer):
            most.append(len(read) - trainer.steps)

    trained((open_map(mapped), T), [Watch()], batch_size=1, epochs=1)
    assert len(read) == 61 and 0 < max(most) <= 3  # two, and the one that is being read
