"""The tables of README, `docs/benchmarks.md` and `docs/performance.md`, from the committed rounds: one file for each machine.

usage: PYTHONPATH=benchmarks python -m peers_parts.pages     writes the tables in place
"""

import json
import statistics
from pathlib import Path
from typing import Any

from peers_parts.report import divide, spread, table
from peers_parts.tasks import TASKS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MACHINES = {"peers_team_zen4": "Zen 4 EPYC"}  # files of rounds; README shows the first
PEERS = {"torch": "PyTorch, eager", "keras": "Keras", "jax": "JAX"}  # columns
NAMES = {"torch": "PyTorch", "torch.compile": "PyTorch, compiled", "keras": "Keras", "jax": "JAX", "sklearn": "scikit-learn"}
CNN = ("cnn@32", "cnn@128", "cnn@512")
ROWS = (  # of the table of benchmarks: title, ours, tasks
    ("tutorial CNN, training, batch 32 / 128 / 512", "nnlite", CNN),
    ("the same with NumPy's kernels", "nnlite-numpy", CNN),
    ("VGG-like net with batch norm, training, batch 64", "nnlite", ("vgg@64",)),
    ("ResNet-20, training, batch 128", "nnlite", ("resnet20@128",)),
    ("MLP 784-512-512-10, training, batch 32 / 256", "nnlite", ("mlp@32", "mlp@256")),
    ("MLP 4-16-3, training, batch 16", "nnlite", ("tiny@16",)),
    ("tutorial CNN, inference, batch 1 / 32 / 1024", "nnlite", ("cnn-infer@1", "cnn-infer@32", "cnn-infer@1024")),
)

FEW = (  # of README's
    ("tutorial CNN, training, batch 128", "nnlite", ("cnn@128",)),
    ("ResNet-20, training, batch 128", "nnlite", ("resnet20@128",)),
    ("MLP 784-512-512-10, training, batch 256", "nnlite", ("mlp@256",)),
    ("tutorial CNN, inference, batch 1024", "nnlite", ("cnn-infer@1024",)),
)

Tasks = dict[str, Any]


def main() -> None:
    for page, made in pages(committed()).items():
        path = ROOT / page
        path.write_text(replaced(path.read_text(), made))


def committed() -> dict[str, Tasks]:
    """The tasks of each machine, by its title."""
    return {title: json.loads((RESULTS / f"{name}.json").read_text())["tasks"] for name, title in MACHINES.items()}


def pages(machines: dict[str, Tasks]) -> dict[str, str]:
    """The table of each page."""
    first = next(iter(machines.values()))
    return {
        "README.md": speed(first, FEW),
        "docs/benchmarks.md": speed(first, ROWS),
        "docs/performance.md": performance(machines),
    }


def replaced(text: str, made: str) -> str:
    """The text with this table in place of the one with the same first column; raises ValueError without one."""
    lines, new = text.splitlines(), made.splitlines()
    first = new[0].split("|")[1]
    start = next((i for i, line in enumerate(lines) if line.startswith(f"|{first}|")), None)
    if start is None:
        raise ValueError(f"no table begins with |{first}|")
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    return "\n".join([*lines[:start], *new, *lines[end:]]) + "\n"


def speed(tasks: Tasks, chosen: tuple[tuple[str, str, tuple[str, ...]], ...]) -> str:
    """Medians over the rounds of nnlite's speed over a peer's in the same round."""
    rows = [
        speed_row(title, ours, [tasks[key] for key in keys])
        for title, ours, keys in chosen
        if all(ours in tasks[key]["samples_per_second"] for key in keys)
    ]
    return table(["nnlite's speed over that of", *PEERS.values(), "the fastest peer"], rows, left=1)


def speed_row(title: str, ours: str, tasks: list[dict[str, Any]]) -> list[str]:
    """A cell has a ratio for each task; the last names the fastest peer, once where it is the same in all."""
    fastest = [task["fastest_peer"] for task in tasks]
    names = [NAMES.get(peer, peer) for peer in fastest]
    over_fastest = [ratio(task, ours, peer) for task, peer in zip(tasks, fastest, strict=True)]
    if len(set(names)) == 1:
        last = f"{' / '.join(over_fastest)} {names[0]}"
    else:
        last = " / ".join(f"{value} {name}" for value, name in zip(over_fastest, names, strict=True))
    return [title, *(" / ".join(ratio(task, ours, peer) for task in tasks) for peer in PEERS), last]


def ratio(task: dict[str, Any], ours: str, peer: str) -> str:
    rates = task["samples_per_second"]
    return f"{statistics.median(divide(rates[ours], rates[peer])):.1f}"


def performance(machines: dict[str, Tasks]) -> str:
    """Every task on every machine: nnlite over the fastest peer and over PyTorch; tasks that were not measured are left out."""
    header = ["task, batch", *(f"{title}, over {peer}" for title in machines for peer in ("the fastest peer", "PyTorch"))]
    rows = [
        [f"{task.title}, {task.batch}", *(cell for tasks in machines.values() for cell in cells(tasks.get(key)))]
        for key, task in TASKS.items()
        if any(key in tasks for tasks in machines.values())
    ]
    return table(header, rows, left=1)


def cells(task: dict[str, Any] | None) -> tuple[str, str]:
    if task is None or "nnlite" not in task["ratios"]:
        return "", ""
    ratios, fastest = task["ratios"]["nnlite"], task["fastest_peer"]
    return f"{spread(ratios[fastest])} {NAMES.get(fastest, fastest)}", spread(ratios["torch"])


if __name__ == "__main__":
    main()
