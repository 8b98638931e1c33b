"""From the rounds of `peers.py` to ratios and the Markdown table."""

import statistics
from typing import Any

from peers_parts.tasks import LIMITS, Task, flops_per_sample

OURS = ("nnlite", "nnlite-numpy", "nnlite-ft")
NOT_PEERS = (*OURS, *LIMITS)
IDLE_LIMIT, OTHERS_LIMIT = 0.02, 0.1  # cores


def add_ratios(task: Task, result: dict[str, Any]) -> None:
    """Round by round: nnlite's speed over that of each peer, and its share of the machine's matrix product."""
    rates = result["samples_per_second"]
    peers = [system for system in rates if system not in NOT_PEERS]
    result["ratios"], result["sgemm_share"] = {}, {}
    for ours in OURS:
        if ours in rates:
            result["ratios"][ours] = {peer: divide(rates[ours], rates[peer]) for peer in peers}
        if ours in rates and "sgemm" in rates:
            flops = [rate * flops_per_sample(task) for rate in rates[ours]]
            result["sgemm_share"][ours] = divide(flops, rates["sgemm"])
    if peers:
        result["fastest_peer"] = max(peers, key=lambda peer: statistics.median(rates[peer]))


def divide(ours: list[float], theirs: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def markdown(report: dict[str, Any]) -> str:
    parts = [heading(report), speed_table(report["tasks"]), limits_line(report["tasks"]), cost_table(report["costs"])]
    return "\n\n".join(part for part in [*parts, notes(report)] if part) + "\n"


def heading(report: dict[str, Any]) -> str:
    machine, free = report["machine"], report["free_threaded"]
    python = f"Python {machine['python']}" + (f"; nnlite-ft: nnlite on a free-threaded Python, {free}" if free else "")
    return (
        "# nnlite and its peers on the CPU\n\n"
        f"{machine_line(machine)} {report['threads']} threads, float32, Adam; "
        f"{report['rounds']} rounds of {report['seconds']:g} s.\n{python}.\n{version_list(report['versions'])}.\n\n"
        "Samples per second, medians over the rounds. Ratios are nnlite's speed over a peer's in the same round: "
        "median (least to greatest)."
    )


def machine_line(machine: dict[str, Any]) -> str:
    whole = f"{machine['processor']}, {machine['cores']} cores, {machine['system']}."
    return f"{whole} NumPy's BLAS uses its {machine['openblas']} kernels."


def version_list(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def speed_table(tasks: dict[str, Any]) -> str:
    systems = list(dict.fromkeys(name for task in tasks.values() for name in task["samples_per_second"] if name not in LIMITS))
    if not systems:
        return ""
    ours = [name for name in OURS if name in systems]
    columns = [f"{name} {over}" for name in ours for over in ("/ fastest peer", "/ torch", "of sgemm")]
    header = ["task", "batch", *systems, *columns]
    return table(header, [speed_row(task, systems, ours) for task in tasks.values()], left=1)


def speed_row(task: dict[str, Any], systems: list[str], ours: list[str]) -> list[str]:
    rates = task["samples_per_second"]
    speeds = [f"{statistics.median(rates[system]):,.0f}" if system in rates else "" for system in systems]
    return [task["title"], str(task["batch"]), *speeds, *(cell for name in ours for cell in ratio_cells(task, name))]


def ratio_cells(task: dict[str, Any], ours: str) -> list[str]:
    """Over the fastest peer, over PyTorch, and the share of sgemm."""
    ratios, share, fastest = task["ratios"].get(ours, {}), task["sgemm_share"].get(ours), task.get("fastest_peer")
    over_fastest = f"{spread(ratios[fastest])} {fastest}" if fastest in ratios else ""
    over_torch = spread(ratios["torch"]) if "torch" in ratios else ""
    return [over_fastest, over_torch, f"{statistics.median(share):.0%}" if share else ""]


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def limits_line(tasks: dict[str, Any]) -> str:
    """The machine's own speed in the rounds where it was measured, and how much of it nnlite's product reaches."""
    rates: dict[str, Any] = next((t["samples_per_second"] for t in tasks.values() if "sgemm" in t["samples_per_second"]), {})
    speed = {name: f"{statistics.median(rates[name]) / 1e9:.0f}" for name in LIMITS if name in rates}
    lines = []
    if {"sgemm", "sgemm-1"} <= speed.keys():
        lines.append(
            "sgemm: a float32 product of 1024 x 1024 matrices in NumPy in the same rounds, "
            f"{speed['sgemm']} GFLOP/s on all threads, {speed['sgemm-1']} on one. "
            "The share counts a training step as direct convolution."
        )
    if {"peak-1", "product-1"} <= speed.keys():
        shares = spread(divide(rates["product-1"], rates["peak-1"]))
        lines.append(
            f"One core does {speed['peak-1']} GFLOP/s in a loop of fused multiply-adds in C, "
            f"and {speed['product-1']} in nnlite's product of 512 x 512 matrices: {shares} of its peak."
        )
    return "\n".join(lines)


def cost_table(costs: dict[str, Any]) -> str:
    """Memory, import time and size, one row a system."""
    memory, imports, sizes = costs.get("memory", {}), costs.get("import", {}), costs.get("size", {})
    rows = []
    for system in dict.fromkeys([*memory, *imports, *sizes]):
        alone, needed = (f"{size / 1e6:,.1f}" for size in sizes[system]) if system in sizes else ("", "")
        megabytes = f"{memory[system] / 1e6:,.0f}" if system in memory else ""
        milliseconds = f"{imports[system] * 1e3:,.0f}" if system in imports else ""
        rows.append([system, megabytes, milliseconds, alone, needed])
    header = ["system", "peak memory, MB", "import, ms", "package, MB", "with what it needs beyond NumPy, MB"]
    explained = (
        "Peak memory: of training the tutorial CNN at batch 512, without imports and inputs; Keras and JAX copy their inputs, "
        "which counts.\nImport: the median, less that of bare Python. Sizes: installed, without compiled Python files.\n\n"
    )
    return explained + table(header, rows, left=1) if rows else ""


def notes(report: dict[str, Any]) -> str:
    """What was left out, what failed, which variant was faster, which systems did not rest, and how quiet the machine was."""
    lines = [f"Not installed: {', '.join(report['left_out'])}."] if report["left_out"] else []
    for key, task in report["tasks"].items():
        lines += [f"{key}: {system} failed: {error}" for system, error in task["failed"].items()]
        busy = {name: share for name, share in task["idle_cpu"].items() if share > IDLE_LIMIT}
        lines += [f"{key}: {system} used {share:.0%} of a core between its turns." for system, share in busy.items()]
        disturbed = sum(cores > OTHERS_LIMIT for rounds in task["others_cpu"].values() for cores in rounds)
        if disturbed:
            lines.append(f"{key}: other processes used more than {OTHERS_LIMIT:.0%} of a core in {disturbed} blocks.")
    chosen = {key: task["variants"]["keras"] for key, task in report["tasks"].items() if "keras" in task["variants"]}
    if chosen:
        lines.append(
            "Keras, the faster of its ways: " + ", ".join(f"{variant} ({key})" for key, variant in chosen.items()) + "."
        )
    return "\n".join(f"- {line}" for line in lines)


def table(header: list[str], rows: list[list[str]], left: int) -> str:
    """A Markdown table; the first `left` columns are aligned left, the others right."""
    rule = [":--" if i < left else "--:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])
