"""A folder of images: which files are its samples, how they are read, and that it trains as the same images in memory do."""

import contextlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_files
from test_checkpoint import KillAt, Killed
from test_project import fresh

import nnlite as nn
from nnlite.backend import get_backend
from nnlite.data import Cutout, Dataset, ImageFiles, RandomFlip, folder
from nnlite.training import checkpoint

CLASSES = ("ant", "bee", "cat")
PIXELS = np.random.default_rng(0).integers(0, 256, (22, 5, 6, 3), dtype=np.uint8)
LABELS = np.repeat([0, 1, 2], [9, 6, 7])


def write(root: Path, pixels=PIXELS, labels=LABELS) -> Path:
    """One folder a class; the images are numbered."""
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = root / CLASSES[label] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("images"))


def in_memory(data: Dataset) -> Dataset:
    return Dataset(data.images[:], data.labels, data.classes, weights=data.weights, augmentations=data.augmentations)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


# ---- which files


def test_folders_are_classes_in_the_order_of_their_names(root):
    data, files = folder(root), load_files(root, load_content=False, shuffle=False)
    assert data.classes == CLASSES == tuple(files.target_names)
    assert np.array_equal(data.labels, files.target) and [str(path) for path in data.images.paths] == list(files.filenames)
    assert data.labels.dtype == np.int64 and np.array_equal(data.images[:], PIXELS)
    assert repr(data) == "Dataset(22 samples (5, 6, 3) uint8, labels int64)"
    assert repr(data.images) == "ImageFiles(22 files, size=(5, 6), channels=3)"


def test_other_files_are_ignored_and_links_and_inner_folders_followed(root, tmp_path):
    image = root / "ant" / "000.png"
    ants = tmp_path / "all" / "ant"
    for name in (
        "b.PNG",
        "a.JpEg",
        "c.jpg",
        "._c.png",
        "Thumbs.db",
        "notes.txt",
        "d.webp",
        "z/1.png",
        "y/2.png",
        ".hidden/3.png",
    ):
        (ants / name).parent.mkdir(parents=True, exist_ok=True)
        (ants / name).write_bytes(image.read_bytes())
    (tmp_path / "all" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "all" / "readme.png").write_bytes(image.read_bytes())
    (tmp_path / "all" / "bee").symlink_to(root / "bee")
    (ants / "y" / "loop").symlink_to(ants)
    (ants / "e.png").symlink_to(image)
    (ants / "x").symlink_to(write(tmp_path / "elsewhere", PIXELS[:1], [0]))
    data = folder(tmp_path / "all")
    names = [path.relative_to(ants).as_posix() for path in data.images.paths[data.labels == 0]]
    assert names == ["a.JpEg", "b.PNG", "c.jpg", "e.png", "x/ant/000.png", "y/2.png", "z/1.png"]
    assert data.classes == ("ant", "bee") and (data.labels == 1).sum() == 6


def test_what_is_no_folder_of_classes(root, tmp_path):
    for path in (tmp_path / "none", root / "ant" / "000.png"):
        with pytest.raises(nn.DataError, match="is no folder"):
            folder(path)
    with pytest.raises(nn.DataError, match="has no folders: each class needs one"):
        folder(root / "ant")
    write(tmp_path)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.gif").write_bytes(b"GIF89a")
    with pytest.raises(nn.DataError, match=r"class .*dog has no image that can be read: its folder needs \.png, \.jpg, \.jpeg"):
        folder(tmp_path)


@pytest.mark.parametrize("which", [".", "bee"])
def test_a_folder_that_cannot_be_listed_is_named(root, monkeypatch, which):
    def locked(path):
        if Path(path) == root / which:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(nn.DataError, match=f"{(root / which).name} cannot be read: Permission denied"):
        folder(root)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 32}, r"size must be \(height, width\)"),
        ({"size": (0, 4)}, r"size(\[0\])? must be"),
        ({"size": (4, 4, 3)}, r"size(\[0\])? must be"),
        ({"size": (4.0, 4.0)}, r"size(\[0\])? must be"),
        ({"size": "x" * 1000}, r"size(\[0\])? must be"),
        ({"channels": 2}, "channels must be 3, for RGB, or 1, for grey, not 2"),
        ({"damaged": "ignore"}, 'damaged must be "raise" or "skip"'),
    ],
)
def test_settings_that_make_no_sense(root, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        folder(root, **options)
    assert len(str(caught.value)) < 600


def test_without_pillow_the_install_line_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'nnlite-numpy\[images\]'"):
        folder(root)


def test_pillow_is_imported_where_it_is_used():
    assert fresh("import sys, nnlite.data; print('PIL' in sys.modules)") == ["False"]


# ---- how they are read


def saved(tmp_path, image, name="image.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def read(path, **options):
    return ImageFiles([path], **options)[0]


def test_every_kind_of_png_and_jpeg_becomes_8_bits_of_colour_or_grey(tmp_path):
    red_and_green = Image.new("P", (2, 1))
    red_and_green.putpalette([200, 0, 0, 0, 100, 0])
    red_and_green.putpixel((1, 0), 1)
    deep = Image.fromarray(np.array([[255, 256, 40_000, 65_535]], np.uint16))
    images = {
        "grey": (Image.new("L", (1, 1), 9), {}, [[9, 9, 9]]),
        "one bit": (Image.new("1", (1, 1), 1), {}, [[255, 255, 255]]),
        "16 bits": (deep, {}, [[0] * 3, [1] * 3, [156] * 3, [255] * 3]),
        "grey, alpha": (Image.new("LA", (1, 1), (9, 50)), {}, [[9, 9, 9]]),
        "alpha": (Image.new("RGBA", (1, 1), (1, 2, 3, 0)), {}, [[1, 2, 3]]),
        "palette": (red_and_green, {}, [[200, 0, 0], [0, 100, 0]]),
        "transparent palette": (red_and_green, {"transparency": b"\x00\x80"}, [[200, 0, 0], [0, 100, 0]]),
    }
    for name, (image, options, wanted) in images.items():
        path = saved(tmp_path, image, f"{name}.png", **options)
        assert read(path).tolist() == [wanted], name
        grey = [[round(0.299 * r + 0.587 * g + 0.114 * b)] for r, g, b in wanted]
        assert read(path, channels=1).tolist() == [grey], name
    cmyk = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "cmyk.jpg")
    assert abs(read(cmyk).astype(int) - [255, 0, 0]).max() < 5


def test_the_orientation_in_exif_data_is_not_applied_as_in_torchvision(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = Image.fromarray(PIXELS[0])
    assert np.array_equal(read(saved(tmp_path, image, exif=exif)), PIXELS[0])


def test_the_bytes_say_what_a_file_is_not_its_name(tmp_path):
    image = Image.new("RGB", (8, 8), (90, 90, 90))
    assert abs(read(saved(tmp_path, image, "image.png", format="JPEG")).astype(int) - 90).max() < 3
    with pytest.raises(nn.DataError, match="neither PNG nor JPEG"):
        read(saved(tmp_path, image, "image.png", format="GIF"))


@given(size=st.tuples(st.integers(1, 12), st.integers(1, 12)), channels=st.sampled_from([1, 3]))
def test_images_are_resized_as_torchvision_does(root, size, channels):
    data = folder(root, size=size, channels=channels)
    assert data.images.shape == (22, *size, channels)
    for image, pixels in zip(data[4:6].images, PIXELS[4:6], strict=True):
        wanted = Image.fromarray(pixels).convert("RGB" if channels == 3 else "L")
        wanted = wanted.resize(size[::-1], Image.Resampling.BILINEAR)
        assert np.array_equal(image, np.asarray(wanted).reshape(*size, channels))


def test_images_of_several_sizes_need_a_size(tmp_path):
    write(tmp_path, [PIXELS[0], PIXELS[1], PIXELS[2, :3]], [0, 0, 1])
    with pytest.raises(
        nn.DataError, match=r"\(5, 6\) .*ant.000\.png and \(3, 6\) in .*bee.002\.png: give size=\(height, width\)"
    ):
        folder(tmp_path)
    assert folder(tmp_path, size=(4, 4)).images[:].shape == (3, 4, 4, 3)


def test_it_is_indexed_as_an_array(root):
    images = folder(root).images
    some = np.arange(22) % 3 == 0
    for rows in (3, -1, np.int64(4), slice(2, 9, 2), slice(5, 5), np.array([4, 1, 1]), some, [2, 0]):
        assert np.array_equal(images[rows], PIXELS[rows])
        if not isinstance(rows, int | np.integer):
            assert isinstance(images.part(rows), ImageFiles) and np.array_equal(images.part(rows)[:], PIXELS[rows])
    assert np.array_equal(np.asarray(images), PIXELS) and np.asarray(images, np.float32).dtype == np.float32
    assert images.nbytes == PIXELS.nbytes and (images.dtype, images.ndim, len(images)) == (np.uint8, 4, 22)
    with pytest.raises(IndexError):
        images[22]


def test_images_are_read_when_a_batch_is_made_and_no_others(root, monkeypatch):
    opened, real = [], Image.open
    data = folder(root)
    monkeypatch.setattr(Image, "open", lambda file, **options: opened.append(Path(file.name).name) or real(file, **options))
    parts = [*data.split(0.3, stratify=True), data[3:9], data.subset(7), data.augmented(RandomFlip())]
    batches = data.batches(4, shuffle=False, start=2)
    assert not opened and len(parts[0]) + len(parts[1]) == 22 and data.on(get_backend("cpu")) is data
    next(batches)
    assert sorted(opened) == ["008.png", "009.png", "010.png", "011.png"]


# ---- damaged files


@pytest.fixture
def damaged(tmp_path):
    write(tmp_path)
    damage(tmp_path / "ant" / "002.png")
    (tmp_path / "bee" / "010.png").write_bytes(b"no image")
    (tmp_path / "cat" / "016.png").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("threads", [1, 2])
def test_a_damaged_file_is_named_when_it_is_read(damaged, threads):
    nn.set_num_threads(threads)
    data = folder(damaged, size=(5, 6))
    assert np.array_equal(data.images[3:10], PIXELS[3:10])
    for rows, words in (
        (slice(None), r"ant.002\.png cannot be read: "),
        (slice(9, None), r"bee.010\.png .*neither PNG nor JPEG"),
    ):
        with pytest.raises(nn.DataError, match=words):
            data.images[rows]
    (damaged / "ant" / "002.png").unlink()
    with pytest.raises(nn.DataError, match=r"002\.png cannot be read: No such file"):
        data.images[2]
    with pytest.raises(nn.DataError, match=r'010\.png.*damaged="skip"'):
        folder(damaged)  # reads the size of each


@given(threads=st.integers(1, 4))
def test_damaged_files_are_skipped_once_and_for_all(damaged, threads):
    nn.set_num_threads(threads)
    kept = np.delete(np.arange(22), [2, 10, 16])
    with pytest.warns(RuntimeWarning, match=r"3 of 22 .* left out: .*002\.png, .*010\.png, .*016\.png"):
        data = folder(damaged, damaged="skip")
    assert np.array_equal(data.images[:], PIXELS[kept]) and np.array_equal(data.labels, LABELS[kept])
    assert data.classes == CLASSES


def test_nothing_is_said_where_nothing_is_damaged(root):
    assert len(folder(root, damaged="skip")) == 22


def test_a_class_that_is_damaged_as_a_whole_is_named(tmp_path):
    write(tmp_path, PIXELS[:3], [0, 0, 1])
    damage(tmp_path / "bee" / "002.png")
    with pytest.raises(nn.DataError, match="bee has no image"), pytest.warns(RuntimeWarning, match="1 of 3"):
        folder(tmp_path, damaged="skip")


@given(cut=st.integers(0, 400), at=st.integers(0, 400), value=st.integers(0, 255), kind=st.sampled_from(["PNG", "JPEG"]))
def test_damaged_bytes_raise_nothing_else(tmp_path, cut, at, value, kind):
    path = saved(tmp_path, Image.fromarray(PIXELS[0]), format=kind)
    data = bytearray(path.read_bytes()[: cut or None])
    data[at % len(data)] = value
    path.write_bytes(data)
    with contextlib.suppress(nn.DataError):
        assert read(path, size=(4, 4)).shape == (4, 4, 3)


def test_memory_that_is_missing_is_no_damage(root, monkeypatch):
    def hungry(*args, **options):
        raise MemoryError

    monkeypatch.setattr(Image, "open", hungry)
    with pytest.raises(MemoryError):
        folder(root, size=(5, 6), damaged="skip")


def test_messages_stay_short(tmp_path, monkeypatch):
    def talkative(*args, **options):
        raise ValueError("x" * 1000)

    deep = write(tmp_path.joinpath(*["x" * 200] * 8), [PIXELS[0], PIXELS[1], PIXELS[2, :3]], [0, 0, 1])
    (deep / "cat").mkdir()
    calls = {
        "is no folder": lambda: folder("x" * 10_000),
        "has no image": lambda: folder(deep),
        "several sizes": lambda: ImageFiles([*deep.rglob("*.png")]),
        "cannot be read: No such file": lambda: read(deep / "none.png"),
        "cannot be read: xxx": lambda: monkeypatch.setattr(Image, "open", talkative) or read(deep / "ant" / "000.png"),
    }
    for words, call in calls.items():
        with pytest.raises(nn.DataError, match=words) as caught:
            call()
        assert len(str(caught.value)) < 600


# ---- as any data set


@given(
    batch_size=st.integers(1, 25),
    start=st.integers(0, 3),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 2**33),
    shuffle=st.booleans(),
    threads=st.integers(1, 3),
)
def test_batches_are_those_of_the_same_images_in_memory(root, threads, **order):
    nn.set_num_threads(threads)
    data = folder(root).augmented(RandomFlip(), Cutout(3))
    pairs = zip(data.batches(**order), in_memory(data).batches(**order), strict=True)
    assert all(np.array_equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


def test_parts_are_those_of_the_same_images_in_memory(root):
    data = folder(root)
    weighed = Dataset(data.images, data.labels, data.classes, weights=np.arange(22.0))
    for source in (data, weighed):
        twin = in_memory(source)
        cuts = [
            lambda d: d[2:9],
            lambda d: d[d.labels > 0],
            lambda d: d.subset(5),
            lambda d: d.split(0.3, seed=4, stratify=True)[1],
        ]
        for cut in cuts:
            ours, theirs = next(cut(source).batches(30, shuffle=False)), next(cut(twin).batches(30, shuffle=False))
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)) and len(ours) == len(theirs)
            assert cut(source).classes == CLASSES


def make_trainer(callbacks=()):
    model = nn.Sequential(nn.Conv2D(2, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Dense(3), input_shape=(5, 6, 3))
    return nn.Trainer(model, nn.CrossEntropy(), nn.Adam(0.01), metrics=[nn.Accuracy()], callbacks=callbacks)


def train(data, callbacks=(), **options):
    trainer = make_trainer(callbacks)
    train_set, held_out = data.split(6, stratify=True)
    trainer.fit(train_set, epochs=3, batch_size=5, validation=held_out, progress=False, **options)
    return trainer


def test_it_trains_evaluates_and_predicts_as_the_same_images_in_memory(root):
    data = folder(root).augmented(RandomFlip())
    ours, theirs = train(data), train(in_memory(data))
    assert np.array_equal(ours.model.params, theirs.model.params) and ours.history["val_loss"] == theirs.history["val_loss"]
    assert ours.evaluate(data, batch_size=4) == theirs.evaluate(in_memory(data), batch_size=4)
    assert np.array_equal(ours.predict(data, batch_size=4), theirs.predict(PIXELS, batch_size=4))


def test_interrupted_and_resumed_it_has_the_same_bits(root, tmp_path):
    data, wanted = folder(root).augmented(RandomFlip()), train(folder(root).augmented(RandomFlip()))
    for place in (2, 7, 0):
        with contextlib.suppress(Killed):
            trainer = train(data, [KillAt(place)], checkpoint=tmp_path, every=1, resume=True)
    assert np.array_equal(trainer.model.params, wanted.model.params) and trainer.steps == wanted.steps


def others(root, tmp_path):
    other = write(tmp_path / "other", PIXELS[::-1])
    return {
        "images": folder(other),
        "size": folder(root, size=(6, 5)),
        "channels": folder(root, channels=1),
        "labels": Dataset(folder(root).images, (LABELS + 1) % 3, CLASSES),
    }


def test_a_digest_names_what_was_trained_on(root, tmp_path):
    """Its bytes, not where they are."""
    moved = write(tmp_path / "moved")
    digests = [folder(root).digest(), *(data.digest() for data in others(root, tmp_path).values())]
    assert folder(moved).digest() == digests[0] and len(set(digests)) == 5
    twin = in_memory(folder(root))
    make_trainer().fit(twin, progress=False, checkpoint=tmp_path / "run")
    (kept,) = (tmp_path / "run").glob("step-*")
    assert twin.digest() == checkpoint.read(kept)[1]["fingerprint"]["data"]["sha256"]


@pytest.mark.parametrize("what", ["images", "labels"])
def test_another_folder_is_not_taken_for_the_one_of_the_checkpoint(root, tmp_path, what):
    train(folder(root), checkpoint=tmp_path / "run")
    with pytest.raises(nn.StateError, match=r"data\.sha256 was"):
        train(others(root, tmp_path)[what], checkpoint=tmp_path / "run", resume=True)


def test_labels_from_elsewhere(root):
    """Of a table: file names and targets."""
    targets = np.linspace(0, 1, 22)
    data = Dataset(ImageFiles([str(path) for path in folder(root).images.paths], size=(4, 4), channels=1), targets)
    x, t = next(data.batches(3, shuffle=False))
    assert x.shape == (3, 4, 4, 1) and np.array_equal(t, targets[:3])
    with pytest.raises(nn.DataError, match="one length, got 22, 21"):
        Dataset(data.images, targets[1:])
    with pytest.raises(nn.DataError, match="no image files"):
        ImageFiles([])
