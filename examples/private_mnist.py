"""A small CNN on MNIST, trained privately: epsilon about 3 at delta = 1e-5, and the accuracy that it costs.

python examples/private_mnist.py --out out/private_mnist.md

The network and its Tanh are those of Papernot et al. 2021, Tempered Sigmoid Activations for Deep Learning with Differential
Privacy; without noise, `--noise-multiplier 0 --clip-norm 100` trains it as usual.
"""

import argparse
import platform
import sys
import time
from pathlib import Path

import numpy as np

import nnlite as nn
from nnlite.privacy import PrivateTrainer


def build(seed: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Normalize(mean=33.3, std=78.6),
        nn.Conv2D(16, 8, stride=2, padding=3, init="glorot_uniform"),
        nn.Tanh(),
        nn.MaxPool2D(2, 1),
        nn.Conv2D(32, 4, stride=2, init="glorot_uniform"),
        nn.Tanh(),
        nn.MaxPool2D(2, 1),
        nn.Flatten(),
        nn.Dense(32, init="glorot_uniform"),
        nn.Tanh(),
        nn.Dense(10, init="glorot_uniform"),
        input_shape=(28, 28, 1),
        seed=seed,
    )


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=0.25)
    parser.add_argument("--clip-norm", type=float, default=1.0)
    parser.add_argument("--noise-multiplier", type=float, default=0.9)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0, help="of batches and noise, so that the result can be repeated")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--machine", default=platform.machine(), help="its name in the report")
    parser.add_argument("--out", type=Path, help="a Markdown file for the report")
    args = parser.parse_args(arguments)

    mnist = nn.data.mnist(root=args.data_dir)
    train, test = mnist.train.subset(args.limit), mnist.test.subset(args.limit)
    steps = args.epochs * (len(train) // args.batch_size)
    trainer = PrivateTrainer(
        build(args.seed),
        nn.CrossEntropy(),
        nn.SGD(nn.schedules.cosine(args.learning_rate, steps), momentum=0.9),
        clip_norm=args.clip_norm,
        noise_multiplier=args.noise_multiplier,
        delta=args.delta,
        metrics=[nn.Accuracy()],
        seed=args.seed,
    )
    start = time.perf_counter()
    trainer.fit(train, epochs=args.epochs, batch_size=args.batch_size, validation=test)
    seconds = time.perf_counter() - start
    result = {
        "accuracy": trainer.evaluate(test)["accuracy"],
        "epsilon": trainer.epsilon(),
        "epsilon_rdp": trainer.epsilon(accountant="rdp"),
        "seconds": seconds,
    }
    text = report(result, trainer, args)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    return result


def report(result: dict[str, float], trainer: PrivateTrainer, args: argparse.Namespace) -> str:
    model = trainer.model
    return (
        f"# MNIST at epsilon {result['epsilon']:.2f}, delta {args.delta:g}\n\n"
        f"`python examples/private_mnist.py --seed {args.seed}` on {args.machine}, {nn.get_num_threads()} threads, "
        f"{model.kernels} kernels, NumPy {np.__version__}.\n\n"
        "| | |\n|---|---|\n"
        f"| test accuracy | {result['accuracy']:.2%} |\n"
        f"| epsilon by PLD | {result['epsilon']:.3f} |\n"
        f"| epsilon by RDP | {result['epsilon_rdp']:.3f} |\n"
        f"| steps | {trainer.steps:,}, {trainer.epochs} epochs of batches of {args.batch_size} expected samples |\n"
        f"| clip norm, noise multiplier | {args.clip_norm:g}, {args.noise_multiplier:g} |\n"
        f"| parameters | {model.params.size:,} |\n"
        f"| time | {result['seconds']:.0f} s, {result['seconds'] / trainer.epochs:.1f} s an epoch |\n"
    )


if __name__ == "__main__":
    try:
        main()
    except (nn.NNLiteError, ImportError) as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
