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
    {"serialize"},
    {"model"},
    {"data", "files", "kernels", "metrics", "tools", "zoo"},
    {"training"},
    {"distributed", "insight", "interop", "privacy"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules():
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def statements(path):
    return ast.walk(ast.parse(path.read_text()))


def modules_named(node):
    """The modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    whole = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if file_of(name) else node.module for name in whole]


def file_of(name):
    """The file of a module of nnlite's."""
    base = ROOT.joinpath(*name.split("."))
    files = (base.with_suffix(".py"), base / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def imports(path):
    """Modules that a file imports, wherever it does, those for types alone included."""
    return {name for node in statements(path) for name in modules_named(node)}


def own_imports(path):
    return {name for name in imports(path) if name.startswith("nnlite.")}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    here = FLOOR_OF[room_of(path)]
    for name in own_imports(path):
        assert FLOOR_OF[name.split(".")[1]] <= here, f"{path.name} imports {name} from a floor above"


def test_no_module_needs_itself():
    """However indirectly, and for types alone."""
    needs = {path: {file_of(name) for name in own_imports(path)} - {path} for path in modules()}
    while free := {path for path, below in needs.items() if not below & needs.keys()}:
        needs = {path: below for path, below in needs.items() if path not in free}
    assert not needs, f"these import each other: {sorted(str(path.relative_to(PACKAGE)) for path in needs)}"


LATE = {  # what is loaded when it is first used
    "backend/__init__.py": {"nnlite.backend.cuda.cupy"},
    "training/sources.py": {"nnlite.data"},
    "interop/__init__.py": {f"nnlite.interop.{name}" for name in ("keras", "onnx", "sklearn", "torch")},
}


def test_imports_in_functions_are_few():
    late = {}
    for path in modules():
        for function in statements(path):
            if isinstance(function, ast.FunctionDef):
                inside = {name for node in ast.walk(function) for name in modules_named(node) if name.startswith("nnlite")}
                late.setdefault(str(path.relative_to(PACKAGE)), set()).update(inside)
        assert "import_module" not in path.read_text() and "__import__" not in path.read_text()
    assert {path: names for path, names in late.items() if names} == LATE


def test_few_modules_are_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 14


def test_no_package_hides_its_modules():
    """By a function of the same name."""
    code = "import sys, nnlite; nnlite.data, nnlite.insight, nnlite.zoo; "
    code += "names = [n for n in sys.modules if n.startswith('nnlite.')]; "
    code += "above = {n: sys.modules[n.rpartition('.')[0]] for n in names}; "
    code += "print(*[n for n in names if getattr(above[n], n.rpartition('.')[2]) is not sys.modules[n]])"
    assert fresh(code) == []


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


def test_interop_is_loaded_when_it_is_used():
    code = "import sys, nnlite as nn; nn.interop; print('nnlite.interop.torch' in sys.modules, 'sklearn' in sys.modules); "
    assert fresh(code + "print(nn.interop.torch.load.__name__)") == ["False", "False", "load"]
    import nnlite as nn

    with pytest.raises(AttributeError, match="has no attribute 'caffe'"):
        _ = nn.interop.caffe
