"""The report of a run: what it shows, that it needs nothing else, what it refuses."""

import base64
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from chromium import Chromium

import nnlite as nn
from nnlite.insight import html
from nnlite.insight.run import FILES, FORMAT, METRICS, RESULTS, hash_of_weights, read_run
from nnlite.serialize import read_tensors

BAD = "<script>alert(1)</script>"
NAMES = ["ant", BAD, '"><img src=http://x.org/a onerror=alert(1)>', "-->$\\bad$", "猫"]
SECTIONS = ["Curves", "Confusion matrix", "Classes", "Right and wrong", "Filters"]
ALWAYS = ["The network", "Where time went", "How to reproduce"]
LIMIT = 5_000_000  # bytes
rng = np.random.default_rng(0)
T = rng.integers(0, 5, 60)
IMAGES = (rng.integers(0, 100, (60, 8, 6, 3)) + 30 * T[:, None, None, None]).astype("uint8")


def train(layers, loss, data, **options):
    model = nn.Sequential(*layers, input_shape=np.shape(data[0])[1:])
    trainer = nn.Trainer(model, loss, nn.Adam(0.01), **options)
    trainer.fit(data, epochs=2, validation=data, progress=False)
    return trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a run with images of classes whose names are no friends of a page."""
    layers = nn.Normalize(128, 64), nn.Conv2D(4, 3), nn.ReLU(), nn.Flatten(), nn.Dense(5)
    trainer = train(layers, nn.CrossEntropy(), (IMAGES, T), metrics=[nn.Accuracy()])
    folder, test = tmp_path_factory.mktemp("run"), nn.data.Dataset(IMAGES, T, NAMES)
    written = nn.insight.save_run(folder, trainer, test, {"dataset": BAD, "model": "net", "seed": 0}, batch_size=8)
    assert json.loads((folder / METRICS).read_text()) == written and written["weights"] == hash_of_weights(trainer.model)
    nn.insight.report(folder)
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run"


class Page(HTMLParser):
    """Its sections, its text, the values of attributes by name; all elements end where they should."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.tags, self.text = [], {}, set(), ""
        self.feed(text)
        assert not self.open
        self.sections = re.findall(r"<h2>(.*?)</h2>", text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            self.attributes.setdefault(name, []).append(value)
        if tag not in ("img", "link", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def needs_nothing(text):
    """Whether a page loads and runs nothing; the page."""
    page = Page(text)
    for name in ("src", "href", "xlink:href"):
        assert all(re.match("data:|#", value) for value in page.attributes.get(name, []))
    assert not page.tags & {"script", "iframe", "object", "embed", "base"}
    assert not [name for name in page.attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import", text) and len(text.encode()) < LIMIT
    assert not [data for data in re.findall(r"base64,([^\"]*)", text) if b"http" in base64.b64decode(data)]
    ids = page.attributes["id"]
    assert len(set(ids)) == len(ids)
    assert {f"#{id}" for id in ids} >= {address for address in page.attributes["href"] if address[0] == "#"}
    return page


# ---- what it shows


def test_all_sections_are_there_and_nothing_is_loaded(folder):
    page = needs_nothing((folder / "report.html").read_text())
    assert page.sections == SECTIONS + ALWAYS
    run = read_run(folder)
    accuracy = run.matrix.diagonal().sum() / 60
    for words in (f"{accuracy:.1%}", run.metrics["weights"], run.metrics["machine"], run.metrics["command"], "1 Conv2D(4, 3)"):
        assert words in page.text
    assert page.text.count("%") > 20 and f"net on {BAD}" in page.text and "native" in page.text


def test_names_are_shown_as_they_are(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert BAD not in text and "<img src=h" not in text
    for name in NAMES:
        assert page.text.count(name) >= 3 or len(name) > 14
    assert page.tags.isdisjoint({"script"}) and "onerror" not in page.attributes


def test_the_same_run_gives_the_same_bytes(folder, tmp_path):
    nn.set_kernels("numpy")
    assert nn.insight.report(folder, str(tmp_path / "twin.html")) == tmp_path / "twin.html"
    assert (tmp_path / "twin.html").read_bytes() == (folder / "report.html").read_bytes()


def test_pictures_are_the_right_and_the_most_confident_wrong_ones(folder):
    run, z = read_run(folder), nn.load(folder / "model.safetensors")(IMAGES)
    right = z.argmax(axis=1) == T
    assert run.matrix.diagonal().sum() == right.sum() and run.matrix.sum() == 60
    first, confident = np.flatnonzero(right)[:16], nn.softmax(z).max(axis=1)
    wrong = np.flatnonzero(~right)[np.argsort(-confident[~right], kind="stable")][:16]
    assert len(first) > 3 and len(wrong) > 3
    picks = np.concatenate([first, wrong])
    assert np.array_equal(run.images, IMAGES[picks]) and np.array_equal(run.labels, T[picks])
    assert np.allclose(run.outputs, z[picks], atol=1e-6) and run.classes == NAMES


@pytest.mark.parametrize(
    ("layers", "loss", "t", "shown"),
    [
        ((nn.Dense(1),), nn.MSE(), rng.random((60, 1)), []),
        ((nn.Dense(1),), nn.MSE(), T[:, None] * 100, []),
        ((nn.Dense(1),), nn.BinaryCrossEntropy(), T % 2, ["Confusion matrix", "Classes"]),
        ((nn.Dense(3), nn.ReLU(), nn.Dense(5)), nn.CrossEntropy(), T, ["Confusion matrix", "Classes"]),
    ],
)
def test_what_a_run_does_not_have_is_left_out(layers, loss, t, shown, tmp_path):
    x = rng.standard_normal((60, 4))
    nn.insight.save_run(tmp_path, train(layers, loss, (x, t)), (x, t))
    text = nn.insight.report(tmp_path).read_text()
    assert needs_nothing(text).sections == ["Curves", *shown, *ALWAYS]
    assert ("<dt>val loss" in text) == (not shown) and ("<dt>test accuracy" in text) == bool(shown)


def test_gray_images_in_floats_and_two_classes(tmp_path):
    x = IMAGES.mean(axis=3, keepdims=True)[:, ::2] / 255
    trainer = train((nn.Flatten(), nn.Dense(1)), nn.BinaryCrossEntropy(), (x, T > 2))
    nn.insight.save_run(tmp_path, trainer, (x, T > 2))
    run, page = read_run(tmp_path), needs_nothing(nn.insight.report(tmp_path).read_text())
    assert run.images.shape[1:] == (4, 6) and run.outputs.shape[1] == 2 and len(run.matrix) == 2
    assert page.sections == SECTIONS + ALWAYS and len(np.unique(run.images)) > 10


def test_a_large_run_has_a_small_report(folder, tmp_path):
    """Images of 300 x 200, many filters, a hundred classes with long names, ten thousand epochs."""
    n, names = 100, [f"{'x' * 50} {i}" for i in range(100)]
    images, t = rng.integers(0, 256, (80, 300, 200, 3)).astype("uint8"), np.arange(80)
    layers = nn.Conv2D(70, 7, stride=50), nn.GlobalAvgPool2D(), nn.Dense(n)
    model = nn.Sequential(*layers, input_shape=(300, 200, 3))
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam())
    columns = ("loss", "f1", "val_loss", "val_f1", "seconds", "samples_per_second")
    trainer.history = nn.History({name: rng.random(10_000).tolist() for name in columns})
    test, outputs = nn.data.Dataset(images, t, names), np.eye(n)[np.where(t < 40, t, 0)]
    nn.insight.save_run(tmp_path, trainer, test, outputs=outputs, batch_size=2)
    assert read_run(tmp_path).images.shape == (32, 100, 67, 3)
    text = nn.insight.report(tmp_path).read_text()
    assert "The first 64 of 70 of the first layer" in needs_nothing(text).text and text.count("<img") == 32 + 64


def test_names_that_are_numbers_or_no_unicode(folder, tmp_path):
    """As np.unique and a folder with an old encoding give them."""
    trainer = nn.Trainer(nn.load(folder / "model.safetensors"), nn.CrossEntropy(), nn.Adam())
    for names, shown in ((np.arange(10, 15), "14"), ([*"abcd", "k\udcf6nig"], "k\\udcf6nig")):
        nn.insight.save_run(tmp_path, trainer, nn.data.Dataset(IMAGES, T, names), {"dataset": "Häuser"})
        text = nn.insight.report(tmp_path).read_text()
        assert shown in text and text.count("Häuser") >= 3


def test_one_class_and_one_epoch_in_words(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Dense(3), input_shape=IMAGES.shape[1:])
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam())
    trainer.fit((IMAGES, T % 3), epochs=1, progress=False)
    nn.insight.save_run(tmp_path, trainer, (IMAGES, np.zeros(60, int)))
    text = Page(nn.insight.report(tmp_path).read_text()).text
    assert "are named right." in text and "Best known" not in text and "1 epoch of training took" in text


def test_what_was_typed_is_no_command(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    trainer = nn.Trainer(nn.load(folder / "model.safetensors"), nn.CrossEntropy(), nn.Adam())
    assert not nn.insight.save_run(tmp_path, trainer, (IMAGES, T))["command"]
    page = Page(nn.insight.report(tmp_path).read_text())
    assert page.sections[-1] == ALWAYS[-1] and "same weights" not in page.text


def test_layers_of_ones_own(tmp_path):
    class Twice(nn.Layer):
        def forward(self, a, ctx):
            return 2 * a

        def backward(self, delta, ctx):
            return 2 * delta

    x = rng.standard_normal((60, 4))
    nn.insight.save_run(tmp_path, train((Twice(), nn.Dense(5)), nn.CrossEntropy(), (x, T)), (x, T))
    with pytest.raises(nn.FileError, match="unknown layer 'Twice'"):
        nn.insight.report(tmp_path)
    assert "0 Twice()" in nn.insight.report(tmp_path, layers=[Twice]).read_text()


# ---- in a browser


def test_a_browser_shows_it_in_light_and_dark_and_on_a_phone(folder, tmp_path):
    backgrounds, inks = set(), set()
    with Chromium() as browser:
        for dark, width in ((False, 1280), (True, 1280), (False, 390)):
            browser.open((folder / "report.html").as_uri(), width=width, dark=dark)
            assert browser.requests() == browser.complaints() == []
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.value("[...document.images].every(image => image.naturalWidth > 0)")
            matrix = "document.querySelector('.matrix svg')"  # its text is as large as that around it
            pixels = browser.value(f"{matrix}.getBoundingClientRect().width / {matrix}.viewBox.baseVal.width")
            assert abs(pixels - 96 / 72) < 0.01
            assert browser.value("document.querySelectorAll('h2').length") == len(SECTIONS + ALWAYS)
            backgrounds.add(browser.value("getComputedStyle(document.body).backgroundColor"))
            inks.add(browser.value("getComputedStyle(document.querySelector('svg text')).fill"))
            assert browser.picture().startswith(b"\x89PNG")
        assert len(backgrounds) == len(inks) == 2
        text = (folder / "report.html").read_text()  # this would notice
        (tmp_path / "bad.html").write_text(text.replace("</main>", "<img src='http://127.0.0.1:9/a.png'><script>1</script>"))
        browser.open((tmp_path / "bad.html").as_uri(), width=390)
        assert len(browser.complaints()) == 2


# ---- what it refuses


def test_a_folder_without_a_run_says_what_is_missing(copied, tmp_path):
    for name in FILES:
        (copied / name).rename(tmp_path / "aside")
        with pytest.raises(nn.FileError, match=f"holds no run: {name} is missing"):
            nn.insight.report(copied)
        (tmp_path / "aside").rename(copied / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(nn.FileError, match=r"metrics.json, history.csv, model.safetensors, results.safetensors are missing"):
        nn.insight.report(tmp_path / "empty")
    with pytest.raises(nn.FileError, match="there is no folder"):
        nn.insight.report(tmp_path / "nowhere")


def with_results(folder, **changes):
    """Other values in the description, other arrays or, for None, none."""
    from safetensors.numpy import save_file

    arrays, description = read_tensors(folder / RESULTS, "results")
    values = {name: value for name, value in changes.items() if name in description}
    arrays = {name: array for name, array in (arrays | changes).items() if array is not None and name not in values}
    save_file(arrays, folder / RESULTS, {"nnlite": json.dumps(description | values)})


def test_a_run_of_another_version(copied):
    with_results(copied, format=FORMAT + 1, nnlite="9.9")
    with pytest.raises(nn.FileError, match=rf"format {FORMAT + 1} of nnlite '9.9', nnlite .* reads format {FORMAT}"):
        nn.insight.report(copied)


def test_files_of_two_runs(copied):
    metrics = json.loads((copied / METRICS).read_text())
    (copied / METRICS).write_text(json.dumps(metrics | {"weights": "0" * 16}))
    with pytest.raises(nn.FileError, match=r"metrics\.json is of another run than model\.safetensors"):
        nn.insight.report(copied)
    (copied / METRICS).write_text(json.dumps(metrics))
    with_results(copied, weights=None)
    with pytest.raises(nn.FileError, match=r"results\.safetensors is of another run than model\.safetensors"):
        nn.insight.report(copied)


@pytest.mark.parametrize(
    ("name", "contents", "words"),
    [
        (METRICS, b"{", "damaged"),
        (METRICS, b"\xff\xfe", "damaged"),
        (METRICS, b"[1, 2]", "damaged: it holds"),
        (METRICS, b"[" * 100_000, "damaged"),
        (METRICS, b'{"weights": 3, "command": "", "versions": "1"}', "damaged: it holds"),
        ("history.csv", b"", "not a history"),
        ("history.csv", b"epoch,loss\n1,0.5,3\n", "not a history"),
        ("history.csv", b"epoch,loss\n1,low\n", "not a history"),
        ("history.csv", b"loss,accuracy\n0.5,0.7\n", "not a history"),
        ("model.safetensors", b"...", "not a model"),
        (RESULTS, b"...", "not the results of a run"),
    ],
)
def test_a_damaged_file(copied, name, contents, words):
    (copied / name).write_bytes(contents)
    with pytest.raises(nn.FileError, match=rf"{re.escape(name)}.*{words}"):
        nn.insight.report(copied)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["a"]},
        {"profile": 3},
        {"profile": [[["layer", "share"], ["0", "1%; background: url(http://x.org)"]], ""]},
        {"labels": None},
        {"labels": np.zeros(2, int)},
        {"outputs": None},
        {"matrix": np.eye(4)},
        {"matrix": np.ones((5, 4))},
        {"images": np.zeros((3, 4, 4), "uint8")},
        {"matrix": np.eye(6), "classes": list("abcdef")},
    ],
)
def test_results_that_do_not_fit(copied, changes):
    with_results(copied, **changes)
    with pytest.raises(nn.FileError, match="not the results of a run, or damaged"):
        nn.insight.report(copied)


def test_an_address_is_no_path(folder, tmp_path):
    trainer = nn.Trainer(nn.load(folder / "model.safetensors"), nn.CrossEntropy(), nn.Adam())
    for call in (
        lambda: nn.insight.report("https://example.org/run"),
        lambda: nn.insight.report(3),
        lambda: nn.insight.report(folder, "s3://bucket/report.html"),
        lambda: nn.insight.save_run("s3://bucket", trainer, (IMAGES, T)),
    ):
        with pytest.raises(nn.FileError, match=r"must be a path, not "):
            call()
    with pytest.raises(nn.FileError, match="is a folder"):
        nn.insight.report(folder, tmp_path)


def test_a_run_that_cannot_be_written(folder, tmp_path):
    trainer = nn.Trainer(nn.load(folder / "model.safetensors"), nn.CrossEntropy(), nn.Adam())
    for metrics in ({"model": nn}, {1: 2, "a": {1, 2}}):
        with pytest.raises(ValueError, match="metrics must be what JSON can hold"):
            nn.insight.save_run(tmp_path / "run", trainer, (IMAGES, T), metrics)
    with pytest.raises(ValueError, match="metrics must be a dict"):
        nn.insight.save_run(tmp_path / "run", trainer, (IMAGES, T), [1])
    for outputs in (np.zeros((5, 5)), np.zeros((60, 4)), np.zeros(60)):
        with pytest.raises(nn.DataError, match=r"outputs must have shape \(60, 5\)"):
            nn.insight.save_run(tmp_path / "run", trainer, (IMAGES, T), outputs=outputs)
    with pytest.raises(nn.DataError, match="outputs of 60 of 60 samples are not numbers"):
        nn.insight.save_run(tmp_path / "run", trainer, (IMAGES, T), outputs=np.full((60, 5), np.nan))
    with pytest.raises(nn.DataError, match="names of 5 classes"):
        nn.insight.save_run(tmp_path / "run", trainer, nn.data.Dataset(IMAGES, T, list("abcdef")))
    with pytest.raises(nn.DataError, match=r"test must be \(x, t\)"):
        nn.insight.save_run(tmp_path / "run", trainer, [(IMAGES, T)])
    with pytest.raises(ValueError, match="batch_size"):
        nn.insight.save_run(tmp_path / "run", trainer, (IMAGES, T), batch_size=0)
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(nn.FileError, match="no run can be written to the folder"):
        nn.insight.save_run(tmp_path / "file", trainer, (IMAGES, T))


def test_without_matplotlib_it_says_what_to_install(copied, monkeypatch):
    """Also for a run without charts, before anything is done."""
    (copied / "history.csv").write_text("epoch\n")
    with_results(copied, matrix=None)
    assert Page(nn.insight.report(copied).read_text()).sections == ["Filters", *ALWAYS]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'nnlite-numpy\[plots\]'"):
        nn.insight.report(copied)


def test_a_history_is_read_as_it_was_written(tmp_path):
    history = nn.History({"loss": [0.1, float("nan")], "val_a,b": [1e-300, 3.0]})
    history.to_csv(tmp_path / "history.csv")
    assert repr(nn.History.from_csv(tmp_path / "history.csv")) == repr(history)
    nn.History().to_csv(tmp_path / "none.csv")
    assert nn.History.from_csv(tmp_path / "none.csv") == {}
    with pytest.raises(FileNotFoundError):
        nn.History.from_csv(tmp_path / "nowhere.csv")


def test_durations_in_words():
    words = ["6 ms", "0.5 s", "89 s", "2.0 min", "2.0 h"]
    assert [html._duration(s) for s in (0.0062, 0.5, 89, 120, 7200)] == words
