"""`make fuzz`: damaged files of every kind that nnlite reads, with valid checksums: only its own errors, little memory.

usage: python checks/fuzz.py [--files 20000] [--out FILE]
"""

import argparse
import io
import json
import random
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import ModelProto

import nnlite as nn
from nnlite.data import cifar, files, idx
from nnlite.interop import onnx
from nnlite.interop.onnx.reader import READERS as READERS_OF_NODES
from nnlite.training import checkpoint
from nnlite.training.counts import Counts

MEMORY = 20  # a reader may hold this many times the file's size,
SPARE = 4 << 20  # plus this many bytes


def mutate(data, changes):
    """Bytes overwritten, put in, left out, doubled, cut off."""
    data = bytearray(data)
    for kind, place, length, value in changes:
        at = place % (len(data) + 1)
        piece = bytes([value]) * length
        if kind == "over":
            data[at : at + length] = piece[: len(data) - at]
        elif kind == "in":
            data[at:at] = piece
        elif kind == "out":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "cut":
            del data[at:]
    return bytes(data)


kinds = st.sampled_from(["over", "over", "in", "out", "double", "cut"])
values = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, ord("9"), ord('"'), ord("-"), ord("["), ord("{")]) | st.integers(0, 255)
changes = st.lists(st.tuples(kinds, st.integers(0, 1 << 20), st.integers(1, 9), values), min_size=1, max_size=4)


def exchange(graph, rng):
    """One thing in an ONNX graph by another."""
    node, tensor, numbers = (
        rng.choice(graph.node),
        rng.choice(graph.initializer),
        (-(1 << 31), -2, -1, 0, 1, 2, 3, 7, 1 << 16, 1 << 40),
    )
    names = [name for each in graph.node for name in (*each.input, *each.output)] + ["", "nobody"]
    kind = rng.choice(["operator", "input", "inputs", "output", "attribute", "name", "dims", "shape", "type", "order"])
    if kind == "operator":
        node.op_type = rng.choice([*sorted(READERS_OF_NODES), "LRN"])
    elif kind == "input" and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif kind == "inputs":
        node.input.append(rng.choice(names)) if rng.random() < 0.5 else node.ClearField("input")
    elif kind == "output":
        node.output[0] = rng.choice(names)
    elif kind == "attribute" and node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.i = rng.choice(numbers)
        attribute.ints[:] = [rng.choice(numbers) for _ in range(rng.randrange(6))]
        attribute.type = rng.choice([attribute.type, 1, 2, 3, 7])
    elif kind == "name" and node.attribute:
        rng.choice(node.attribute).name = rng.choice(
            ["axis", "axes", "pads", "perm", "group", "alpha", "epsilon", "kernel_shape"]
        )
    elif kind == "dims" and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(numbers)
    elif kind == "shape":
        rng.choice(graph.input[0].type.tensor_type.shape.dim).dim_value = rng.choice(numbers)
    elif kind == "type":
        tensor.data_type = rng.randrange(25)
    elif kind == "order":
        graph.node.append(node)


# ---- the readers: each takes a mutation, and says whether the bytes reached nnlite's own parser


class Files:
    """Good files of every kind, in a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        rng = np.random.default_rng(0)
        records = rng.integers(0, 10, (3, 3073)).astype("uint8")
        self.cifar = records.tobytes()
        self.idx = b"\0\0\x08\x03" + np.array([2, 28, 28], ">u4").tobytes() + bytes(2 * 28 * 28)
        model = nn.Sequential(nn.Conv2D(2, 3), nn.BatchNorm(), nn.Flatten(), nn.Dense(3), input_shape=(6, 6, 2))
        model.save(self.folder / "model")
        self.model = (self.folder / "model").read_bytes()
        branches = nn.Concat([], nn.MaxPool2D(3, 1, padding=1)), nn.Residual(nn.Conv2D(4, 1), nn.GELU()), nn.Upsample2D(2)
        head = nn.GroupNorm(2), nn.AvgPool2D(2), nn.Flatten(), nn.LayerNorm(), nn.Dense(3), nn.Softmax()
        net = nn.Sequential(nn.Conv2D(2, 3), nn.BatchNorm(), *branches, *head, input_shape=(6, 6, 2))
        self.onnx = onnx.to_onnx(net).SerializeToString()
        x, t = rng.standard_normal((20, 6, 6, 2)), rng.integers(0, 3, 20)
        trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam(), [nn.Accuracy()], [nn.WeightAverage()])
        trainer.fit((x, t), batch_size=8, progress=False, checkpoint=self.folder / "run", every=2)
        (self.folder / "run" / "step-000000003.safetensors").unlink()  # the previous one is from the middle of the epoch
        self.arrays, self.description = checkpoint.read(checkpoint.Folder(self.folder / "run", 1).files()[-1])
        self.trainer = trainer

    def write(self, data):
        path = self.folder / "mutated"
        path.write_bytes(data)
        return path

    def cifar_binary(self, mutation):
        data = mutate(self.cifar, mutation)
        return len(data), lambda: cifar.parse_cifar_binary(data)

    def idx_file(self, mutation):
        data = mutate(self.idx, mutation)
        return len(data), lambda: idx.parse_idx(data)

    def safetensors_file(self, mutation):
        path = self.write(mutate(self.model, mutation))
        return path.stat().st_size, lambda: nn.load(path)

    def model_description(self, mutation):
        """The container is intact, its contents by nnlite are not."""
        from safetensors.numpy import load, save

        with io.BytesIO(self.model) as file:
            size = int.from_bytes(file.read(8), "little")
            text = json.loads(file.read(size))["__metadata__"]["nnlite"]
        damaged = mutate(text.encode(), mutation).decode("utf-8", "replace")
        path = self.write(save(load(self.model), {"nnlite": damaged}))
        return path.stat().st_size, lambda: nn.load(path)

    def onnx_file(self, mutation):
        path = self.write(mutate(self.onnx, mutation))
        return path.stat().st_size, lambda: onnx.load(path)

    def onnx_graph(self, mutation):
        """The protobuf is intact, the graph in it is not: other operators, inputs, numbers, shapes."""
        rng, model = random.Random(str(mutation)), ModelProto.FromString(self.onnx)
        for _ in range(rng.randrange(1, 5)):
            exchange(model.graph, rng)
        path = self.write(model.SerializeToString())
        return path.stat().st_size, lambda: onnx.load(path)

    def checkpoint_behind_its_digest(self, mutation):
        """The digest is recomputed over the damaged text, as an attacker would."""
        from safetensors.numpy import save

        text = mutate(json.dumps(self.description).encode(), mutation).decode("utf-8", "replace")
        metadata = {"nnlite": json.dumps({"digest": checkpoint._digest(self.arrays, text), "state": text})}
        path = self.write(save(self.arrays, metadata))
        return path.stat().st_size, lambda: self.take_up(*checkpoint.read(path))

    def take_up(self, arrays, description):
        progress = checkpoint.restore(self.trainer, None, arrays, description)
        checkpoint.restore_callbacks(self.trainer, arrays, description)
        if progress["counts"] is not None:
            Counts(self.trainer).load_state(progress["counts"])

    def archive(self, mutation):
        """Members with arbitrary names, links, folders: nothing is written outside the target folder."""
        rng = random.Random(str(mutation))
        names = ["../evil", "/tmp/nnlite-evil", "cifar-10-batches-py/../../evil", "cifar-10-batches-py/data_batch_1", "a/b"]
        with io.BytesIO() as file:
            with tarfile.open(fileobj=file, mode="w:gz") as tar:
                for _ in range(rng.randrange(1, 5)):
                    info = tarfile.TarInfo(rng.choice(names))
                    info.type = rng.choice(
                        [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
                    )
                    info.linkname, info.size = rng.choice(["/etc/passwd", "../.."]), 3 if info.type == tarfile.REGTYPE else 0
                    tar.addfile(info, io.BytesIO(b"abc"))
            data = file.getvalue()
        path = self.write(mutate(data, mutation) if rng.random() < 0.5 else data)
        target = self.folder / "target" / "inside"
        target.parent.mkdir(exist_ok=True)
        before = set(self.folder.rglob("*"))

        def extract():
            try:
                files.extract(path, target, ["data_batch_1"])
            finally:
                outside = {p for p in set(self.folder.rglob("*")) - before if target not in (p, *p.parents)}
                assert not outside, f"landed outside: {outside}"
                assert not Path("/tmp/nnlite-evil").exists()

        return len(data), extract


READERS = (
    "cifar_binary",
    "idx_file",
    "safetensors_file",
    "model_description",
    "checkpoint_behind_its_digest",
    "archive",
    "onnx_file",
    "onnx_graph",
)


def fuzz_reader(files, name, examples):
    """How many files were tried, read without complaint, and refused by nnlite's own errors."""
    counts = {"tried": 0, "read": 0, "refused": 0, "reached the parser": 0, "most memory, times the file": 0.0}

    @settings(
        max_examples=examples, database=None, deadline=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(changes)
    def once(mutation):
        size, read = getattr(files, name)(mutation)
        counts["tried"] += 1
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            read()
            counts["read"] += 1
            reached = True
        except nn.NNLiteError as error:
            counts["refused"] += 1
            reached = not any(text in str(error) for text in ("SafetensorError", "is no ONNX file"))
        counts["reached the parser"] += reached
        used = tracemalloc.get_traced_memory()[1] - before
        assert used <= MEMORY * size + SPARE, f"{used:,} bytes for a file of {size:,}"
        counts["most memory, times the file"] = round(max(counts["most memory, times the file"], used / max(1, size)), 1)

    tracemalloc.start()
    try:
        once()
    finally:
        tracemalloc.stop()
    return counts


def run(total):
    """All readers; hypothesis skips repeated examples, so each continues until its share is reached."""
    with tempfile.TemporaryDirectory() as folder:
        files = Files(folder)
        return {name: fuzz_reader(files, name, -(-total // len(READERS))) for name in READERS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = run(args.files)
    columns = list(next(iter(results.values())))
    lines = ["# Damaged files", "", f"| reader | {' | '.join(columns)} |", f"| :-- |{' --: |' * len(columns)}"]
    lines += [
        f"| {name.replace('_', ' ')} | {' | '.join(f'{v:,}' for v in counts.values())} |" for name, counts in results.items()
    ]
    tried, reached = (sum(counts[key] for counts in results.values()) for key in ("tried", "reached the parser"))
    lines += ["", f"{tried:,} files, {reached:,} of them reached a parser; none raised anything but nnlite's own errors.", ""]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines))
    if tried < args.files:
        raise SystemExit(f"only {tried:,} files were tried")


if __name__ == "__main__":
    main()
