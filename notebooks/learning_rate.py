"""How to find a learning rate: a short test with ever larger rates, and what training makes of them.

To open it: marimo edit notebooks/learning_rate.py, after pip install 'nnlite-numpy[notebooks]'.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="The learning-rate finder")

with app.setup(hide_code=True):
    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure

    import nnlite as nn
    from nnlite.insight import plots


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # The learning-rate finder

    Gradient descent has one number that decides between learning and not learning:

    $$W \leftarrow W - \eta \, \frac{\partial J}{\partial W}$$

    Too small a rate $\eta$ gets nowhere, too large a one jumps from slope to slope, and upwards. The right one depends
    on the network, on the data and on the optimiser. To try out ten of them takes ten trainings. Smith (2017) found
    that a part of one is enough: train for a hundred batches, each with a larger rate than the one before,

    $$\eta_i = \eta_{\min} \left( \frac{\eta_{\max}}{\eta_{\min}} \right)^{i / 99} \qquad i = 0, \dots, 99$$

    and watch the loss. At first it stays where it is, then it falls, and in the end it explodes.
    """)
    return


@app.cell
def _():
    try:
        data = nn.data.cifar10(download=False)  # from the folder NNLITE_DATA, or the cache
    except nn.DownloadError:
        data = nn.data.shapes(3000)
    train, test = data.train[:3000], data.test[:500]
    mo.md(f"The images are **{data.name}**: {len(train):,} to learn from and {len(test)} to test on.")
    return test, train


@app.cell
def _(optimizer):
    def make_trainer(rate=1.0):
        """The same network from the same beginning."""
        layers = nn.Normalize(nn.zoo.CIFAR_MEAN, nn.zoo.CIFAR_STD), nn.Conv2D(16, 5, stride=2), nn.ReLU(), nn.MaxPool2D(2)
        model = nn.Sequential(*layers, nn.Flatten(), nn.Dense(10), input_shape=(32, 32, 3))
        return nn.Trainer(model, nn.CrossEntropy(), optimizer.value(rate), [nn.Accuracy()])

    return (make_trainer,)


@app.cell(hide_code=True)
def _():
    choices = {"SGD": nn.SGD, "Adam": nn.Adam, "RMSProp": nn.RMSProp}
    optimizer = mo.ui.dropdown(choices, value="SGD", label="optimiser")
    mo.vstack([mo.md("## The test"), optimizer])
    return (optimizer,)


@app.cell
def _(make_trainer, train):
    found = nn.insight.find_learning_rate(make_trainer(), train, low=1e-6, high=10, batch_size=50)
    return (found,)


@app.cell(hide_code=True)
def _(found):
    curve = Figure(figsize=(10, 3.6), layout="constrained")
    plots.learning_rates(found, ax=curve.subplots())
    curve
    return


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    A batch's loss is noisy, so its running mean is drawn, too: $s_i = 0.9\, s_{i-1} + 0.1\, J_i$, divided by what the
    weights add up to. The suggestion is the rate at which $s$ falls fastest. The lowest loss is further right, but that
    is near the cliff.

    ## Was it right?

    Three epochs each: with a tenth of the suggestion, with the suggestion, with ten times as much, and with a rate of
    your own.
    """)
    return


@app.function
def train_with(trainer, data, epochs=3):
    """The loss of each step, as far as it is finite."""
    losses, model = [], trainer.model
    for step in range(epochs * len(data) // 50):
        rows = np.random.default_rng(step).integers(0, len(data), 50)
        losses.append(model.loss_and_grad(data.images[rows], data.labels[rows], trainer.loss))
        try:
            trainer.optimizer.step(model)
        except nn.NonFiniteError:
            break
    return [loss for loss in losses if np.isfinite(loss)]


@app.cell
def _(found, make_trainer, test, train):
    def run(rate):
        """The smoothed losses, and the accuracy on the test images."""
        trainer = make_trainer(rate)
        losses = np.array(train_with(trainer, train))
        return found._replace(losses=losses).smoothed(), trainer.evaluate(test)["accuracy"]

    three = {rate: run(rate) for rate in found.suggestion * np.array([0.1, 1, 10])}
    return run, three


@app.cell(hide_code=True)
def _():
    factor = mo.ui.slider(-2, 2, 0.25, value=0.5, label="your rate: the suggestion times ten to the power of", show_value=True)
    factor
    return (factor,)


@app.cell(hide_code=True)
def _(factor, found, run, three):
    yours = found.suggestion * 10**factor.value
    figure = Figure(figsize=(10, 4), layout="constrained")
    ax = figure.subplots()
    for (rate, (losses, accuracy)), colour in zip(three.items(), (plots.SKY, plots.BLUE, plots.PINK), strict=True):
        ax.plot(losses, color=colour, label=f"rate {rate:.1e}: {100 * accuracy:.0f}% right")
    own_losses, own_accuracy = run(yours)
    ax.plot(own_losses, color=plots.ORANGE, linewidth=2.5, label=f"yours {yours:.1e}: {100 * own_accuracy:.0f}% right")
    ax.set(xlabel="step", ylabel="loss, smoothed", ylim=(1, 4))
    ax.grid(alpha=0.3)
    ax.legend()
    figure
    return


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    The suggestion is safe, not the fastest. Three times as much is often better; ten times as much may be better still,
    or ruin the run. Where the test's loss is lowest, there is no reserve left.

    **Try it.** Choose Adam above: its rates are far smaller than SGD's, for it divides each step by the size of the
    gradients. A larger rate pays if `nn.schedules.warmup` begins below it and `nn.schedules.cosine` ends below it.
    """)
    return


if __name__ == "__main__":
    app.run()
