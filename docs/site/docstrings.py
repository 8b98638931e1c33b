"""Docstrings as Markdown: they are plain text, with formulas, `argument: meaning`, and names of nnlite's in backquotes."""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import griffe

EQUATION = re.compile(r"""^[^:"`]{1,70}? (?:=|<-|->) \S""")
SHAPE = re.compile(r"\([^)]*\)(?:(?:,| or) \([^)]*\))*")
NAMES = r"(?:[a-z_]\w*|[A-Z])(?:, (?:[a-z_]\w*|[A-Z]))*"
ARGUMENT = re.compile(rf"(?:^|(?<=  )|(?<=[.)] ))(`?{NAMES}`?): (?=\S)")
APART = re.compile(r"^(?:Raises|Sources?:)")
NAME = re.compile(r"`(?:nn\.)?([A-Za-z_][\w.]*)(\(.*?\))?`")


class Docstrings(griffe.Extension):
    """Replaces each docstring by its Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value, set(obj.package.exports or ()))


def markdown(text: str, public: set[str]) -> str:
    """The text as Markdown; names in `public` become references to the API."""
    blocks = [block for paragraph in text.split("\n\n") for block in of_paragraph(paragraph.split("\n"), public)]
    return re.sub(r"^(- .*)\n(?=\n- )", r"\1", "\n\n".join(blocks), flags=re.MULTILINE)


def of_paragraph(lines: list[str], public: set[str]) -> Iterator[str]:
    """Formulas as they are, prose with its arguments as lists."""
    laid_out = EQUATION.match(lines[0]) or any(line.startswith("  ") for line in lines)
    end = next((i for i, line in enumerate(lines) if ARGUMENT.match(line) or "Raises" in line), len(lines)) if laid_out else 0
    formulas = [i < end or is_table(line) for i, line in enumerate(lines)]
    for formula, numbered in groupby(zip(formulas, lines, strict=True), lambda pair: pair[0]):
        group = [line for _, line in numbered]
        if formula:
            yield "\n".join(["```text", *group, "```"])
        else:
            yield from (escaped(block, public) for block in prose(group))


def is_table(line: str) -> bool:
    """Whether a line has columns: equations, or shapes side by side."""
    columns = re.split(r" {3,}", line.strip())
    arguments = [ARGUMENT.match(column) for column in columns]
    shapes = [found and SHAPE.fullmatch(column[found.end() :]) for found, column in zip(arguments, columns, strict=True)]
    sentence = columns[0].endswith(".") and " = " not in columns[0] and not all(shapes[1:])
    return line.startswith("Backward") or (len(columns) > 1 and (all(shapes) or not (arguments[0] or sentence)))


def prose(lines: list[str]) -> Iterator[str]:
    """Arguments, what is raised and sources each apart, the rest in one."""
    text = re.sub(r"(?<=\. )\s*(?=Raises |Sources?: )", "\n", ARGUMENT.sub(r"\n\1: ", "\n".join(lines)))
    block: list[str] = []
    for line in filter(str.strip, text.split("\n")):
        if block and (ARGUMENT.match(line) or APART.match(line)):
            yield " ".join(block)
            block = []
        block.append(line.strip())
    yield " ".join(block)


def escaped(block: str, public: set[str]) -> str:
    """Without what Markdown would take for marks; an argument as an item."""
    argument = ARGUMENT.match(block)
    if argument and not APART.match(block):
        names = "`, `".join(argument[1].strip("`").split(", "))
        return f"- `{names}`: {escaped(block[argument.end() :], public)}"
    parts = re.split(r"(`[^`]*`)", block)
    return "".join(referred(part, public) if part.startswith("`") else marked(part) for part in parts)


def marked(text: str) -> str:
    text = re.sub(r"([*_\[\]])", r"\\\1", text.replace("<", "&lt;").replace(">", "&gt;"))
    return re.sub(r"docs/([\w-]+)\.md", r"[\1](../\1.md)", text)


def referred(code: str, public: set[str]) -> str:
    name = NAME.fullmatch(code)
    return f"[{code}][nnlite.{name[1]}]" if name and name[1].split(".")[0] in public else code
