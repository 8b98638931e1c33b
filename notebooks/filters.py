"""What the filters of a convolutional network learn: filters and what they see, epoch by epoch.

To open it: marimo edit notebooks/filters.py, after pip install 'nnlite-numpy[notebooks]'.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="What filters learn")

with app.setup(hide_code=True):
    import copy

    import marimo as mo
    from matplotlib.figure import Figure

    import nnlite as nn
    from nnlite.insight import plots


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # What filters learn

    A convolution slides a small window over an image. At each place $(i, j)$ it multiplies the pixels $a$ in the window
    by the weights of a **filter** $W_f$, and adds:

    $$z_{ijf} = \sum_{u, v, c} W_{f u v c} \; a_{2i + u,\, 2j + v,\, c} + b_f$$

    The sum is large where the image looks like the filter. So the weights of a filter are themselves a picture, of what
    it looks for: here of 7 × 7 pixels in three colours. The window moves two pixels at a time, a ReLU keeps what is
    positive, a pooling the largest of each 4 × 4 values, and a `Dense` layer decides.

    Nobody tells the filters what to look for. They begin as noise, and backpropagation gives each its share of the
    error. Where a filter should have answered more, it becomes a little more like the pixels that it met there:

    $$\frac{\partial J}{\partial W_{f u v c}} = \sum_{n, i, j} \delta_{n i j f} \; a_{n,\, 2i + u,\, 2j + v,\, c}$$
    """)
    return


@app.cell
def _():
    try:
        data = nn.data.cifar10(download=False)  # from the folder NNLITE_DATA, or the cache
    except nn.DownloadError:
        data = nn.data.shapes(4000)
    train, test = data.train[:4000], data.test[:500]
    mo.md(f"The images are **{data.name}**: {len(train):,} to learn from and {len(test)} to test on.")
    return data, test, train


@app.cell
def _():
    model = nn.Sequential(
        nn.Normalize(nn.zoo.CIFAR_MEAN, nn.zoo.CIFAR_STD),
        nn.Conv2D(16, 7, stride=2, padding=3),
        nn.ReLU(),
        nn.MaxPool2D(4),
        nn.Flatten(),
        nn.Dense(10),
        input_shape=(32, 32, 3),
    )
    model[1].W *= 0.1  # so that what is learnt stands out from the noise of the beginning
    return (model,)


@app.class_definition
class Snapshots(nn.Callback):
    """The model's values before training and after each epoch."""

    def on_fit_begin(self, trainer):
        self.taken = [trainer.model.snapshot()]

    def on_epoch_end(self, trainer, row):
        self.taken.append(trainer.model.snapshot())


@app.cell
def _(model, test, train):
    snapshots = Snapshots()
    optimizer = nn.AdamW(2e-3, weight_decay=2.0)
    trainer = nn.Trainer(model, nn.CrossEntropy(), optimizer, [nn.Accuracy()], [snapshots])
    history = trainer.fit(train, epochs=8, batch_size=50, validation=test, progress=False)
    return history, snapshots


@app.cell(hide_code=True)
def _(snapshots, test):
    epoch = mo.ui.slider(0, len(snapshots.taken) - 1, value=len(snapshots.taken) - 1, label="epoch", show_value=True)
    image = mo.ui.slider(0, len(test) - 1, value=3, label="test image", show_value=True)
    mo.vstack(
        [
            mo.md("""
            ## The filters while they learn

            Move the epoch from 0, before the first step, to the last one.
            """),
            mo.hstack([epoch, image], justify="start", gap=2, wrap=True),
        ]
    )
    return epoch, image


@app.cell
def _(epoch, model, snapshots):
    then = copy.deepcopy(model)
    then.restore(snapshots.taken[epoch.value])
    return (then,)


@app.cell(hide_code=True)
def _(data, epoch, history, image, test, then):
    pixels, label = test.images[image.value], test.labels[image.value]
    figure = Figure(figsize=(10.5, 5), layout="constrained")
    axes = figure.subplot_mosaic([["filters", "image"], ["maps", "curve"]], width_ratios=(2, 1))
    plots.filters(then, ax=axes["filters"]).set_title(f"the 16 filters after epoch {epoch.value}")
    plots.activations(then, pixels, layer=2, ax=axes["maps"]).set_title("where each of them answers")
    plots.samples(pixels[None], [label], then(pixels[None]), classes=data.classes, ax=axes["image"])
    plots.curves(history, columns=["accuracy", "val_accuracy"], ax=axes["curve"])
    axes["curve"].axvline(epoch.value, color=plots.ORANGE)
    figure
    return


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    At epoch 0 the filters are noise, and each answers where it happens to fit. After one epoch some are edges, bright
    on one side and dark on the other, of several directions; others become spots of a colour, or a colour beside its
    opposite. Networks that learn from millions of photographs find the same in their first layer, and so do cells of
    the visual cortex.

    What makes them smooth is weight decay: in each step all weights shrink a little, so that only those stay which the
    images strengthen again and again.

    **Try it.** Set `weight_decay=0` and compare. Give the network 4 filters, or 64. And look at other test images:
    which filters does the sky switch on, and which a horse's legs?
    """)
    return


if __name__ == "__main__":
    app.run()
