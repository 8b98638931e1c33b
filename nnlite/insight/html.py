"""A report of a run: one HTML file that needs nothing else, for light and dark screens and for phones.

The page has no script, and a content security policy under which a browser loads nothing. All text passes through `_tag`, which
escapes it. Charts are those of `plots.py`, as SVG whose colours follow the page; pictures are PNG in `data:` addresses.
"""

import base64
import html
import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnlite import __version__
from nnlite.arguments import location
from nnlite.atomic import write_whole
from nnlite.engine.summary import summary
from nnlite.errors import DataError
from nnlite.insight import plots
from nnlite.insight.run import Run, read_run
from nnlite.insight.values import first_filters, needs_matplotlib
from nnlite.layers.base import Layer
from nnlite.losses import softmax
from nnlite.metrics import F1, Precision, Recall
from nnlite.training.history import score_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FILTERS = 64  # that are shown
_EMPTY = {"img", "link", "meta"}  # elements without an end
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_GRAY = "#848d97"  # of lines, on either background
_THEMED = {"#000000": "currentColor", plots.BLUE.lower(): "var(--blue)", plots.ORANGE.lower(): "var(--orange)"}
_DRAWING = {
    "axes.edgecolor": _GRAY,
    "axes.facecolor": "none",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": _GRAY,
    "legend.edgecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # text in the fonts of the page
    "text.parse_math": False,  # dollars in a name are dollars
    "xtick.color": _GRAY,
    "xtick.labelcolor": "black",
    "ytick.color": _GRAY,
    "ytick.labelcolor": "black",
}


def report(folder: str | PathLike[str], path: str | PathLike[str] | None = None, *, layers: Iterable[type[Layer]] = ()) -> Path:
    """Write a report of a run: one HTML file of at most 5 MB that needs no network, no script and no other file.

    Figures, curves, confusion matrix, a table of the classes, right and wrong pictures, filters of the first layer, where the
    time of training goes, and how to reproduce the run; what the run does not have is left out.
    folder: of a run, as `nn.insight.save_run` and `examples/cifar10.py` write it.  path: default: report.html in the folder.
    layers: the custom layer classes of the model.
    Returns the path. The same run gives the same bytes. Raises ImportError without matplotlib; FileError for an address in
    place of a path, for a folder without a run, naming what is missing, for a run that is damaged or of another version, and
    where the report cannot be written.
    """
    folder = Path(location("folder", folder))
    target = folder / "report.html" if path is None else Path(location("path", path))
    run = read_run(folder, layers)
    needs_matplotlib()
    page = _page(run, folder.resolve().name)
    write_whole(target, page.encode(errors="backslashreplace"))
    return target


# ---- elements


class _Html(str):
    """Text that is HTML already."""


def _tag(name: str, /, *inside: Any, **attributes: Any) -> _Html:
    """An element. All but `_Html` is escaped; `class_` is the attribute class."""
    opening = "".join(f' {key.rstrip("_")}="{html.escape(str(value))}"' for key, value in attributes.items())
    return _Html(f"<{name}{opening}>{_joined(*inside)}" + ("" if name in _EMPTY else f"</{name}>"))


def _joined(*parts: Any) -> _Html:
    return _Html("".join(part if isinstance(part, _Html) else html.escape(str(part)) for part in parts))


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "figures") -> _Html:
    """A row begins with its name; a cell is text, or a td.  kind: "words" if the last column is text, not a figure."""
    lines = ((name, [part if isinstance(part, _Html) else _tag("td", part) for part in row]) for name, *row in rows)
    body = (_tag("tr", _tag("th", name, scope="row"), *cells) for name, cells in lines)
    top = _tag("tr", *(_tag("th", name, scope="col") for name in head))
    return _tag("div", _tag("table", _tag("thead", top), _tag("tbody", *body), class_=kind), class_="wide", tabindex=0)


def _bar(share: str, text: str) -> _Html:
    """A cell with a bar behind its text.  share: in percent, "12.5%"."""
    return _tag("td", text, class_="bar", style=f"--share: {share}")


def _picture(pixels: NDArray[Any], alt: str) -> _Html:
    from matplotlib.image import imsave

    file, unsigned = io.BytesIO(), dict[str, Any](Software=None)
    imsave(file, pixels, cmap="gray", format="png", metadata=unsigned)
    return _tag("img", src=f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}", alt=alt)


def _chart(draw: Callable[[], "Axes"], label: str, size: tuple[float, float] | None = None) -> _Html:
    """An SVG of what `draw` draws, in the page's colours.  size: in inches; the smaller, the larger is its text."""
    from matplotlib import rc_context

    file = io.StringIO()
    style: Any = _DRAWING | {"svg.hashsalt": label}
    with rc_context(style), warnings.catch_warnings():  # ids differ from chart to chart
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has more fonts
        figure: Any = draw().figure
        figure.set_size_inches(size or figure.get_size_inches())
        figure.savefig(file, format="svg", dpi=200, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    _, frame, rest = re.split(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', file.getvalue(), maxsplit=1)
    rest = re.sub(r' id="[\w.]*[a-z]_\d+"', "", rest)  # the same in each chart, and nothing refers to them
    for colour, themed in _THEMED.items():
        rest = rest.replace(f": {colour}", f": {themed}")
    width = f"--width: {frame.split()[2]}pt"  # at which its text has its own size
    return _Html(f'<svg role="img" aria-label="{html.escape(label)}" style="{width}" viewBox="{frame}">{rest.strip()}')


# ---- the page


def _page(run: Run, name: str) -> str:
    sections = [(title, content) for title, content in _sections(run) if content]
    title = " on ".join(str(run.metrics[key]) for key in ("model", "dataset") if key in run.metrics) or name
    head = (
        _tag("meta", charset="utf-8"),
        _tag("meta", **{"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        _tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _tag("meta", name="color-scheme", content="light dark"),
        _tag("link", rel="icon", href="data:,"),
        _tag("title", title),
        _Html(f"<style>{Path(__file__).with_name('report.css').read_text(encoding='utf-8')}</style>"),
    )
    links = (_tag("a", title, href=f"#{_id(title)}") for title, _ in sections)
    body = (_tag("section", _tag("h2", title), *content, id=_id(title)) for title, content in sections)
    top = _tag("header", _tag("h1", title), *_lead(run), _cards(run), _tag("nav", *links))
    end = _tag("footer", f"Written by nnlite {__version__}.")
    whole = _tag("html", _tag("head", *head), _tag("body", top, _tag("main", *body), end), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")


def _sections(run: Run) -> list[tuple[str, list[_Html]]]:
    """The titles of all sections and what is in them."""
    return [
        ("Curves", _curves(run)),
        ("Confusion matrix", _confusion(run)),
        ("Classes", _classes(run)),
        ("Right and wrong", _pictures(run)),
        ("Filters", _filters(run)),
        ("The network", [_tag("pre", _network(run), tabindex=0)]),
        ("Where time went", _time(run)),
        ("How to reproduce", _reproduction(run)),
    ]


def _lead(run: Run) -> list[_Html]:
    """What the figures say, in words."""
    if run.matrix is None:
        return []
    hits, _, true = _counts(run.matrix)
    kind = "images" if len(run.images) else "samples"
    words = f"Of {true.sum():,.0f} test {kind} {hits.sum():,.0f} are named right."
    recall, missed = Recall.figure(hits, None, true), run.matrix - np.diag(hits)
    if len(true) > 2 and (true > 0).sum() > 1 and missed.any():
        best, worst = recall.argmax(), np.where(true > 0, recall, 2).argmin()
        of, taken = np.unravel_index((missed / np.maximum(true, 1)[:, None]).argmax(), missed.shape)
        words += f" Best known is {run.classes[best]} ({recall[best]:.0%}), least {run.classes[worst]} ({recall[worst]:.0%});"
        share = missed[of, taken] / true[of]
        words += f" the most frequent mistake: {run.classes[of]} taken for {run.classes[taken]} ({share:.0%})."
    return [_tag("p", words, class_="lead")]


def _cards(run: Run) -> _Html:
    """The figures that matter most."""
    history, cards = run.history, list[tuple[str, str]]()
    if run.matrix is not None:
        hits, predicted, true = _counts(run.matrix)
        f1 = F1.figure(hits, predicted, true)[(predicted > 0) | (true > 0)]
        cards += [("test accuracy", f"{hits.sum() / max(1, true.sum()):.1%}"), ("macro F1", f"{f1.mean():.3f}")]
    else:
        cards += [(name.replace("_", " "), f"{history[name][-1]:.4g}") for name in history if name.startswith("val_")][:2]
    cards += [("epochs", f"{history.epochs}"), ("parameters", f"{len(run.model.params):,}")]
    if history.epochs:
        cards += [("training", _duration(sum(history["seconds"])))]
        cards += [("samples/s", f"{np.median(history['samples_per_second']):,.0f}")]
    return _tag("dl", *(_tag("div", _tag("dt", name), _tag("dd", value)) for name, value in cards), class_="cards")


def _counts(matrix: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of each class: hits, predictions, samples."""
    return matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)


def _curves(run: Run) -> list[_Html]:
    def chart(label: str, columns: list[str]) -> _Html:
        return _chart(lambda: plots.curves(run.history, columns=columns), label, (4.4, 3.3))

    charts = [chart(*each) for each in zip(("Losses", "Scores"), score_columns(run.history), strict=True) if each[1]]
    return [_tag("div", *charts, class_="charts")] if charts else []


def _confusion(run: Run) -> list[_Html]:
    if run.matrix is None:
        return []
    chart = _chart(lambda: plots.confusion_matrix(run.matrix, classes=run.classes), "Confusion matrix")
    return [_tag("div", chart, class_="wide matrix", tabindex=0)]


def _classes(run: Run) -> list[_Html]:
    """Precision, recall and F1 of each class, and what it is mostly taken for."""
    if run.matrix is None:
        return []
    hits, predicted, true = _counts(run.matrix)
    figures = [kind.figure(hits, predicted, true) for kind in (Precision, Recall, F1)]
    rows = []
    for i, (name, samples, *scores) in enumerate(zip(run.classes, true, *figures, strict=True)):
        others = run.matrix[i] * (np.arange(len(true)) != i)
        mostly = f"{run.classes[others.argmax()]} ({others.max() / samples:.0%})" if others.any() else "–"
        rows.append([name, f"{samples:,.0f}", *(_bar(f"{score:.1%}", f"{score:.3f}") for score in scores), mostly])
    return [_table(["class", "samples", "precision", "recall", "F1", "mostly taken for"], rows, "words")]


def _pictures(run: Run) -> list[_Html]:
    probability = softmax(run.outputs.astype(np.float64))
    guess, tiles = run.outputs.argmax(axis=1), {True: list[_Html](), False: list[_Html]()}
    for image, label, g, p in zip(run.images, run.labels, guess, probability, strict=True):
        words, is_right = f"{run.classes[g]} {p[g]:.0%}", bool(g == label)
        truth = [] if is_right else [_tag("small", f"is {run.classes[label]}")]
        tiles[is_right].append(_tag("figure", _picture(image, run.classes[label]), _tag("figcaption", words, *truth)))
    titles = {True: "Right: the first ones", False: "Wrong: the most confident ones"}
    kinds = {True: "tiles right", False: "tiles wrong"}
    return [_joined(_tag("h3", titles[k]), _tag("div", *found, class_=kinds[k])) for k, found in tiles.items() if found]


def _filters(run: Run) -> list[_Html]:
    try:
        pictures = first_filters(run.model)
    except DataError:  # none that are pictures
        return []
    shown = [_picture(picture, f"filter {i}") for i, picture in enumerate(pictures[:_FILTERS], start=1)]
    which = f"The first {_FILTERS} of {len(pictures)}" if len(pictures) > _FILTERS else f"The {len(pictures)} filters"
    return [_tag("p", f"{which} of the first layer, each stretched to its own range."), _tag("div", *shown, class_="filters")]


def _network(run: Run) -> str:
    """Its table, without what is said of the machine that reads the run."""
    return summary(run.model, run.model.vectors).rpartition("; ")[0]


def _time(run: Run) -> list[_Html]:
    rows, line = run.profile
    words, seconds = f"A step of training: {line}.", sum(run.history.get("seconds", []))
    if seconds:
        epochs = "1 epoch" if run.history.epochs == 1 else f"{run.history.epochs} epochs"
        words = f"{epochs} of training took {_duration(seconds)}, validation not counted. {words}"
    (name, *columns, last), *steps = rows
    body = [[step, _bar(share, share), *cells] for step, *cells, share in steps]
    return [_tag("p", words), _table([name, last, *columns], body)]


def _reproduction(run: Run) -> list[_Html]:
    metrics = run.metrics
    names = ("weights", "seed", "kernels", "device", "threads", "processes", "machine")
    rows = [(name, metrics[name]) for name in names if name in metrics]
    rows += [("versions", ", ".join(f"{name} {version}" for name, version in metrics["versions"].items()))]
    where = "any machine" if metrics.get("kernels") == "native" else "the same machine, with the same versions"
    words = f"With fixed seeds this command gives the same weights on {where}; their hash says so."
    everything = json.dumps(metrics, indent=2, ensure_ascii=False)
    command, is_alone = metrics["command"], metrics.get("processes") == 1
    return [
        *([_tag("pre", command, class_="command")] if command else []),
        *([_tag("p", words)] if command and is_alone else []),
        _table([], rows, "words"),
        _tag("details", _tag("summary", "All of metrics.json"), _tag("pre", everything, tabindex=0)),
    ]


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
