"""Build the documentation site into `site/`, and refuse one that would load anything from another host.

usage: python docs/site/build_site.py     (make docs; needs the extra `docs`, and npm for the formulas and fonts)
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "out" / "docs"  # the pages as they lie in the repository, and what `npm pack` brought
CACHE = ROOT / "out" / "npm"
SITE = ROOT / "site"
PACKAGES = {  # name@version: SHA-256 of its archive, the files that are taken
    "katex@0.16.22": (
        "e9e0d167db3175481cbadaff38e8d90b130f6a3ddb451a47e43c577fd511f365",
        r"LICENSE|dist/katex\.min\.(css|js)|dist/fonts/.*\.woff2",
    ),
    "@fontsource-variable/inter@5.2.6": (
        "ae25b3147aefefb0d10876bf571f91f41324c5b50cad56996cadfde0255d0536",
        r"LICENSE|files/inter-(latin|greek)-wght-(normal|italic)\.woff2",
    ),
    "@fontsource-variable/jetbrains-mono@5.2.6": (
        "dcd526fa5a1fd3c8268b8b3f948d6e682bc2f5aaec7f0031ad4d5a63f23f24e8",
        r"LICENSE|files/jetbrains-mono-(latin|greek)-wght-normal\.woff2",
    ),
    "iframe-worker@1.0.4": ("e8c5d12d87829c503afba01d67772ea9f4aba5b7ae57a0c98e1917711030efbb", r"LICENSE|shim/index\.js"),
}
SHIM = "https://unpkg.com/iframe-worker/shim"  # what lets pages that are opened from a folder be searched
# An address with or without a scheme; namespaces are none.
ADDRESS = re.compile(r"""(?:https?://(?!www\.w3\.org/)|(?<![^"'(])//[\w-]+\.)[^\s"'`)<>\\]+""")
LINK = re.compile(r"\]\(([^)\s:#]+)(#[^)\s]*)?\)")
LANGUAGES = {".py": "python", ".c": "c", ".h": "c", ".cu": "cuda"}
NAME = re.compile(r"(?<!\[)`nn\.([\w.]+)(\(.*?\))?`")


def main() -> None:
    stage()
    for package, (digest, files) in PACKAGES.items():
        unpack(fetched(package, digest), SOURCE / "vendor" / package.rpartition("@")[0].rpartition("/")[2], files)
    shutil.rmtree(SITE, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT, check=True)
    keep_at_home(SITE)
    wrong = [*foreign_loads(SITE), *dangling_links(SITE), *(f"no entry of {name}" for name in missing_entries(SITE))]
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(list(SITE.rglob('*.html')))} pages, from {SITE / 'index.html'}")


def stage() -> None:
    """Copy the pages to where the generator reads them, and make pages of the code to which they link."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE / "docs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copytree(ROOT / "benchmarks" / "results", SOURCE / "benchmarks" / "results")
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE"):
        shutil.copy(ROOT / name, SOURCE / name)
    for page in [*SOURCE.rglob("*.md")]:
        text = with_references(page.read_text())
        page.write_text(LINK.sub(partial(linked, ROOT / page.relative_to(SOURCE).parent), text))
        if page.name == "README.md":
            page.rename(page.with_name("index.md"))
    for folder in ("examples", "nnlite", "notebooks"):
        for path in filter(is_code, (ROOT / folder, *(ROOT / folder).rglob("*"))):
            page = SOURCE / path.relative_to(ROOT)
            page = page / "index.md" if path.is_dir() else page.with_name(f"{page.name}.md")
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(code_page(path))


def is_code(path: Path) -> bool:
    return path.suffix in LANGUAGES or (path.is_dir() and path.name != "__pycache__")


def code_page(path: Path) -> str:
    """A file of code, or the list of those in a folder."""
    head = f"---\nhide: [navigation, toc]\nsearch: {{ exclude: true }}\n---\n\n# {path.relative_to(ROOT)}\n\n"
    if path.is_file():
        return f"{head}``````{LANGUAGES[path.suffix]}\n{path.read_text()}``````\n"
    inside = filter(is_code, sorted(path.iterdir()))
    return head + "".join(f"- [`{each.name}`]({each.name}{'/index' if each.is_dir() else ''}.md)\n" for each in inside)


def linked(folder: Path, match: re.Match[str]) -> str:
    """A link from a page of this folder, as it is in the site."""
    target = folder / match[1]
    if target.is_dir():
        return f"]({match[1].rstrip('/')}/index.md)"
    return (
        f"]({match[1]}.md)" if target.suffix in LANGUAGES else f"]({match[1].replace('README.md', 'index.md')}{match[2] or ''})"
    )


def with_references(text: str) -> str:
    """Names of nnlite's own, outside of code and headings, as references to the API."""
    parts = re.split(r"(^```.*?^```|^#.*?$|^    .*?$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else NAME.sub(reference, part) for i, part in enumerate(parts))


def reference(match: re.Match[str]) -> str:
    return f"[{match[0]}][nnlite.{match[1]}]" if match[1] in documented() else match[0]


@cache
def documented() -> frozenset[str]:
    """What the pages of the API describe, by its name in nnlite."""
    pages = (ROOT / "docs" / "api").glob("*.md")
    return frozenset(name for page in pages for name in re.findall(r"^::: nnlite\.(\S+)", page.read_text(), re.MULTILINE))


def fetched(package: str, digest: str) -> Path:
    """The archive of a package; raises SystemExit if it is not the one that was pinned."""
    name = package.removeprefix("@").replace("/", "-")
    path = CACHE / f"{'-'.join(name.rsplit('@', 1))}.tgz"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", package], cwd=CACHE, check=True, stdout=subprocess.DEVNULL)
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        sys.exit(f"{path} is not the archive that was pinned: delete it, and see what {package} is now")
    return path


def unpack(archive: Path, folder: Path, files: str) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix("package/")
            content = tar.extractfile(member)
            if content and re.fullmatch(files, name):
                target = folder / name.removeprefix("dist/").removeprefix("files/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())


def keep_at_home(site: Path) -> None:
    """The theme would load a shim, and where a page has any, diagrams, editors and counters, from other hosts."""
    for page in site.rglob("*.html"):
        home = "../" * (len(page.relative_to(site).parts) - 1)
        page.write_text(page.read_text().replace(SHIM, f"{home}vendor/iframe-worker/shim/index.js"))
    for script in site.rglob("*.js"):
        script.write_text(re.sub(ADDRESS, "", script.read_text()))


class Page(HTMLParser):
    """What a page loads by itself, what it links to, and the names of its places."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in {"href", "src", "srcset", "poster", "data", "action", "content", "style"} and tag != "meta":
                self.loads.append(value or "")
            elif name == "id":
                self.places.add(value or "")

    def handle_data(self, data: str) -> None:
        if self.get_starttag_text() and self.cdata_elem in {"script", "style"}:
            self.loads.append(data)


@cache
def page_at(path: Path) -> Page:
    return Page(path.read_text())


def foreign_loads(site: Path) -> Iterator[str]:
    """Addresses of other hosts in what a browser loads or runs without being asked."""
    for path in site.rglob("*"):
        if path.suffix in {".html", ".css", ".js", ".svg"}:
            for loaded in loads(path):
                for found in re.finditer(ADDRESS, loaded):
                    yield f"{path.relative_to(site)} loads {found[0]}"


def loads(path: Path) -> list[str]:
    """Of a page its attributes and scripts, of a style sheet what it imports and draws; of a script everything counts."""
    if path.suffix == ".html":
        return page_at(path).loads
    return (
        re.findall(r"(?:url\(|@import)\s*([\"']?[^\"')]+)", path.read_text()) if path.suffix == ".css" else [path.read_text()]
    )


def dangling_links(site: Path) -> Iterator[str]:
    """Links to pages, files and places that are not there."""
    for path in site.rglob("*.html"):
        for link in page_at(path).links if path.name != "404.html" else []:
            address = urlsplit(link)
            target = Path(os.path.normpath(path.parent / unquote(address.path))) if address.path else path
            there = target.is_file() and (not address.fragment or unquote(address.fragment) in page_at(target).places)
            if not (address.scheme or address.netloc or there):
                yield f"{path.relative_to(site)} links to {link}"


def missing_entries(site: Path) -> set[str]:
    """What the pages of the API should describe and do not."""
    places = {place for path in (site / "docs" / "api").glob("*.html") for place in page_at(path).places}
    return {f"nnlite.{name}" for name in documented()} - places


if __name__ == "__main__":
    main()
