"""The documentation site: what its pages must have, and the checks that `make docs` runs on what it built."""

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

import nnlite as nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import build_site  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = (
    *("data", "distributed", "init", "insight", "insight.explain", "insight.plots", "metrics", "privacy", "schedules", "zoo"),
    *("interop.keras", "interop.onnx", "interop.sklearn", "interop.torch"),
)
INTERNAL = {"init.DeclaredShape", "init.find", "init.initialiser", "init.initial_values"}


def public_names():
    """What a user may write after `nn.`: what a package exports, else the functions and classes that it defines."""
    names = set(nn.__all__)
    for package in PACKAGES:
        module = import_module(f"nnlite.{package}")
        values = {name: value for name, value in vars(module).items() if inspect.isfunction(value) or inspect.isclass(value)}
        defined = [name for name, value in values.items() if value.__module__ == module.__name__ and name[0] != "_"]
        names |= {f"{package}.{name}" for name in getattr(module, "__all__", defined)}
    return names - INTERNAL


def named(name):
    value = nn
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_every_public_name_is_in_the_reference():
    documented = [named(name) for name in build_site.documented()]
    missing = [name for name in public_names() if not any(named(name) is value for value in documented)]
    assert not missing and len(build_site.documented()) > 100


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"docs/[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}


def test_the_gallery_shows_every_picture():
    shown = re.findall(r"images/gallery/([\w.]+)", (ROOT / "docs/gallery.md").read_text())
    assert sorted(shown) == sorted(path.name for path in (ROOT / "docs/images/gallery").iterdir())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s:#]+)(?:#[^)\s]*)?\)", text)
    assert not [link for link in links if not (page.parent / link).exists()]


def test_what_a_page_loads_from_other_hosts_is_found(tmp_path):
    (tmp_path / "clean.html").write_text(
        '<a href="https://example.org">a link</a><link href="a.css"><svg xmlns="http://www.w3.org/2000/svg"></svg>'
    )
    (tmp_path / "a.css").write_text("/* https://example.org */ @font-face { src: url(a.woff2) }")
    assert not list(build_site.foreign_loads(tmp_path))
    (tmp_path / "page.html").write_text(
        '<script src="https://a.org/a.js"></script><link rel="preconnect" href="//b.org/x"><img src="http://c.org/c.png">'
        '<iframe src="https://d.org"></iframe><script>fetch("https://e.org/e")</script><p style="background: url(https://f.org/f)">'
    )
    (tmp_path / "b.css").write_text('@import "https://g.org/g.css"; a { background: url(//h.org/h.png) }')
    (tmp_path / "b.js").write_text('load("https://i.org/i.js")')
    found = "".join(build_site.foreign_loads(tmp_path))
    assert {*re.findall(r"//(\w)\.org", found)} == {*"abcdefghi"}


def test_scripts_are_kept_at_home(tmp_path):
    page, script = tmp_path / "docs" / "api" / "page.html", tmp_path / "theme.js"
    page.parent.mkdir(parents=True)
    page.write_text(f'<script src="{build_site.SHIM}"></script>')
    script.write_text('load("https://example.org/a.js"); make("http://www.w3.org/2000/svg")')
    build_site.keep_at_home(tmp_path)
    assert page.read_text() == '<script src="../../vendor/iframe-worker/shim/index.js"></script>'
    assert script.read_text() == 'load(""); make("http://www.w3.org/2000/svg")'


def test_links_to_nowhere_are_found(tmp_path):
    (tmp_path / "there.html").write_text('<h1 id="place"></h1>')
    (tmp_path / "page.html").write_text(
        '<a href="there.html#place"></a><a href="https://example.org/x"></a><a href="#top"></a><p id="top">'
    )
    assert not list(build_site.dangling_links(tmp_path))
    (tmp_path / "bad.html").write_text('<a href="gone.html"></a><a href="there.html#gone"></a><a href="#none"></a>')
    assert len(list(build_site.dangling_links(tmp_path))) == 3


def test_names_become_references():
    kept = "`nn.nothing`, [`nn.Adam`](api/optimisers.md)\n\n# `nn.Dense`\n\n```python\n`nn.Dense`\n```\n\n    `nn.Dense`\n"
    made = build_site.with_references("`nn.Dense(4)` `nn.data.shapes` " + kept)
    assert made == "[`nn.Dense(4)`][nnlite.Dense] [`nn.data.shapes`][nnlite.data.shapes] " + kept


@pytest.mark.parametrize(
    ("link", "made"),
    [
        ("../nnlite/layers", "../nnlite/layers/index.md"),
        ("../nnlite/layers/dense.py", "../nnlite/layers/dense.py.md"),
        ("../README.md", "../index.md"),
        ("training.md#logs", "training.md#logs"),
        ("images/curves.png", "images/curves.png"),
    ],
)
def test_links_to_code_lead_to_its_pages(link, made):
    folder = ROOT / "docs"
    assert build_site.LINK.sub(lambda match: build_site.linked(folder, match), f"[text]({link})") == f"[text]({made})"


def test_pages_of_code_hold_the_code():
    path = ROOT / "nnlite" / "layers" / "dense.py"
    assert f"``````python\n{path.read_text()}``````" in build_site.code_page(path)
    assert "[`dense.py`](dense.py.md)" in build_site.code_page(path.parent)
    assert "[`layers`](layers/index.md)" in build_site.code_page(path.parents[1])


def test_another_archive_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(build_site, "CACHE", tmp_path)
    (tmp_path / "fontsource-variable-inter-1.0.0.tgz").write_bytes(b"another")
    with pytest.raises(SystemExit, match="not the archive that was pinned"):
        build_site.fetched("@fontsource-variable/inter@1.0.0", "0" * 64)


def test_docstrings_become_markdown():
    pytest.importorskip("griffe", reason="griffe comes with the extra docs")
    from docstrings import markdown

    text = """z = W a + b.      a: (N, n_in)   z: (N, n_out)

Text with n_in * 2 and a <tag>, see `nn.Adam(0.1)` and docs/training.md.

units: how many.  init: of W, a function
(shape, rng) -> array.
Raises ValueError for none. Source: Nobody 1900."""
    assert markdown(text, {"Adam"}) == (
        "```text\nz = W a + b.      a: (N, n_in)   z: (N, n_out)\n```\n\n"
        "Text with n\\_in \\* 2 and a &lt;tag&gt;, see [`nn.Adam(0.1)`][nnlite.Adam] and [training](../training.md).\n\n"
        "- `units`: how many.\n- `init`: of W, a function (shape, rng) -&gt; array.\n\n"
        "Raises ValueError for none.\n\nSource: Nobody 1900."
    )
