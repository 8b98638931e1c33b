"""A multilayer perceptron on MNIST: 784 - 128 - 64 - 10, a = f(W a + b).

python examples/mnist_mlp.py --activation sigmoid
"""

import argparse
import sys
from pathlib import Path

import nnlite as nn

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activation", choices=ACTIVATIONS, default="relu")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args(arguments)

    mnist = nn.data.mnist(root=args.data_dir)
    train, test = mnist.train.subset(args.limit), mnist.test.subset(args.limit)
    activation = ACTIVATIONS[args.activation]
    model = nn.Sequential(
        nn.Normalize(mean=33.3, std=78.6),
        nn.Flatten(),
        nn.Dense(128, init="glorot_uniform"),
        activation(),
        nn.Dense(64, init="glorot_uniform"),
        activation(),
        nn.Dense(10, init="glorot_uniform"),
        input_shape=(28, 28, 1),
        seed=args.seed,
    )
    model.summary()
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam(1e-3), metrics=[nn.Accuracy()])
    trainer.fit(train, epochs=args.epochs, batch_size=args.batch_size, validation=test, seed=args.seed)
    accuracy = trainer.evaluate(test)["accuracy"]
    print(f"test accuracy {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    try:
        main()
    except nn.NNLiteError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
