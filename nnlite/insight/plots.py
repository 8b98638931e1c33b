"""Pictures of training, predictions and models, drawn with matplotlib. Each function takes and returns the Axes.

`ax=None` makes a figure of its own: `curves(history).figure.savefig("curves.png")`. Colours are those of Okabe and Ito, which
colour-blind readers can tell apart. Without matplotlib each raises ImportError.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import instance, listing, shortened, whole
from nnlite.backend import by_position, host_array, length
from nnlite.errors import DataError
from nnlite.insight.rates import Found
from nnlite.insight.values import (
    activations_of,
    as_classes,
    as_pictures,
    first_filters,
    mistakes,
    needs_matplotlib,
    refuse_nan,
    two_columns,
)
from nnlite.losses import softmax
from nnlite.metrics import ROCAUC, Accuracy, AveragePrecision
from nnlite.metrics.ranking import by_score, one_against_rest
from nnlite.model import Sequential
from nnlite.training.history import History, score_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Classes = Sequence[str] | None

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_COLOURS = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK)
_MARKED = 100  # epochs of a curve with a mark at each
_NUMBERS = 20  # classes of a confusion matrix that has numbers in it, and of a legend
_DARK = 0.85  # from this share on a cell has white numbers
_INSIDE = 6  # entries of a legend that is inside the Axes
_LONGEST = 14  # characters of a class above a picture or beside a matrix
_CELL = 1.1  # inches of a picture in a figure of many


# ---- training


def curves(history: History, *, columns: Sequence[str] | None = None, ax: "Axes | None" = None) -> "Axes":
    """Losses and, beside them, the other scores, epoch by epoch: training dashed, validation solid.

    columns: those to draw, in one Axes; default: in a figure of its own all scores, in `ax` the losses.
    Returns the Axes of the losses. Raises DataError for a column that the history does not have, and for an empty history.
    """
    instance("history", history, History, "a nn.History, as fit returns it")
    if not history:
        raise DataError("the history is empty: train first")
    losses, others = score_columns(history)
    if unknown := [name for name in columns or () if name not in history]:
        raise DataError(f"the history has no column {shortened(unknown[0])}: it has {listing(history)}")
    panels = [columns or losses] if ax is not None or columns or not others else [losses, others]
    first: Axes = _axes(ax, 5.5 * len(panels), 4, len(panels))
    every = [first] if len(panels) == 1 else first.figure.axes
    for axes, names in zip(every, panels, strict=True):
        _draw_columns(axes, history, names)
    return first


def _draw_columns(ax: "Axes", history: History, names: Sequence[str]) -> None:
    bases = list(dict.fromkeys(name.removeprefix("val_") for name in names))
    marks = ("o-", ".--") if history.epochs <= _MARKED else ("-", "--")
    for name in names:
        colour = _COLOURS[bases.index(name.removeprefix("val_")) % len(_COLOURS)]
        style = marks[not name.startswith("val_")]
        ax.plot(range(1, history.epochs + 1), history[name], style, color=colour, label=name.replace("_", " "), markersize=4)
    ax.set(xlabel="epoch", ylabel="loss" if "loss" in names else "")
    ax.locator_params(axis="x", integer=True)
    if history.epochs == 1:
        ax.set_xticks([1])
    _finish(ax)


def learning_rates(found: Found, *, ax: "Axes | None" = None) -> "Axes":
    """What `nn.insight.find_learning_rate` found: the loss over the rate, as it was and smoothed, and the suggestion."""
    instance("found", found, Found, "what nn.insight.find_learning_rate returns")
    if not len(found.rates):
        raise DataError("no rate was tried: there is nothing to draw")
    ax = _axes(ax, 5.5, 4)
    smooth = found.smoothed()
    ax.plot(found.rates, found.losses, color=SKY, linewidth=0.8, label="loss of a batch")
    ax.plot(found.rates, smooth, color=BLUE, linewidth=2, label="smoothed")
    if np.isfinite(found.suggestion):
        ax.axvline(found.suggestion, color=ORANGE, linestyle="--", label=f"suggestion {found.suggestion:.1e}")
    low, high = smooth.min(), np.quantile(found.losses, 0.9)
    margin = 0.15 * (high - low) or 1
    ax.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(low - margin, high + margin))
    return _finish(ax, loc="lower left")


# ---- predictions


def confusion_matrix(matrix: Any, *, classes: Classes = None, ax: "Axes | None" = None) -> "Axes":
    """Rows are true classes, columns predicted ones; each row in percent of its samples.

    matrix: (C, C), as of `nn.ConfusionMatrix`   classes: their names. Raises DataError for what does not fit.
    """
    matrix = host_array(matrix, what="the values of a confusion matrix")
    is_square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] and matrix.size
    if not is_square or not (matrix >= 0).all() or not np.isfinite(matrix).all():
        raise DataError(f"a confusion matrix is (C, C), finite, not negative; of several labels one's; got {shortened(matrix)}")
    n, names = len(matrix), _short(as_classes(classes, len(matrix)))
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1e-30)
    ax = _axes(ax, max(3.5, min(9, 1.6 + 0.55 * n)), max(3.2, min(8.4, 1.3 + 0.5 * n)))
    image = ax.imshow(share, cmap=_shades_of(BLUE), vmin=0, vmax=1)
    if n <= _NUMBERS:
        for i, j in np.ndindex(n, n):
            colour = "white" if share[i, j] > _DARK else None
            ax.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=8)
        ax.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(n), names)
    else:
        ax.figure.colorbar(image, ax=ax, format=lambda value, _: f"{100 * value:.0f}%")
    ax.set(xlabel="predicted", ylabel="true", title="percent of each true class")
    return ax


def roc(z: Any, t: Any, *, classes: Classes = None, ax: "Axes | None" = None) -> "Axes":
    """The ROC curve: the share of positive samples above a score over that of negative ones, and the area below it.

    z: (N, C), (N, 1) or (N,) logits   t: (N,) labels. Of two classes that of class 1, of more each against the rest.
    Raises DataError for targets that do not fit, and where no class has both positive and negative samples.
    """
    ax = _axes(ax, 6, 4.4)
    ax.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":")
    for hits, misses, name, style in _rankings(z, t, classes):
        x, y = (np.concatenate([[0], np.cumsum(part) / part.sum()]) for part in (misses, hits))
        ax.plot(x, y, label=f"{name} {ROCAUC.figure(hits, misses):.3f}", **style)
    ax.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return _finish(ax, "area", "lower right")


def precision_recall(z: Any, t: Any, *, classes: Classes = None, ax: "Axes | None" = None) -> "Axes":
    """Precision over recall, and the average precision. Arguments and errors as those of `roc`."""
    ax = _axes(ax, 6, 4.4)
    for hits, misses, name, style in _rankings(z, t, classes):
        recall, precision = np.cumsum(hits) / hits.sum(), np.cumsum(hits) / np.cumsum(hits + misses)
        label = f"{name} {AveragePrecision.figure(hits, misses):.3f}"
        ax.step(np.concatenate([[0], recall]), np.concatenate([precision[:1], precision]), label=label, **style)
    ax.set(xlabel="recall", ylabel="precision", aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return _finish(ax, "average precision", "lower left")


def _rankings(z: Any, t: Any, classes: Classes) -> list[tuple[NDArray[Any], NDArray[Any], str, dict[str, Any]]]:
    """For each class that has both: the weights of positive and of negative samples by score, its name, how to draw it."""
    z, t, weight = Accuracy().read(z, t, None)
    names = as_classes(classes, max(2, z.shape[1]))
    refuse_nan(z)
    scores, positive = one_against_rest(z, t)
    names = names if len(scores.T) > 1 else names[1:]
    styles = [{"color": c, "linestyle": s, "linewidth": 1.5} for s in ("-", "--", ":") for c in _COLOURS]
    found = []
    for score, mask, name, style in zip(scores.T, positive.T, names, itertools.cycle(styles), strict=False):
        if 0 < mask.sum() < len(mask):
            found.append((*by_score(score, mask, weight), name, style))
    if not found:
        raise DataError("no class has both positive and negative samples: there is nothing to rank")
    return found


def calibration(z: Any, t: Any, *, bins: int = 10, ax: "Axes | None" = None) -> "Axes":
    """How often predictions of a confidence are right: on the diagonal if the probabilities are honest.

    ECE = sum over the bins of n_b / n |accuracy_b - confidence_b|, confidence: the largest probability of a sample.
    z: (N, C), (N, 1) or (N,) logits   t: (N,) labels   bins: of equal width. Raises DataError for targets that do not fit.
    Source: Guo et al. 2017, On Calibration of Modern Neural Networks.
    """
    whole("bins", bins, 1)
    z, t = two_columns(z, t)
    if not len(t):
        raise DataError("there are no samples to draw")
    confidence, right = softmax(z.astype(np.float64)).max(axis=1), z.argmax(axis=1) == t
    refuse_nan(confidence)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, values, minlength=bins)[counts > 0] for values in (confidence, right)]
    x, y = (total / counts[counts > 0] for total in sums)
    error = float(counts[counts > 0] @ abs(y - x)) / len(t)
    ax = _axes(ax, 5, 4.6)
    ax.bar((np.arange(bins) + 0.5) / bins, counts / len(t), 0.92 / bins, color="#d9d9d9", label="share of samples")
    ax.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":")
    ax.plot(x, y, "-", color=BLUE, label=f"accuracy, ECE {error:.3f}")
    ax.scatter(x, y, 10 + 300 * counts[counts > 0] / len(t), color=BLUE, zorder=3)  # a bin of few samples says little
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.04), aspect="equal")
    return _finish(ax)


def samples(images: Any, t: Any, z: Any, *, classes: Classes = None, columns: int = 8, ax: "Axes | None" = None) -> "Axes":
    """Images with the predicted class and its probability; where that is wrong, in orange, with the true one in brackets.

    images: (N, H, W, 1 or 3) or (N, H, W)   t: (N,) labels   z: (N, C), (N, 1) or (N,) logits
    Raises DataError for what does not fit.
    """
    images, (z, t) = as_pictures(images), two_columns(z, t)
    _refuse_lengths(images, t)
    names = _short(as_classes(classes, z.shape[1]))
    probability = softmax(z)
    guess = probability.argmax(axis=1)
    titles = [f"{names[g]} {100 * p[g]:.0f}%" for g, p in zip(guess, probability, strict=True)]
    titles = [title if g == i else f"{title}\n({names[i]})" for title, g, i in zip(titles, guess, t, strict=True)]
    return _tiles(images, columns, ax, titles, [BLUE if right else ORANGE for right in guess == t])


def misclassified(
    images: Any, t: Any, z: Any, *, classes: Classes = None, most: int = 16, columns: int = 8, ax: "Axes | None" = None
) -> "Axes":
    """The `most` wrong predictions that are the most confident; arguments and errors as those of `samples`."""
    whole("most", most, 1)
    images, (z, t) = by_position(images, "images"), two_columns(z, t)
    _refuse_lengths(images, t)
    picks = mistakes(z, t)[:most]
    if not len(picks):
        ax = _axes(ax, 4, 1)
        ax.text(0.5, 0.5, f"all {len(t)} predictions are right", ha="center", va="center", transform=ax.transAxes)
        ax.axis("off")
        return ax
    return samples(images[picks], t[picks], z[picks], classes=classes, columns=columns, ax=ax)


def _refuse_lengths(images: Any, t: NDArray[Any]) -> None:
    if length(images) != len(t):
        raise DataError(f"{length(images)} images, but {len(t)} targets")


# ---- models


def filters(model: Sequential, *, columns: int = 8, ax: "Axes | None" = None) -> "Axes":
    """The filters of the first layer that has any, each stretched to its own range.

    Of a convolution of 1 or 3 channels the windows, of another one each channel's; of a Dense layer on images the rows of W.
    Raises DataError for a model whose first weights are no pictures.
    """
    return _tiles(first_filters(model), columns, ax)


def activations(model: Sequential, x: Any, layer: int | str, *, columns: int = 8, ax: "Axes | None" = None) -> "Axes":
    """What a layer gives for one sample, in inference: a picture for each channel of a map, bars for a vector.

    x: a sample, (*input_shape) or (1, *input_shape)   layer: its number, or its path such as "3.0"
    Raises ValueError for another layer, DataError for several samples and for outputs that are neither, ShapeError for x.
    """
    values = activations_of(model, x, layer)
    if values.ndim == 3:
        return _tiles(np.moveaxis(values, -1, 0), columns, ax, cmap="viridis")
    if values.ndim != 1:
        raise DataError(f"layer {layer} gives {values.shape} a sample: pictures are drawn of (H, W, C), bars of (C,)")
    ax = _axes(ax, 6, 3)
    ax.bar(range(len(values)), values, color=BLUE)
    ax.set(xlabel="unit", ylabel="output")
    return _finish(ax)


# ---- drawing


def _axes(ax: "Axes | None", width: float, height: float, panels: int = 1) -> Any:
    """The Axes that was given, or the first one of a figure of so many inches."""
    if ax is not None:
        if not hasattr(ax, "imshow") or not hasattr(ax, "figure"):
            raise ValueError(f"ax must be an Axes of matplotlib, not {shortened(ax)}")
        return ax
    needs_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").subplots(1, panels, squeeze=False)[0, 0]


def _short(names: Sequence[str]) -> list[str]:
    return [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]


def _shades_of(colour: str) -> Any:
    """From transparent, whatever is behind the Axes, to the colour."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", [f"{colour}00", colour])


def _finish(ax: "Axes", title: Any = None, loc: Any = "best") -> "Axes":
    ax.grid(alpha=0.3)
    handles, labels = ax.get_legend_handles_labels()
    if 0 < len(labels) <= _NUMBERS:
        beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
        place = {"loc": loc} if len(labels) <= _INSIDE else beside
        ax.legend(handles, labels, title=title, fontsize=8, title_fontsize=8, **place)
    return ax


def _tiles(
    pictures: NDArray[Any],
    columns: int,
    ax: "Axes | None",
    titles: Sequence[str] = (),
    colours: Sequence[str] = (),
    cmap: str = "gray",
) -> "Axes":
    """Pictures side by side, each stretched over a unit square, with lines of text above."""
    columns = min(int(whole("columns", columns, 1)), len(pictures))
    lines = max((title.count("\n") + 1 for title in titles), default=0)
    down, across = 1.06 + 0.17 * lines, 1.06
    rows = -(-len(pictures) // columns)
    ax = _axes(ax, _CELL * across * columns, _CELL * down * rows)
    for i, picture in enumerate(pictures):
        x, y = across * (i % columns), down * (i // columns)
        ax.imshow(picture, cmap=cmap, extent=(x, x + 1, y + 1, y), interpolation="nearest")
    for i, (title, colour) in enumerate(zip(titles, colours, strict=True)):
        x, y = across * (i % columns) + 0.5, down * (i // columns) - 0.03
        ax.text(x, y, title, color=colour, fontsize=7, ha="center", va="bottom", linespacing=1)
    ax.set(xlim=(-0.03, across * columns), ylim=(down * rows - 0.17 * lines, -0.03 - 0.17 * lines), aspect="equal")
    ax.axis("off")
    return ax
