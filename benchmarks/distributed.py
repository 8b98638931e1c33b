"""Training in two processes beside two threads, the time of a sum by size, and what a model of both predicts for clusters.

python benchmarks/distributed.py --out benchmarks/results/distributed     # starts mpiexec itself; 7 minutes on 2 idle cores
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MPIEXEC = Path(sys.executable).parent / "mpiexec"
SIZES = [2**k for k in range(0, 23, 2)]  # values of a sum, float32; the last has the bytes of the longest gradient below
RANKS = [8, 16, 32, 64, 128, 256, 512, 1024]
MODELS = (("tutorial_cnn", 128), ("vgg_small", 128), ("mlp", 128), ("mlp", 512))  # samples for each process


class Network(NamedTuple):
    """latency: of a message, in seconds   bandwidth: of a link in one direction, in bytes a second"""

    latency: float
    bandwidth: float


# Of their data sheets, not measured.
NETWORKS = {
    "10 Gbit/s Ethernet": Network(30e-6, 1.25e9),
    "100 Gbit/s Ethernet (RoCE)": Network(4e-6, 12.5e9),
    "200 Gbit/s InfiniBand (HDR)": Network(1.5e-6, 25e9),
}


# ---- the model


def sum_seconds(network: Network, ranks: int, size: int) -> float:
    """Of a sum of `size` bytes in all ranks: halves are exchanged, then gathered again, with the nearest power of two.

    2 log2(p) latency + 2 (p - 1) / p bytes / bandwidth: Rabenseifner 2004; Thakur, Rabenseifner and Gropp 2005, section 4.
    """
    return 2 * np.log2(ranks) * network.latency + 2 * (ranks - 1) / ranks * size / network.bandwidth


def fitted(sizes: list[int], seconds: list[float]) -> dict[str, Any]:
    """The two protocols, of short sums and of long ones, that fit these times of sums in two ranks best.

    longest: bytes of the longest short sum   short, long: what a Network has   error: the largest |model / measured - 1|
    Where one ends and the other begins is what makes the largest error smallest.
    """

    def split(k: int) -> dict[str, Any]:
        short, long = line(sizes[:k], seconds[:k]), line(sizes[k:], seconds[k:])
        found = {"longest": 4 * sizes[k - 1], "short": short._asdict(), "long": long._asdict()}
        return found | {"error": max(abs(modelled(found, 4 * n) / s - 1) for n, s in zip(sizes, seconds, strict=True))}

    return min(map(split, range(2, len(sizes) - 1)), key=lambda found: found["error"])


def modelled(fit: dict[str, Any], size: int) -> float:
    """Seconds of a sum of `size` bytes in two ranks, by what `fitted` found."""
    return sum_seconds(Network(**fit["short" if size <= fit["longest"] else "long"]), 2, size)


def line(sizes: list[int], seconds: list[float]) -> Network:
    """The latency and bandwidth of two ranks that fit these times best, by relative error."""
    bytes_, measured = np.array(sizes) * 4.0, np.array(seconds)
    columns = np.stack([2 * np.ones(len(sizes)), bytes_], axis=1) / measured[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(columns, np.ones(len(sizes)), rcond=None)
    return Network(max(float(latency), 1e-9), 1 / max(float(per_byte), 1e-15))


def efficiency(network: Network, ranks: int, size: int, step: float) -> float:
    """The share of a step, of that many seconds for each rank alone, that is not spent on the sum and on exchanging losses."""
    return step / (step + sum_seconds(network, ranks, size) + np.log2(ranks) * network.latency)


# ---- what runs in the processes


def model_of(name: str) -> Any:
    import nnlite as nn

    return nn.zoo.mlp((3072, 1024, 1024, 10)) if name == "mlp" else getattr(nn.zoo, name)()


def steps(arguments: argparse.Namespace) -> None:
    """Seconds of a step of the whole batch, in this process or in all."""
    import nnlite as nn

    communicator = None
    if arguments.ranks > 1:
        communicator = nn.distributed.mpi(deadline=60.0)
    model, batch = model_of(arguments.model), 2 * arguments.batch
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(batch, *model.in_shape)).astype("float32"), rng.integers(0, 10, batch)
    optimizer, loss = nn.Adam(1e-4), nn.CrossEntropy()
    if communicator is not None:
        from nnlite.engine.exchange import Together

        model.engine.exchange = Together(communicator)
    times = []
    for _ in range(arguments.steps):
        begun = time.perf_counter()
        model.loss_and_grad(x, t, loss)
        optimizer.step(model)
        times.append(time.perf_counter() - begun)
    if communicator is None or communicator.rank == 0:
        found = {"seconds": statistics.median(times[len(times) // 4 :]), "bytes": model.grads.nbytes, "kernels": model.kernels}
        print("RESULT", json.dumps(found))


def messages(arguments: argparse.Namespace) -> None:
    """Seconds of a sum, by size: the median of many, of the slower process."""
    import nnlite as nn

    communicator, found = nn.distributed.mpi(deadline=60.0), []
    for size in SIZES:
        flat = np.zeros(size, np.float32)
        times = []
        for _ in range(max(5, min(200, 2**24 // size))):
            communicator.barrier()
            begun = time.perf_counter()
            communicator.sum_(flat)
            times.append(time.perf_counter() - begun)
        found.append(max(communicator.gather(statistics.median(times))))
    if communicator.rank == 0:
        print("RESULT", json.dumps(found))


# ---- what starts them


def run(ranks: int, threads: int, *arguments: Any) -> Any:
    launcher = [MPIEXEC, "-n", ranks] if ranks > 1 or arguments[0] == "messages" else []
    command = [*launcher, sys.executable, __file__, "--ranks", ranks, "--part", *arguments]
    unset = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["NNLITE_NUM_THREADS"] = str(threads)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{command} failed:\n{done.stdout}{done.stderr}")
    return json.loads(lines[0].removeprefix("RESULT "))


def compare(name: str, batch: int, rounds: int, steps: int) -> dict[str, Any]:
    """Two processes of one thread and one of two threads, in turn."""
    case = "steps", "--model", name, "--batch", batch, "--steps", steps
    threads, processes = [], []
    for _ in range(rounds):
        threads.append(run(1, 2, *case))
        processes.append(run(2, 1, *case))
    ratios = [one["seconds"] / two["seconds"] for one, two in zip(threads, processes, strict=True)]
    return {
        "model": name,
        "batch": 2 * batch,
        "bytes": threads[0]["bytes"],
        "kernels": threads[0]["kernels"],
        "threads_ms": 1e3 * statistics.median(each["seconds"] for each in threads),
        "processes_ms": 1e3 * statistics.median(each["seconds"] for each in processes),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def report(results: dict[str, Any]) -> str:
    lines = ["# Training in several processes", ""]
    lines += [f"{results['machine']}, Python {platform.python_version()}, {results['rounds']} rounds in turn, medians.", ""]
    lines += ["## Measured: 2 processes of 1 thread beside 1 process of 2 threads, one machine", ""]
    lines += ["| model | batch | gradient, MB | 2 threads, ms | 2 processes, ms | threads / processes | each round |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for each in results["steps"]:
        times = f"{each['threads_ms']:.1f} | {each['processes_ms']:.1f} | **{each['ratio']:.2f}**"
        lines += [f"| {each['model']} | {each['batch']} | {each['bytes'] / 1e6:.2f} | {times} | {each['ratios']} |"]
    fit = results["fit"]
    lines += ["", "## Measured: a sum of float32 values in 2 processes, one machine", ""]
    lines += ["| values | us | model, us |", "|---|---|---|"]
    for size, seconds in zip(SIZES, results["messages"], strict=True):
        lines += [f"| {size:,} | {1e6 * seconds:.1f} | {1e6 * modelled(fit, 4 * size):.1f} |"]
    short, long = (
        f"latency {1e6 * fit[kind]['latency']:.2f} us, bandwidth {fit[kind]['bandwidth'] / 1e9:.2f} GB/s"
        for kind in ("short", "long")
    )
    lines += ["", f"Fitted: {short} to {fit['longest']:,} bytes; {long} above. Largest error: {fit['error']:.0%}.", ""]
    lines += ["## PREDICTED, not measured: the share of a step that is not spent on exchanging", ""]
    lines += [
        "A step exchanges the gradient's n bytes in 2 log2(p) latency + 2 (p - 1) / p n / bandwidth, and the losses in log2(p)",
        "latency; nothing overlaps. A rank is a core like those above, with as many samples whatever the number of ranks, and",
        "a link of its own; latency and bandwidth are those of data sheets. Nothing of this was run.",
        "",
    ]
    lines += ["| model | network | " + " | ".join(map(str, RANKS)) + " |", "|---|---|" + "---|" * len(RANKS)]
    for each in results["steps"]:
        for name, network in NETWORKS.items():
            shares = (efficiency(network, ranks, each["bytes"], each["processes_ms"] / 1e3) for ranks in RANKS)
            lines += [
                f"| {each['model']}, {each['batch'] // 2} each | {name} | "
                + " | ".join(f"{share:.1%}" for share in shares)
                + " |"
            ]
    return "\n".join([*lines, ""])


def plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.loglog(SIZES, [1e6 * s for s in results["messages"]], "o", label="measured, 2 processes")
    left.loglog(SIZES, [1e6 * modelled(results["fit"], 4 * size) for size in SIZES], label="latency and bandwidth, fitted")
    left.set(xlabel="float32 values", ylabel="microseconds of a sum", title="one machine")
    for each in results["steps"]:
        for i, (name, network) in enumerate(NETWORKS.items()):
            shares = [100 * efficiency(network, ranks, each["bytes"], each["processes_ms"] / 1e3) for ranks in RANKS]
            style = "-" if each is results["steps"][0] else "--"
            right.semilogx(RANKS, shares, style, base=2, color=f"C{i}", label=f"{each['model']} {each['batch'] // 2}, {name}")
    right.set(xlabel="processes", ylabel="% of a step not spent on exchanging", title="PREDICTED, not measured", ylim=(0, 101))
    for axes in (left, right):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the table, the plot and the numbers go: OUT.md, OUT.png, OUT.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--part", choices=["steps", "messages"], help="what a process that this script starts does")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--model", default=MODELS[0][0])
    parser.add_argument("--batch", type=int, default=MODELS[0][1], help="samples for each process")
    arguments = parser.parse_args()
    if arguments.part:
        return {"steps": steps, "messages": messages}[arguments.part](arguments)
    sums = run(2, 1, "messages")
    results = {
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
        "rounds": arguments.rounds,
        "steps": [compare(*case, arguments.rounds, arguments.steps) for case in MODELS],
        "messages": sums,
        "fit": fitted(SIZES, sums),
    }
    print(report(results))
    if arguments.out:
        arguments.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(report(results))
        plot(results, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
