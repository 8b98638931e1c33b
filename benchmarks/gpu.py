"""All that needs a GPU, in one command: the property tests on the device, then training speed beside PyTorch's.

usage: python benchmarks/gpu.py [--quick] [--no-tests] [--out FOLDER]

Runs from a bare checkout with PYTHONPATH=. and needs CuPy and a CUDA device; pytest, hypothesis, compute-sanitizer and torch
are used where they are there, and named where not. Writes gpu.md and gpu.json. Rounds take the systems in turn; a round's
time is that between two device events around its steps, after a warm-up, with the data on the device.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "benchmarks")]

import peers_tasks as net  # noqa: E402

import nnlite as nn  # noqa: E402

TESTS = ["tests/cuda/test_kernels.py", "tests/cuda/test_device.py"]
SYSTEMS = ("nnlite", "nnlite tf32", "torch", "torch tf32")
TASKS = {
    "tutorial CNN": ("cnn@512", 512),
    "VGG-like": ("vgg@64", 256),
    "ResNet-20": ("resnet20@128", 512),
}
STEPS, ROUNDS = 30, 7


def main() -> None:
    args = parse()
    try:
        nn.Sequential(nn.Dense(1), input_shape=(1,)).to("cuda")
    except nn.DeviceError as error:
        raise SystemExit(f"DeviceError: {error}") from None
    report: dict[str, Any] = {"machine": machine(), "tests": None if args.no_tests else run_tests(args.quick)}
    report["sanitizer"] = None if args.no_tests else run_sanitizer()
    report["training"] = [compare(title, key, batch, args.quick) for title, (key, batch) in TASKS.items()]
    report["fast90"] = None if args.quick else fast90()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "gpu.md").write_text(markdown(report))
    print(markdown(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer examples, steps and rounds")
    parser.add_argument("--no-tests", action="store_true", help="only the speed")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "benchmarks" / "results")))
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """The device, driver and versions."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    packages = {name: version(name) for name in ("numpy", "torch") if find_spec(name)}
    return {
        "device": properties["name"].decode(),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "python": sys.version.split()[0],
        "cupy": cupy.__version__,
        **packages,
    }


# ---- correctness


def run_tests(quick: bool) -> dict[str, Any]:
    """The tests of tests/cuda, on the device instead of the pretended one."""
    if not (find_spec("pytest") and find_spec("hypothesis")):
        return {"skipped": "pytest or hypothesis is missing"}
    files = TESTS[:1] if quick else TESTS
    return run_command([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files], limit=300)


def run_sanitizer() -> dict[str, Any]:
    """compute-sanitizer's memory check over the kernels' tests of fixed shapes."""
    if not shutil.which("compute-sanitizer"):
        return {"skipped": "there is no compute-sanitizer"}
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        TESTS[0],
        "-k",
        "same_bits or many_rows or many_images",
    ]
    return run_command(["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", *tests], limit=120)


def run_command(command: list[str], limit: int) -> dict[str, Any]:
    environment = os.environ | {"NNLITE_TEST_GPU": "1", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"passed": False, "seconds": limit, "last_lines": [f"not done after {limit} s"]}
    lines = (done.stdout + done.stderr).strip().splitlines()[-15:]
    return {"passed": done.returncode == 0, "seconds": round(time.perf_counter() - start, 1), "last_lines": lines}


# ---- speed


def compare(title: str, key: str, batch: int, quick: bool) -> dict[str, Any]:
    """Images per second of each system, rounds in turn."""
    import dataclasses

    task = dataclasses.replace(net.TASKS[key], batch=batch)
    batches = net.make_batches(task)
    steps, rounds = (5, 3) if quick else (STEPS, ROUNDS)
    systems = {name: make(task, batches, name) for name in SYSTEMS if "torch" not in name or find_spec("torch")}
    for step in systems.values():
        timed(step, 3)
    speeds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, step in systems.items():
            speeds[name].append(batch * steps / timed(step, steps))
    medians = {name: round(statistics.median(values)) for name, values in speeds.items()}
    return {"task": title, "batch": batch, "images_per_second": medians, "rounds": speeds}


def make(task: net.Task, batches: list[tuple[Any, Any]], system: str) -> Callable[[int], None]:
    return (make_torch if "torch" in system else make_nnlite)(task, batches, "tf32" in system)


def timed(step: Callable[[int], None], steps: int) -> float:
    """Seconds that the device takes for so many steps."""
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    for i in range(steps):
        step(i)
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3


def make_nnlite(task: net.Task, batches: list[tuple[Any, Any]], tf32: bool) -> Callable[[int], None]:
    import cupy
    from peers_nnlite import translate

    layers = map(translate, task.network)
    model = nn.Sequential(*layers, input_shape=task.in_shape).to("cuda", precision="tf32" if tf32 else "float32")
    criterion, optimizer = nn.CrossEntropy(), nn.Adam(net.LEARNING_RATE)
    data = [(cupy.asarray(x), cupy.asarray(t)) for x, t in batches]

    def step(i: int) -> None:
        x, t = data[i % len(data)]
        model.loss_and_grad(x, t, criterion)
        optimizer.step(model)

    return step


def make_torch(task: net.Task, batches: list[tuple[Any, Any]], tf32: bool) -> Callable[[int], None]:
    import torch
    from peers_torch import to_channels_last, translate

    model = translate(task.network, task.in_shape).cuda().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=net.LEARNING_RATE, fused=True)
    data = [(to_channels_last(x).cuda(), torch.from_numpy(t).cuda()) for x, t in batches]

    def step(i: int) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        x, t = data[i % len(data)]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), t).backward()
        optimizer.step()

    return step


def fast90() -> dict[str, Any]:
    """Seconds of the fast90 recipe, and its accuracy, where CIFAR-10 is at hand."""
    from recipes import RECIPES, fit, make_trainer

    if not os.environ.get("NNLITE_DATA"):
        return {"skipped": "NNLITE_DATA is not set: no CIFAR-10 here"}
    data, recipe = nn.data.cifar10(), RECIPES["fast90"]
    start = time.perf_counter()
    trainer = make_trainer(recipe, len(data.train), 0, "cuda")
    fit(recipe, trainer, data.train, progress=False)
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), **trainer.evaluate(data.test)}


# ---- the table


def markdown(report: dict[str, Any]) -> str:
    lines = ["# nnlite on a GPU", "", ", ".join(f"{name} {value}" for name, value in report["machine"].items()), ""]
    for name in ("tests", "sanitizer"):
        result = report[name]
        if result:
            text = result.get("skipped") or f"{'passed' if result['passed'] else 'FAILED'} in {result['seconds']} s"
            last = f": {result['last_lines'][-1]}" if result.get("last_lines") else ""
            lines.append(f"- {name}: {text}{last}")
    lines += ["", "Training, images per second, medians of the rounds.", ""]
    lines += [f"| task | batch | {' | '.join(SYSTEMS)} |", f"| :-- | --: |{' --: |' * len(SYSTEMS)}"]
    for row in report["training"]:
        speeds = row["images_per_second"]
        cells = " | ".join(f"{speeds[name]:,}" if name in speeds else "" for name in SYSTEMS)
        lines.append(f"| {row['task']} | {row['batch']} | {cells} |")
    lines += ["", f"fast90: {json.dumps(report['fast90'])}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
