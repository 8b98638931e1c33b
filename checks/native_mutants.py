"""The second half of `make kernels`: plants bugs in the C kernels, one at a time, and shows that `tests/native` catches each.

usage: python checks/native_mutants.py [--out FILE]

A planted over-read that stays inside the memory of its arrays changes no result; `make sanitize` sees those.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from kernel_mutants import parse, plant, report

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests" / "native"
VARIABLE = "NNLITE_TEST_NATIVE"  # where the planted kernels are; read below, as a plugin of pytest
SECONDS = 300  # a planted loop may never end

TESTED_BY = {
    "augment.c": "augment", "depthwise.c": "conv", "direct.c": "conv", "fold.c": "conv", "points.h": "conv",
    "product.c": "conv team",
    "product.h": "conv", "winograd.h": "conv", "winograd23.c": "conv", "winograd33.c": "conv", "winograd43.c": "conv",
    "winograd53.c": "conv", "winograd63.c": "conv", "winograd73.c": "conv",
    "winograd34.c": "conv",
    "functions.h": "functions", "loss.c": "pointwise", "norm.c": "norm", "norm.h": "norm", "optim.c": "optim team",
    "team.h": "team",
    "activation.c": "pointwise", "pointwise.c": "functions pointwise", "pool.c": "pool", "samplenorm.c": "norm", "sums.c": "sums",
    "sums.h": "norm sums",
}  # fmt: skip

# (what, file, old text, new text, which of its places, from 0)
# ruff: noqa: E501
MUTANTS = [
    ("tail: the last rows of a tile", "product.h", "for (; i < m; i++)", "for (; i < m - 1; i++)", 0),
    ("stride: rows of A", "product.h", "i * f->row_a", "i * f->step_a", 0),
    ("order: a segment forgotten", "product.h", "s < segments", "s < segments - 1", 1),
    ("sum: the earlier blocks forgotten", "product.h", "add ? load(c) + sum[r][q] : sum[r][q]", "sum[r][q]", 0),
    ("stride: transposes rows for columns", "product.h", "x[i * row + j * column]", "x[i * column + j * row]", 0),
    ("tail: columns of a product", "product.c", "if (whole < n)", "if (whole + 1 < n)", 0),
    ("bias left out", "product.c", "if (f->bias)\n", "if (0)\n", 0),
    ("the bias of the first block", "product.c", "f.bias + at", "f.bias", 0),
    ("stride: blocks share scratch memory", "product.c", "i * blocks->room", "0", 0),
    ("the last block is nobody's", "team.h", "< team->count;)", "< team->count - 1;)", 0),
    ("parts of an update overlap", "optim.c", "(part) * PART", "(part) * (PART - 16)", 0),
    ("order: blocks of terms overlap", "product.c", "at_most(SUMMED, k - p)", "at_most(SUMMED + 1, k - p)", 0),
    ("bounds: the border above", "direct.c", "memset(to, 0, top * width * C * sizeof(REAL));", ";", 0),
    ("bounds: the border behind a row", "direct.c", "memset(row + (left + W) * C, 0, behind * sizeof(REAL));", ";", 0),
    ("stride: the place of a row", "direct.c", "at_out[i] + j", "at_out[0] + j", 0),
    ("tail: the last block of rows", "direct.c", "at_most(BLOCK, rows - i)", "at_most(BLOCK, rows - i - 1)", 0),
    ("order: pieces of a long segment", "direct.c", "f.B = B + p * width", "f.B = B", 0),
    ("sum: an image's chains forgotten", "direct.c", "n == images - 1 && y + lines >= height", "0", 0),
    ("taps not reversed", "direct.c", "t / kw * kw + kw - 1 - t % kw", "t", 0),
    ("taps of the depthwise mixed", "depthwise.c", "s->which[t] * s->C", "t * s->C", 0),
    ("sum: chains forgotten", "depthwise.c", "n == images - 1 && last == outputs", "0", 0),
    ("tail: taps beyond nine", "depthwise.c", "t0 += TAPS", "t0 += taps", 0),
    ("pixels outside are not zero", "fold.c", "memset(folded, 0, C * sizeof(REAL));", ";", 0),
    ("copies are not added", "fold.c", "load_up_to(pixel + c, C - c) + values", "values", 0),
    ("groups of columns mixed", "fold.c", "* columns.groups + j", "* columns.groups", 0),
    ("padding above", "winograd.h", "y - s->top, -s->left", "y, -s->left", 0),
    ("padding at the left", "winograd.h", "y - s->top, -s->left", "y - s->top, 0", 0),
    ("bounds: strips read behind the image", "winograd.h", "y + rows <= H && x >= 0 && x + columns <= W", "y + rows <= H + 1 && x >= 0 && x + columns <= W + 1", 0),
    ("tail: channels of a strip", "winograd.h", "pad_columns(from, C, to, pixels, C);", "pad_columns(from, C, to, pixels, C - 1);", 0),
    ("overlapping tiles are not added", "winograd.h", "to[c] += from[c];", "to[c] = from[c];", 0),
    ("ReLU left out", "winograd.h", "rectify ? relu(v) : v", "v", 0),
    ("the transform of the inputs", "points.h", "- PAIR[k] * PAIR[k] * c[i];", "- PAIR[k] * c[i];", 0),
    ("the adjoint of the inputs", "points.h", "add_times(c[i], high, y", "add_times(c[i], low, y", 0),
    ("the transform of the deltas", "points.h", "y[2 * k + 1] = add_times(-PAIR[k], odd, even)", "y[2 * k + 1] = add_times(PAIR[k], odd, even)", 0),
    ("the adjoint of the deltas", "points.h", "i % 2 ? odd : even", "even", 0),
    ("the point at 0", "points.h", "y[2 * N] = x[0];", "y[2 * N] = x[step];", 0),
    ("a factor of the filters", "points.h", "point % 2 ? -2 * PAIR[k] : 2 * PAIR[k]", "2 * PAIR[k]", 0),
    ("points of a larger error", "winograd43.c", "{5 / 8., 3 / 2.}", "{1, 2}", 0),
    ("points of a larger error, 7 x 7", "winograd73.c", "11 / 16., 9 / 8.", "1 / 2., 1", 0),
    ("exp without the second part of ln 2", "functions.h", "r = fused(n, splat(-LN2_PARTS[1]), r);", "", 0),
    ("log of subnormal numbers", "functions.h", "(is_tiny & MANTISSA)", "(is_tiny & 1)", 0),
    ("erf meets its other half elsewhere", "functions.h", "near = choose(a < 1, x, (vec){0});", "near = choose(a < (REAL)0.5, x, (vec){0});", 0),
    ("tail: lanes of a sum", "sums.h", "half > 0; half /= 2", "half > 1; half /= 2", 0),
    ("sum: the second half forgotten", "sums.h", "s->first[j] += rest.first[j], ", "", 0),
    ("order: the last row of an id first", "sums.c", "long row = m - 1; row >= 0; row--", "long row = 0; row < m; row++", 0),
    ("deviations about zero", "sums.h", "const vec d = v - mean[q];", "const vec d = v;", 0),
    ("sum: the ReLU's zeros left out", "sums.h", "choose(fused(d, scale[q], shift[q]) > 0, v, (vec){0})", "v", 0),
    ("the ReLU's zeros left out of a delta", "norm.c", "d = rectified ? choose", "d = 0 ? choose", 0),
    ("tail: channels that are normalised", "norm.h", "load_up_to(from + c, C - c), by, c, C - c", "load_up_to(from + c, C - c), by, c, C - c - 1", 0),
    ("stride: pixels that are normalised", "norm.h", "from += C, to += width", "from += width, to += width", 0),
    ("the center left out", "norm.c", "center ? x - load_up_to(center + j, left) : x", "x", 0),
    ("the offset left out", "norm.c", " + load_up_to(offset + j, left)", "", 0),
    ("a mean that is added to few columns", "norm.c", "j >= C ? shift[j - C]", "j >= C ? 0", 0),
    ("tail: columns behind the first part", "norm.c", "c < C; c += WIDE", "c < WIDE; c += WIDE", 0),
    ("tail: bytes of the last rows", "norm.c", "at_most(width, m * C - row)", "at_most(width, m * C - row - 1)", 0),
    ("tail: what is behind a row has a deviation", "samplenorm.c", "choose(number < (INT)n, x, (vec){0})", "x", 0),
    ("sum: the pieces of a long row overlap", "samplenorm.c", "piece += LEAF * PAD", "piece += LEAF * PAD - PAD", 0),
    ("mean about zero", "samplenorm.c", "first_values(v - first - mean, left)", "first_values(v - mean, left)", 0),
    ("one value is its own mean, unless it is none", "samplenorm.c", "zero = first - first", "zero = {0}", 0),
    ("the slope left out", "samplenorm.c", "fused(falls, load_up_to(x + at, left), d)", "d", 0),
    ("constants of few channels not repeated", "samplenorm.c", "repeat(scale, C);", "", 0),
    ("variance about the first value", "samplenorm.c", "center[c] = first[c] + mean[c]", "center[c] = first[c]", 0),
    ("stride: the deviations of the first image", "samplenorm.c", ", inv_std += groups", "", 0),
    ("order: the last of equal pixels wins", "pool.c", "~(x <= best[q])", "~(x < best[q])", 0),
    ("a NaN does not win", "pool.c", "~(x <= best[q])", "(x > best[q])", 0),
    ("stride: the wrong image", "pool.c", "n * image, to = value", "0, to = value", 0),
    ("second moment from the first", "optim.c", "G * G", "G", 0),
    ("decay left out", "optim.c", "decay * load_up_to(u->p + i, left)", "load_up_to(u->p + i, left)", 0),
    ("nesterov without the gradient", "optim.c", "fused(splat(u->b1), step, G) : step", "splat(u->b1) * step : step", 0),
    ("leaky: infinity times no slope", "activation.c", "slope == 0 ? (vec){0} : x * slope", "x * slope", 0),
    ("ELU: the slope below zero", "activation.c", "x + alpha), delta", "x * alpha), delta", 0),
    ("SiLU: infinity is not bounded", "activation.c", "within(x, STEEP) * (1 - s)", "x * (1 - s)", 0),
    ("GELU without the density", "activation.c", "Phi(x) + x * vexp", "Phi(x) - x * vexp", 0),
    ("tail: the last row of slopes", "activation.c", "at_most(C, n - row)", "at_most(C, n - row - 1)", 0),
    ("stride: the slope of the first columns", "activation.c", "x * load_up_to(slopes + j, left)", "x * load_up_to(slopes, left)", 0),
    ("a dropped NaN stays", "pointwise.c", "choose(m > 0, load_up_to(a + i, left) * m, (vec){0})", "load_up_to(a + i, left) * m", 0),
    ("nine rounds of Philox", "pointwise.c", "round < 10", "round < 9", 0),
    ("the label's probability stays", "loss.c", "delta[t[row]] -= 1;", ";", 0),
    ("order: halves of the lanes", "loss.c", "lane[i] += lane[i + half];", "lane[i] = lane[i + half];", 0),
    ("stride: the wrong image", "augment.c", "f->image * H * W * P", "f->image * W * P", 0),
    ("tail: the pixel behind a reversed row", "augment.c", "memcpy(y + (n - 1) * P, a, P);", "memcpy(y + (n - 1) * P, a, R);", 0),
    ("order: the first of the reversed pixels", "augment.c", "a + (n - 1 - k) * P, R", "a + (n - k) * P, R", 0),
    ("bounds: two pixels overwritten", "augment.c", "P <= 4", "P <= 0", 0),
    ("padding at the right", "augment.c", "y + (mirrored ? 0 : end) * P", "y + (mirrored ? 0 : first) * P", 0),
    ("reflected at the wrong pixel", "augment.c", "a + (W - 1 - behind) * P", "a + (W - behind) * P", 0),
    ("reflected at the last row twice", "augment.c", "2 * (H - 1) - at", "2 * H - 1 - at", 0),
    ("bounds: far at the left", "augment.c", "at_most(W, at_least(-W, f->left))", "at_least(-W, f->left)", 0),
    ("hidden: a row too many", "augment.c", "i < f->end_row", "i <= f->end_row", 0),
    ("binary: of z, not of |z|", "loss.c", "e = vexp(-vabs(x))", "e = vexp(-x)", 0),
    ("binary: the other side of zero", "loss.c", "choose(x >= 0, splat(1), e) / (1 + e)", "1 / (1 + e)", 0),
    ("binary: weights of the first columns", "loss.c", "load_up_to(v1 + j, left)", "load_up_to(v1, left)", 0),
    ("bounds: a label that is none", "loss.c", "t[row] >= 0 && t[row] < k", "t[row] <= k && t[row] >= -1", 0),
]  # fmt: skip


def pytest_configure():
    """As a plugin: compile the kernels in the folder of the planted ones."""
    from nnlite.backend.native import loader

    loader.FOLDER = Path(os.environ[VARIABLE])


def survives(cache, what, file, old, new, place):
    from nnlite.backend.native.loader import FOLDER

    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(FOLDER, Path(temporary) / "native")
        if old:
            plant(folder, file, old, new, place)
        subjects = TESTED_BY[file] if file else " ".join(TESTED_BY.values())
        tests = [f"test_native_{subject}.py" for subject in sorted(set(subjects.split()))]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "native_mutants", "-p", "no:cacheprovider"]
        variables = {VARIABLE: str(folder), "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "NNLITE_CACHE": cache}
        options = {"cwd": TESTS, "env": os.environ | variables, "capture_output": True, "timeout": SECONDS}
        try:
            done = subprocess.run([*command, "-k", "not width and not bits and not same", *tests], **options)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:  # of the files in which nothing is planted
        report("Bugs planted in the C kernels", MUTANTS, partial(survives, cache), parse(__doc__).out)
