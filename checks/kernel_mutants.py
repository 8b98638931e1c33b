"""`make kernels`: plants bugs in the kernels, one at a time, and shows that `test_kernels.py` catches each.

usage: python checks/kernel_mutants.py [--out FILE]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests" / "cuda"
VARIABLE = "NNLITE_TEST_KERNELS"  # where the planted kernels are; read below, as a plugin of pytest

# (what, file, old text, new text, which of its places, from 0)
# ruff: noqa: E501
MUTANTS = [
    ("padding above is left out", "common.h", " - top;", ";", 0),
    ("padding at the left is left out", "common.h", " - left;", ";", 0),
    ("dilation taken for stride", "common.h", "tap_y * dilation_y - top", "tap_y * stride_y() - top", 0),
    ("first column taken for padding", "common.h", "return x >= 0 &&", "return x > 0 &&", 0),
    ("one column too many", "common.h", "x < width;", "x <= width;", 0),
    ("one row too many", "common.h", "y < height;", "y <= height;", 0),
    ("an output too many", "common.h", "output < outputs ?", "output <= outputs ?", 0),
    ("strides that do not divide", "common.h", "output * stride == reach && ", "", 0),
    ("the other stride", "common.h", "out_x * stride_x() +", "out_x * stride_y() +", 0),
    ("a window too few", "common.h", "(taps - 1) * dilation;", "(taps - 2) * dilation;", 0),
    ("windows before the first output", "common.h", "before > 0 ? (before + stride - 1) / stride : 0", "(before + stride - 1) / stride", 0),
    ("windows behind the last output", "common.h", "reach / stride < outputs ? reach / stride : outputs - 1", "reach / stride", 0),
    ("windows whose taps miss the pixel", "common.h", "distance % dilation ? -1 : ", "", 0),
    ("steps over a row", "common.h", "return (long long)gridDim.x * blockDim.y;", "return (long long)gridDim.x * blockDim.y + 1;", 0),
    ("steps over a pixel", "common.h", "return gridDim.x * blockDim.y;", "return gridDim.x * blockDim.y + 1;", 0),
    ("steps over a value", "common.h", "return (long long)gridDim.x * blockDim.x;", "return (long long)gridDim.x * blockDim.x + 1;", 0),
    ("rows of a block forgotten", "common.h", "blockDim.y + threadIdx.y", "blockDim.y", 0),
    ("pixels of a block forgotten", "common.h", "blockDim.y + threadIdx.y", "blockDim.y", 1),
    ("wide where channels do not allow it", "common.h", "channels % WIDE == 0 && ", "", 0),
    ("the specialised window is another", "common.h", "STRIDE_X ? STRIDE_X", "STRIDE_X ? STRIDE_X + 1", 0),
    ("no padding in patches", "conv.cu", "inside ? image", "true ? image", 0),
    ("wrong image", "conv.cu", "a + (long long)n * w.pixels() * channels", "a", 0),
    ("wrong place of a patch", "conv.cu", "n * w.positions() + m) * row", "m) * row", 0),
    ("the end of a row is not zero", "conv.cu", "                patch[i] = Values<P>{};\n", "                ;\n", 0),
    ("a patch too many", "conv.cu", "m < w.positions()", "m <= w.positions()", 0),
    ("last tap of the adjoint", "conv.cu", "tap_y < w.kernel_height()", "tap_y < w.kernel_height() - 1", 1),
    ("adjoint reads the wrong image", "conv.cu", "columns + (long long)n * w.positions() * row", "columns", 0),
    ("adjoint of what is not met", "conv.cu", "out_y < 0 || ", "", 0),
    ("half a wide value", "conv.cu", "k < P", "k < (P + 1) / 2", 0),
    ("bias left out", "depthwise.cu", "b ? b[c] : real(0)", "real(0)", 0),
    ("a barrier left out", "depthwise.cu", "        __syncthreads();\n", "", 0),
    ("the barrier before the next channels", "depthwise.cu", "        __syncthreads();\n", "", 1),
    ("a row of threads not summed", "depthwise.cu", "i < 8; i++", "i < 7; i++", 0),
    ("channels of the last block", "depthwise.cu", "threadIdx.y == 0 && c < channels", "threadIdx.y == 0", 0),
    ("taps mixed", "depthwise.cu", "W[c * w.taps() + tap] * image[(out_y", "W[tap] * image[(out_y", 0),
    ("parts of an image forgotten", "depthwise.cu", "blockIdx.z * 8 + threadIdx.y", "threadIdx.y", 0),
    ("ties go to the last", "pool.cu", "if (value > best || first < 0", "if (value >= best || first < 0", 0),
    ("padding wins over minus infinity", "pool.cu", " || first < 0", "", 0),
    ("NaN is lost", "pool.cu", " || value != value", "", 0),
    ("a NaN does not take the delta", "pool.cu", " || (value != value && best == best)", "", 0),
    ("every tap wins", "pool.cu", " && winner[i] == tap_y * w.kernel_width() + tap_x", "", 0),
    ("rows and columns exchanged", "pool.cu", "tap_y * w.kernel_width() + tap_x)", "tap_x * w.kernel_width() + tap_y)", 0),
    ("mean without the padding", "pool.cu", "w.taps());", "w.taps() - 1);", 0),
    ("the count of another output", "pool.cu", "counts[m]", "counts[0]", 0),
    ("deltas not shared out", "pool.cu", "? sum : sum / w.taps()", "? sum : sum", 0),
    ("deltas over the count of another output", "pool.cu", "counts[output]", "counts[0]", 0),
    ("a barrier left out of the sums", "norm.cu", "    __syncthreads();\n", "", 0),
    ("a barrier left out of the end", "norm.cu", "    __syncthreads();\n", "", 1),
    ("a row counted twice", "norm.cu", "int i = 1; i < 8", "int i = 0; i < 8", 0),
    ("a part counted twice", "norm.cu", "int i = 1; i < 16", "int i = 0; i < 16", 0),
    ("columns beyond the last", "norm.cu", "threadIdx.y == 0 && c < channels", "threadIdx.y == 0", 0),
    ("columns beyond the last finished", "norm.cu", "threadIdx.y == 0 && c < channels", "threadIdx.y == 0", 1),
    ("about zero instead of the first row", "norm.cu", "a[m * channels + c] - a[c]", "a[m * channels + c]", 0),
    ("parts left out", "norm.cu", "i < parts && c < channels; i += 16", "i < parts && c < channels; i += 17", 0),
    ("mean of the squares", "norm.cu", "t.second - t.first * t.first / rows", "t.second", 0),
    ("the variance is biased", "norm.cu", "rows > 1 ? rows - 1 : 1", "rows", 0),
    ("eps left out", "norm.cu", " / rows + eps", " / rows", 0),
    ("gradients of gamma and beta exchanged", "norm.cu", "dbeta[c] = t.first", "dbeta[c] = total_x", 0),
    ("beta left out", "norm.cu", "beta ? beta[i] : real(0)", "real(0)", 0),
    ("relu always", "norm.cu", "relu && result < 0", "result < 0", 0),
    ("relu never", "pointwise.cu", "relu && result < 0", "false", 0),
    ("delta of zero", "pointwise.cu", "y[i] > 0 ? delta[i]", "y[i] >= 0 ? delta[i]", 0),
    ("mean delta left out", "norm.cu", " - shift.v[k] -", " -", 0),
    ("half of a lerp", "pointwise.cu", "weight * (b[i] - a[i])", "weight * b[i]", 0),
    ("zero times minus infinity", "pointwise.cu", "t == 0 ? real(0) : ", "", 0),
    ("nine rounds", "pointwise.cu", "round < 10", "round < 9", 0),
    ("keys not raised", "pointwise.cu", "        key1 += 0xBB67AE8584CAA73Bull;\n", "", 0),
    ("half a word twice", "pointwise.cu", "(j % 2 * 32)", "0", 0),
    ("a mask's half word twice", "pointwise.cu", "(j % 2 * 32)", "0", 1),
    ("bits beyond the row", "pointwise.cu", " && j < words", "", 0),
    ("start forgotten", "pointwise.cu", "(word)start * blocks + i", "i", 0),
    ("slope without its inner part", "pointwise.cu", "(1 + 3 * cubic", "(1 + cubic", 0),
    ("infinity times zero", "pointwise.cu", "bend == 0 ? real(0) : ", "", 0),
    ("half a warp", "loss.cu", "int lane = 16", "int lane = 8", 0),
    ("half a warp of the sum", "loss.cu", "int lane = 16", "int lane = 8", 1),
    ("largest logit from zero", "loss.cu", "largest = -infinity()", "largest = 0", 0),
    ("classes beyond 32", "loss.cu", "c += 32", "c += 64", 1),
    ("rows beyond the last", "loss.cu", "if (row >= rows) // the whole warp\n        return;\n", "", 0),
    ("labels unchecked", "loss.cu", "label >= 0 && label < classes", "label >= 0", 0),
    ("the last bad loss", "loss.cu", " && !state[1])\n        state[1] = state[0];", ")\n        state[1] = state[0];", 0),
    ("a bad loss is counted", "loss.cu", "    if (bad && skip)\n        return;\n", "", 0),
    ("weight left out", "loss.cu", "*loss * weight", "*loss", 0),
    ("a bad gradient is not noted", "loss.cu", "!isfinite(*number) && !state[1]", "false", 0),
    ("half of the squares", "optim.cu", "int half = 128", "int half = 64", 0),
    ("a barrier left out of the norm", "optim.cu", "        __syncthreads();\n", "", 0),
    ("parts of the norm left out", "optim.cu", "i < parts; i += 256", "i < parts - 1; i += 256", 0),
    ("scaled up, too", "optim.cu", "    if (!(factor < 1))\n        return;\n", "", 0),
    ("what a bad step wrote stays", "optim.cu", "after[i] = before[i]", "after[i] = after[i]", 0),
    ("what a good step wrote is taken back", "optim.cu", "    if (!state[1])\n        return;\n", "", 0),
    ("second moment from the first", "optim.cu", "b2 * v[i] + g[i] * g[i]", "b2 * v[i] + g[i]", 0),
    ("nesterov without the gradient", "optim.cu", "step = momentum * step + g[i]", "step = momentum * step", 0),
    ("decay left out", "optim.cu", "decay * p[i]", "p[i]", 0),
]  # fmt: skip


def pytest_configure():
    """As a plugin: load the kernels from the folder of the planted ones."""
    from nnlite.backend.cuda import kernels

    kernels.FOLDER = Path(os.environ[VARIABLE])


def plant(folder, file, old, new, place):
    path = Path(folder) / file
    parts = path.read_text().split(old)
    if len(parts) < place + 2:
        raise SystemExit(f"{file} has no {old!r} number {place}")
    path.write_text(old.join(parts[: place + 1]) + new + old.join(parts[place + 1 :]))


def survives(what, file, old, new, place):
    from nnlite.backend.cuda.kernels import FOLDER

    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(FOLDER, Path(temporary) / "cuda")
        if old:
            plant(folder, file, old, new, place)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "kernel_mutants",
            "-p",
            "no:cacheprovider",
            "test_kernels.py",
        ]
        environment = os.environ | {VARIABLE: str(folder), "PYTHONPATH": str(HERE)}
        return subprocess.run(command, cwd=TESTS, env=environment, capture_output=True).returncode == 0


def report(title, mutants, survives, out):
    """Plant each bug, print whether the tests catch it, and write the list. Exits with 1 if one survives."""
    if not survives("nothing", "", "", "", 0):
        raise SystemExit("the tests fail without any planted bug")
    lines = [f"# {title}", "", "| planted | file | caught |", "| :-- | :-- | :-- |"]
    caught = 0
    for mutant in mutants:
        lives = survives(*mutant)
        caught += not lives
        lines.append(f"| {mutant[0]} | {mutant[1]} | {'no' if lives else 'yes'} |")
        print(lines[-1], flush=True)
    lines += ["", f"{caught} of {len(mutants)} caught by `make kernels`."]
    print(lines[-1])
    if out:
        out.write_text("\n".join(lines) + "\n")
    if caught < len(mutants):
        raise SystemExit(1)


def parse(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the list to this file")
    return parser.parse_args()


if __name__ == "__main__":
    report("Bugs planted in the kernels", MUTANTS, survives, parse(__doc__).out)
