"""What a CNN looks at: images of CIFAR-10 with four maps of what its predictions rest on.

python examples/explain.py                    # trains the tutorial CNN for 3 epochs; the picture is out/explain/maps.png
python examples/explain.py --model out/cifar10/model.safetensors
python examples/explain.py --limit 1000 --epochs 1 --data shapes    # a quick look, offline

Needs matplotlib: pip install ".[plots]"
"""

import argparse
from pathlib import Path

import numpy as np
from cifar10 import load_data
from matplotlib.figure import Figure

import nnlite as nn
from nnlite.insight import explain

GREY = 128


def maps_of(model: nn.Sequential, x: np.ndarray) -> dict[str, np.ndarray]:
    """Maps (N, h, w) by name; the layer of Grad-CAM is the last one that gives images."""
    last = max(i for i, layer in enumerate(model.layers) if len(layer.out_shape) == 3)
    return {
        "saliency": explain.saliency(model, x).max(axis=-1),
        "integrated gradients": explain.integrated_gradients(model, x, baseline=GREY).sum(axis=-1),
        f"Grad-CAM of layer {last}": explain.grad_cam(model, x, str(last)),
        "occlusion": explain.occlusion(model, x, 8, stride=2, fill=GREY),
    }


def draw(x: np.ndarray, titles: list[str], maps: dict[str, np.ndarray], path: Path) -> None:
    """A row for each image. Red speaks for the predicted class, blue against it; maps without signs are black at 0."""
    figure = Figure(figsize=(2 * (1 + len(maps)), 2.1 * len(x)), layout="constrained")
    for i, row in enumerate(figure.subplots(len(x), 1 + len(maps), squeeze=False)):
        row[0].imshow(x[i])
        row[0].set_title(titles[i], fontsize=9)
        for axes, (name, found) in zip(row[1:], maps.items(), strict=True):
            most = abs(found[i]).max() or 1
            signed = bool((found < 0).any())
            frame = (-0.5, x.shape[2] - 0.5, x.shape[1] - 0.5, -0.5)
            axes.imshow(found[i], cmap="RdBu_r" if signed else "inferno", vmin=-most if signed else 0, vmax=most, extent=frame)
            axes.set_title(name if i == 0 else "", fontsize=9)
        for axes in row:
            axes.axis("off")
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> dict[str, np.ndarray]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a saved model of such images, instead of training one")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=5, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", choices=["auto", "cifar10", "shapes"], default="auto")
    parser.add_argument("--data-dir", type=Path, help="default: NNLITE_DATA, else the user's cache folder")
    parser.add_argument("--limit", type=int, help="train on the first LIMIT images only")
    parser.add_argument("--out", type=Path, default=Path("out/explain"))
    args = parser.parse_args(arguments)

    data = load_data(args)
    if args.model:
        model = nn.load(args.model)
    else:
        model = nn.zoo.tutorial_cnn(len(data.classes), seed=args.seed)
        trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam(1e-3), metrics=[nn.Accuracy()])
        trainer.fit(data.train.subset(args.limit), epochs=args.epochs, batch_size=64)
    x, labels = data.test.images[: args.images], data.test.labels[: args.images]
    found = [data.classes[c] for c in model(x).argmax(axis=1)]
    titles = [
        f"{name}, in truth {data.classes[c]}" if name != data.classes[c] else name
        for name, c in zip(found, labels, strict=True)
    ]
    maps = maps_of(model, x)
    args.out.mkdir(parents=True, exist_ok=True)
    draw(x, titles, maps, args.out / "maps.png")
    print(f"{args.out / 'maps.png'}: {', '.join(maps)} of {len(x)} images")
    return maps


if __name__ == "__main__":
    main()
