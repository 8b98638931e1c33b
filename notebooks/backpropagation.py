"""Backpropagation by hand: two moons, two layers, the deltas in NumPy and by nnlite's layers.

To open it: marimo edit notebooks/backpropagation.py, after pip install 'nnlite-numpy[notebooks]'.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Backpropagation by hand")

with app.setup(hide_code=True):
    import copy

    import marimo as mo
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    import nnlite as nn
    from nnlite.insight.plots import BLUE, ORANGE


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # Backpropagation by hand

    Two crescents of points, and a network that must tell them apart. It has two layers. Each multiplies by a matrix,
    adds a vector, and bends the result by a function:

    $$z_1 = W_1 x + b_1 \qquad a_1 = \tanh z_1 \qquad z_2 = W_2 a_1 + b_2 \qquad p = \frac{1}{1 + e^{-z_2}}$$

    $p$ is the probability that $x$ belongs to the orange crescent. Of $N$ points with targets $t$, which are 0 or 1,
    the loss is

    $$J = -\frac{1}{N} \sum_n \; t_n \log p_n + (1 - t_n) \log (1 - p_n)$$

    To learn is to walk downhill: every weight moves against its own derivative of $J$. **Backpropagation** is the chain
    rule, applied from the last layer to the first. The name of $\partial J / \partial z_l$ is **delta**, and all else
    follows from it:

    $$\delta_2 = \frac{p - t}{N} \qquad \delta_1 = W_2^\top \delta_2 \odot (1 - a_1^2) \qquad
    \frac{\partial J}{\partial W_l} = \sum_n \delta_l \, a_{l-1}^\top \qquad \frac{\partial J}{\partial b_l} = \sum_n \delta_l$$

    with $a_0 = x$. The factor $1 - a_1^2$ is the derivative of $\tanh$, and $\odot$ multiplies value by value.
    """)
    return


@app.function
def moons(n, noise=0.12, seed=0):
    """n points (n, 2) of two crescents, and which they belong to, (n,)."""
    rng = np.random.default_rng(seed)
    angle, t = rng.uniform(0, np.pi, n), rng.integers(0, 2, n)
    upper, lower = (np.cos(angle), np.sin(angle)), (1 - np.cos(angle), 0.5 - np.sin(angle))
    x = np.where(t == 0, upper, lower).T - (0.5, 0.25)
    return x + noise * rng.standard_normal((n, 2)), t


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## The formulas as code

    Points are rows here, so $W x$ is `x @ W.T`, and the sum over points is a product of matrices. These are the
    formulas above, line by line.
    """)
    return


@app.function
def by_hand(W1, b1, W2, b2, x, t):
    """J and its gradients, in the order of the parameters."""
    z1 = x @ W1.T + b1
    a1 = np.tanh(z1)
    z2 = a1 @ W2.T + b2
    J = np.mean(np.logaddexp(0, z2) - t * z2)  # log p and log(1 - p), without overflow

    delta2 = (1 / (1 + np.exp(-z2)) - t) / len(x)
    delta1 = delta2 @ W2 * (1 - a1**2)
    return J, [delta1.T @ x, delta1.sum(axis=0), delta2.T @ a1, delta2.sum(axis=0)]


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    The same by nnlite's layers. The loss has its delta, $\delta_2$, and `backward` hands it from layer to layer.
    """)
    return


@app.function
def by_layers(model, x, t):
    """J; the gradients are in the model."""
    z2 = model.forward(x, training=True)
    J, delta2 = nn.BinaryCrossEntropy()(z2, t)
    model.backward(delta2)
    return J


@app.cell
def _(hidden):
    x, t = moons(300)
    model = nn.Sequential(nn.Dense(hidden.value), nn.Tanh(), nn.Dense(1), input_shape=(2,), dtype="float64")
    start = [value.copy() for value in model.named_params().values()]  # W1, b1, W2, b2
    return model, start, t, x


@app.cell(hide_code=True)
def _(model, start, t, x):
    J, gradients = by_hand(*start, x, t[:, None])
    J_here, gradients_here = by_layers(model, x, t), list(model.named_grads().values())
    gaps = [abs(J - J_here), *(abs(a - b).max() for a, b in zip(gradients, gradients_here, strict=True))]

    names = ["$J$", *(rf"$\partial J / \partial {name}$" for name in ("W_1", "b_1", "W_2", "b_2"))]
    largest = [J, *(abs(a).max() for a in gradients)]
    shapes = ["", *(" × ".join(map(str, a.shape)) for a in gradients)]
    table = [f"| {a} | {b} | {c:.4f} | {d:.1e} |" for a, b, c, d in zip(names, shapes, largest, gaps, strict=True)]
    mo.md(
        "## Equal, to rounding\n\n"
        "| before the first step | shape | largest value | difference of hand and layers |\n"
        "|:--|:--|--:|--:|\n" + "\n".join(table)
    )
    return (gaps,)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## Downhill

    Both take a thousand steps of gradient descent from the same beginning, $W \leftarrow W - \eta \, \partial J /
    \partial W$.
    """)
    return


@app.function
def descend_by_hand(values, x, t, rate, steps):
    """The loss and the parameters before each step."""
    path = []
    for _ in range(steps):
        J, gradients = by_hand(*values, x, t[:, None])
        path.append((J, values))
        values = [value - rate * gradient for value, gradient in zip(values, gradients, strict=True)]
    return path


@app.function
def descend_by_layers(model, x, t, rate, steps):
    """The loss before each step."""
    model, optimizer, losses = copy.deepcopy(model), nn.SGD(rate), []
    for _ in range(steps):
        losses.append(by_layers(model, x, t))
        optimizer.step(model)
    return losses


@app.cell(hide_code=True)
def _():
    hidden = mo.ui.slider(1, 32, value=8, label="hidden units", show_value=True)
    exponent = mo.ui.slider(-1.5, 1.5, 0.25, value=0.5, label="learning rate, power of ten", show_value=True)
    step = mo.ui.slider(0, 1000, 10, value=1000, label="steps", show_value=True)
    mo.hstack([hidden, exponent, step], justify="start", gap=2, wrap=True)
    return exponent, hidden, step


@app.cell
def _(exponent, model, start, t, x):
    rate = 10**exponent.value
    path = descend_by_hand(start, x, t, rate, steps=1001)
    losses_here = descend_by_layers(model, x, t, rate, steps=1001)
    return losses_here, path, rate


@app.cell(hide_code=True)
def _(losses_here, path, rate, step, t, x):
    losses, (W1, b1, W2, b2) = [J for J, _ in path], path[step.value][1]
    across, up = np.meshgrid(np.linspace(-2, 2, 161), np.linspace(-1.5, 1.5, 121))
    hidden_units = np.tanh(np.stack([across, up], axis=-1) @ W1.T + b1)
    probability = 1 / (1 + np.exp(-(hidden_units @ W2[0] + b2)))

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    blue_to_orange = LinearSegmentedColormap.from_list("", [BLUE, "white", ORANGE])
    left.contourf(across, up, probability, np.linspace(0, 1, 21), cmap=blue_to_orange, alpha=0.35)
    left.contour(across, up, probability, [0.5], colors="black", linewidths=1.5)
    for unit in np.moveaxis(hidden_units, -1, 0):
        left.contour(across, up, unit, [0], colors="gray", linewidths=0.6, linestyles="dashed")
    for points, colour in ((x[t == 0], BLUE), (x[t == 1], ORANGE)):
        left.plot(*points.T, "o", color=colour, markersize=4, markeredgecolor="white", markeredgewidth=0.5)
    hits = (np.tanh(x @ W1.T + b1) @ W2[0] + b2 > 0) == t
    left.set(xticks=[], yticks=[], aspect="equal", title=f"after {step.value} steps {100 * hits.mean():.0f}% are right")

    right.plot(losses_here, color="#56B4E9", linewidth=5, alpha=0.6, label="by nnlite's layers")
    right.plot(losses, color="black", linewidth=1, label="by hand")
    right.plot(step.value, losses[step.value], "o", color=ORANGE)
    right.set(xlabel="step", ylabel="loss", yscale="log", title=f"learning rate {rate:.2g}")
    right.grid(alpha=0.3)
    right.legend()
    figure
    return


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    The black line is where the network is undecided, $p = 1/2$. Each dashed line is one hidden unit: there its $z_1$ is
    0, and on one side its $a_1$ is positive, on the other negative. Out of these straight lines the second layer builds
    the curve.

    **Try it.** One hidden unit is one straight line, whatever the learning rate; with two, one point in ten stays on
    the wrong side; three suffice. With the smallest rate a thousand steps are not enough. With three units and the
    largest rate the loss jumps, for a step is longer than the valley is wide. Move the third slider to see the curve
    bend.

    From here: the page *backprop* of the documentation derives every layer, and the code of `Dense` is as short as this
    page: a few lines forward, a few lines back.
    """)
    return


if __name__ == "__main__":
    app.run()
