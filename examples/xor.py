"""Learn XOR with the loop written by hand: forward, loss, backward, step."""

import numpy as np

import nnlite as nn


def main(steps: int = 500) -> float:
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    t = np.array([0, 1, 1, 0])
    model = nn.Sequential(nn.Dense(8), nn.Tanh(), nn.Dense(1), input_shape=(2,), seed=1)
    criterion = nn.BinaryCrossEntropy()
    optimizer = nn.Adam(learning_rate=0.05)

    for step in range(steps):
        z = model.forward(x, training=True)  # z = W a + b, a = f(z), layer by layer
        loss, delta = criterion(z, t)  # J and dJ/dz
        model.backward(delta)  # dJ/dW and dJ/db, from the last layer to the first
        optimizer.step(model)  # W <- W - learning_rate ...
        if step % 100 == 0:
            print(f"step {step:3d}  loss {loss:.4f}")

    probability = 1 / (1 + np.exp(-model(x)[:, 0]))
    for (a, b), p in zip(x, probability, strict=True):
        print(f"{a} xor {b} = {p:.3f}")
    return float(abs(probability - t).max())


if __name__ == "__main__":
    main()
