"""The project keeps its shape: floors, imports, start-up, packaging facts."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nnlite"

FLOORS = [
    {"arguments", "atomic", "errors"},
    {"backend"},
    {"init", "layers", "losses", "optim", "schedules", "state"},
    {"engine"},
    {"debug", "files", "gradcheck", "model", "profile", "serialize", "summary", "weights"},
    {"callbacks", "check", "checkpoint", "contents", "counts", "csvlog", "data", "fingerprint", "fit", "formats", "guard"}
    | {"history", "hooks", "insight", "keeper", "loop", "metrics", "monitor", "progress", "signals", "sources", "train", "zoo"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules():
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path, types=False):
    """Modules that a file imports at run time; with `types`, those that it needs for types alone, too."""
    tree = ast.parse(path.read_text())
    for node in [] if types else ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module == "nnlite" else [node.module]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    here = FLOOR_OF[room_of(path)]
    for name in imports(path):
        if name.startswith("nnlite."):
            assert FLOOR_OF[name.split(".")[1]] <= here, f"{path.name} imports {name} from a floor above"


def test_no_circles_in_training():
    """Types included: what the loop, the keeper and callbacks need of a trainer is a protocol below them."""
    rooms = {path: room_of(path) for path in modules() if FLOOR_OF[room_of(path)] == len(FLOORS) - 1}
    needs = {room: set() for room in rooms.values()}
    for path, room in rooms.items():
        needs[room] |= {name.split(".")[1] for name in imports(path, types=True) if name.startswith("nnlite.")} - {room}
    while free := {room for room, below in needs.items() if not below & needs.keys()}:
        needs = {room: below for room, below in needs.items() if room not in free}
    assert not needs, f"these import each other: {sorted(needs)}"


def test_no_package_hides_its_modules():
    """By a function of the same name. Those that are hidden still are listed: no others come."""
    code = "import sys, nnlite; nnlite.data, nnlite.insight, nnlite.zoo; "
    code += "names = [n for n in sys.modules if n.startswith('nnlite.')]; "
    code += "above = {n: sys.modules[n.rpartition('.')[0]] for n in names}; "
    code += "print(*[n for n in names if getattr(above[n], n.rpartition('.')[2]) is not sys.modules[n]])"
    hidden = {"nnlite.debug", "nnlite.gradcheck", "nnlite.profile", "nnlite.data.shapes"}
    assert set(fresh(code)) <= hidden


@pytest.mark.parametrize("path", sorted((PACKAGE / "layers").glob("*.py")), ids=lambda p: p.name)
def test_layers_import_no_array_library_and_no_threads(path):
    assert not {"numpy", "cupy", "threading"} & {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", sorted((PACKAGE / "backend").rglob("*.py")), ids=lambda p: p.name)
def test_the_backend_knows_no_layer_and_no_model(path):
    assert not [name for name in imports(path) if name.startswith(("nnlite.layers", "nnlite.model"))]


def fresh(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.split()


def test_import_loads_little():
    """What makes an import slow: other packages. The time itself is measured by benchmarks/import_time.py."""
    loaded = fresh(
        "import sys, numpy; before = set(sys.modules); import nnlite; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    heavy = {"tqdm", "safetensors", "threadpoolctl", "matplotlib", "cupy", "scipy", "concurrent", "tarfile"}
    assert "nnlite" in loaded
    assert not heavy & set(loaded)


def test_cupy_is_never_imported_by_the_cpu():
    code = "import sys; import nnlite as nn; nn.Sequential(nn.Dense(2), input_shape=(3,))([[1, 2, 3]]); "
    assert fresh(code + "print('cupy' in sys.modules)") == ["False"]


def test_public_names_have_docstrings():
    import nnlite as nn

    for name in nn.__all__:
        assert getattr(nn, name).__doc__, name


def test_files_stay_readable():
    for path in modules():
        assert len(path.read_text().splitlines()) <= 400, path


def test_no_text_names_the_distribution_of_somebody_else():
    """`nnlite` on the package index is another project: ours is nnlite-numpy, in every requirement and every install line."""
    other = re.compile(r"""(install|add)\b[^\n;&]*['"\s]nnlite(?![-\w./])|['"\s]nnlite\[""")
    assert all(map(other.search, ("pip install nnlite", "uv add 'nnlite[test]'", '"nnlite[dev]"')))
    assert not any(map(other.search, ("pip install 'nnlite-numpy[cuda12]'", 'pip install ".[test]"; import nnlite')))
    folders = (ROOT / name for name in ("nnlite", "tests", "docs", "examples", "benchmarks", "requirements", ".ci"))
    texts = [path for folder in folders for path in folder.rglob("*") if path.suffix in {".py", ".md", ".txt", ".toml", ""}]
    texts += [*ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / "Makefile"]
    for path in texts:
        if path.is_file() and path.name != "test_project.py":
            assert not other.search(path.read_text()), path
