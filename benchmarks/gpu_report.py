"""The report of `gpu.py`: gpu.json and gpu.md, complete after every row, and their text."""

import json
import os
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gpu_runner import Outcome
from peers_parts.report import table

Rows = dict[str, dict[str, Any]]
Sections = dict[str, dict[str, Any]]


class Report:
    """The results so far, section by section, in files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sections: Sections = {}

    def begin(self, name: str) -> None:
        self.sections[name] = {"outcome": "under way", "passed": None, "seconds": 0.0, "rows": {}}
        self.write()

    def recorder(self, name: str) -> Callable[[str, dict[str, Any]], None]:
        """Adds values to a row of a section."""

        def record(row: str, values: dict[str, Any]) -> None:
            self.sections[name]["rows"].setdefault(row, {}).update(values)
            self.write()

        return record

    def end(self, name: str, outcome: Outcome) -> None:
        section = self.sections[name]
        failed = sum("error" in row for row in section["rows"].values())
        text = f"{outcome.text}, {failed} failed" if failed and outcome.passed else outcome.text
        section.update(outcome=text, passed=outcome.passed and not failed, seconds=round(outcome.seconds, 1))
        self.write()

    def line(self, name: str) -> str:
        section = self.sections[name]
        return f"{name}: {section['outcome']} ({section['seconds']:.0f} s)"

    def error(self, name: str) -> str:
        """The error of the section itself, or nothing."""
        rows = self.sections.get(name, {}).get("rows", {})
        return str(rows.get("section", {}).get("error", ""))

    def passed(self) -> bool:
        """Whether nothing that ran failed."""
        return all(section["passed"] is not False for section in self.sections.values())

    def write(self) -> None:
        replace(self.folder / "gpu.json", json.dumps({"sections": self.sections}, indent=1) + "\n")
        replace(self.folder / "gpu.md", self.text(markdown))

    def text(self, render: Callable[[Sections], str]) -> str:
        """A fault in a table costs the table, not the run."""
        try:
            return render(self.sections)
        except Exception:
            return traceback.format_exc()


def replace(path: Path, text: str) -> None:
    """Write a file atomically."""
    draft = path.with_suffix(".part")
    draft.write_text(text)
    os.replace(draft, path)


# ---- Markdown


def markdown(sections: Sections) -> str:
    return f"{summary(sections)}\n{profiles(rows_of(sections, 'profile'))}"


def summary(sections: Sections) -> str:
    """All tables except the kernels."""
    parts = [
        "# nnlite on a GPU",
        machine(rows_of(sections, "machine")),
        outcomes(sections),
        failures(sections),
        parity(rows_of(sections, "parity")),
        speed(rows_of(sections, "speed"), rows_of(sections, "profile")),
        operations(rows_of(sections, "operations")),
        fast90(rows_of(sections, "fast90")),
        tests(sections),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def rows_of(sections: Sections, name: str) -> Rows:
    """The rows of all sections whose names begin so."""
    return {key: row for title, section in sections.items() if title.startswith(name) for key, row in section["rows"].items()}


def cell(row: dict[str, Any], key: str, form: str = "", scale: float = 1) -> str:
    """A value of a row, or nothing if it is missing."""
    value = row.get(key)
    return "" if value is None else f"{value * scale:{form}}" if form else str(value)


def machine(rows: Rows) -> str:
    lines = [", ".join(f"{name} {value}" for name, value in rows[key].items()) for key in ("device", "host") if key in rows]
    missing = ", ".join(rows.get("missing", {}).get("names", []))
    return ".\n".join([*lines, f"Missing: {missing}"] if missing else lines)


def outcomes(sections: Sections) -> str:
    rows = [[name, section["outcome"], f"{section['seconds']:.0f}"] for name, section in sections.items()]
    return table(["section", "outcome", "s"], rows, left=2)


def failures(sections: Sections) -> str:
    """One line each; the log has the tracebacks."""
    errors = [
        f"- {title}: {name}: {row['error']}"
        for title, section in sections.items()
        for name, row in section["rows"].items()
        if "error" in row
    ]
    return "\n".join(["## What failed", "", *errors]) if errors else ""


def titled(title: str, text: str, header: list[str], rows: Iterable[list[str]], left: int = 1) -> str:
    """A table under a title and a sentence, or nothing without rows."""
    lines = list(rows)
    return f"## {title}\n\n{text}\n\n{table(header, lines, left)}" if lines else ""


def parity(rows: Rows) -> str:
    text = "A training step on the device against float64 on the CPU: relative errors. s: of the first step."
    header = ["network, precision", "loss", "gradient", "worst layer's", "of", "s"]
    keys = ("loss", "gradient", "worst")
    lines = (
        [name, *(cell(row, key, ".1e") for key in keys), cell(row, "worst_at"), cell(row, "seconds", ".1f")]
        for name, row in rows.items()
        if "gradient" in row
    )
    return titled("Parity", text, header, lines)


def speed(rows: Rows, profiled: Rows) -> str:
    text = (
        "Images per second: the median of the rounds (least to greatest), and over PyTorch's of the same precision. Host ms:\n"
        "to enqueue a step while the device is idle. Launches: of nnlite's own kernels in a step; kernels: all that the\n"
        "profile section saw in it. Pool: the memory that a system took for its values, batches and a step. First step: with\n"
        "compilation, unless an earlier section has compiled the same kernels. Clocks: SM, memory, temperature, power."
    )
    header = ["task", "batch", "system", "images/s", "rounds", "of PyTorch", "host ms", "launches", "kernels", "pool MB"]
    lines = [speed_row(name, row, rows, profiled) for name, row in rows.items() if "images_per_second" in row]
    return titled("Training", text, [*header, "first step, s", "clocks"], lines)


def speed_row(name: str, row: dict[str, Any], rows: Rows, profiled: Rows) -> list[str]:
    values, peer = row["rounds"], rows.get(f"{row['task']}, {row['system'].replace('nnlite', 'torch')}", {})
    ratio = row["images_per_second"] / peer["images_per_second"] if "images_per_second" in peer else None
    return [
        row["task"],
        str(row["batch"]),
        row["system"],
        cell(row, "images_per_second", ",.0f"),
        f"{min(values):,.0f} to {max(values):,.0f}",
        cell({"ratio": ratio if "nnlite" in row["system"] else None}, "ratio", ".2f"),
        cell(row, "host_ms", ".2f"),
        cell(row, "launches"),
        cell(profiled.get(name, {}), "kernels", ".0f"),
        cell(row, "pool_bytes", ",.0f", 1e-6),
        cell(row, "first_step_seconds", ".1f"),
        cell(row, "clocks"),
    ]


def operations(rows: Rows) -> str:
    text = "On the device alone. GB/s: of the fewest bytes that must move. Kernels: microseconds of nnlite's own in a call."
    lines = (
        [
            name,
            row["sizes"],
            cell(row, "us", ",.1f"),
            cell(row, "gb_per_s", ",.0f"),
            cell(row, "gflop_per_s", ",.0f"),
            ", ".join(f"{kernel} {us:,.1f}" for kernel, us in row.get("kernels", {}).items()),
        ]
        for name, row in rows.items()
        if "us" in row
    )
    return titled("Single operations", text, ["operation", "sizes", "us", "GB/s", "GFLOP/s", "kernels"], lines, left=2)


def fast90(rows: Rows) -> str:
    text = "The recipe on generated shapes: seconds of each epoch, of all with the whitening, and the test accuracy."
    lines = (
        [
            name,
            " ".join(f"{seconds:.2f}" for seconds in row["epochs"]),
            cell(row, "seconds", ".2f"),
            cell(row, "accuracy", ".4f"),
        ]
        for name, row in rows.items()
        if "epochs" in row
    )
    return titled("fast90", text, ["precision", "epochs", "s", "accuracy"], lines)


def tests(sections: Sections) -> str:
    lines = []
    for name in ("tests", "memcheck", "racecheck"):
        rows = rows_of(sections, name)
        said = [rows[key]["summary"] for key in ("sanitizer", "pytest") if key in rows]
        counts = ", ".join(f"{key} {value}" for key, value in rows.get("counts", {}).items())
        lines += [f"- {name}: {'; '.join(said) or counts}"] * bool(said or counts)
    return "\n".join(["## Tests", "", *lines]) if lines else ""


def profiles(rows: Rows) -> str:
    """A table for each network and system."""
    return "\n".join(profile(name, row) + "\n" for name, row in rows.items() if "longest" in row)


def profile(name: str, row: dict[str, Any]) -> str:
    text = f"{row['kernels']:,.0f} kernels a step, {row['ms']:.2f} ms in all, by {row['method']}; the longest:"
    lines = (
        [f"`{kernel['kernel'].replace('|', '/')}`", f"{kernel['count']:.1f}", f"{kernel['ms']:.3f}"]
        for kernel in row["longest"]
    )
    return titled(f"Kernels: {name}", text, ["kernel", "a step", "ms a step"], lines)
