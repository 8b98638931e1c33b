"""`make mutants`: changes the code in small ways, one at a time, and shows that the tests of its file notice.

usage: python checks/mutants.py [--mutants 300] [--seed 0] [--processes 2] [--out FILE]

A seeded sample over layers, losses, optimisers and the convolutions and pooling of the CPU, made by cosmic-ray; and bugs that
others really shipped, planted by hand. Survivors are listed; those known to change nothing are in EQUIVALENT, with reasons.
"""

import argparse
import difflib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, FOLDER = ROOT / "nnlite", ROOT / "tests"
LIMIT = 300  # seconds for the tests of a mutant; one that hangs is noticed, too

LAYERS = (
    "test_layers.py test_defaults.py test_reference.py test_gradcheck.py test_model.py test_model_users.py test_shards.py "
    "test_frozen.py test_arguments.py test_init.py test_trust.py"
)
CONVOLUTIONS = "test_conv_algorithms.py test_reference.py test_layers.py test_model.py test_nonfinite_values.py test_sums.py"
OPTIMISERS = "test_optim.py test_defaults.py test_state.py test_arguments.py test_guards.py cuda/test_device.py"
TESTS = {
    **{f"layers/{path.name}": LAYERS for path in sorted((PACKAGE / "layers").glob("[a-z]*.py"))},
    "layers/base.py": f"{LAYERS} test_serialize.py",
    "arguments.py": "test_arguments.py test_trainer_parts.py test_init.py test_losses.py test_optim.py",
    "init.py": "test_init.py test_arguments.py",
    "losses.py": "test_losses.py test_trust.py test_defaults.py test_arguments.py test_guards.py cuda/test_device.py",
    **{f"optim/{path.name}": OPTIMISERS for path in sorted((PACKAGE / "optim").glob("[a-z]*.py"))},
    "backend/conv.py": CONVOLUTIONS,
    "backend/cpu/winograd.py": CONVOLUTIONS,
    "backend/cpu/tiles.py": f"test_tiles.py {CONVOLUTIONS}",
    "backend/window.py": CONVOLUTIONS,
    "backend/cpu/products.py": f"test_products.py {CONVOLUTIONS}",
    "backend/pool.py": f"{CONVOLUTIONS} test_backend.py",
}

# ruff: noqa: E501
OPERATORS = [
    *(f"ReplaceBinaryOperator_{pair}" for pair in "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_Add Pow_Mul".split()),  # noqa: SIM905
    *(f"ReplaceComparisonOperator_{pair}" for pair in "Lt_LtE LtE_Lt Gt_GtE GtE_Gt Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is".split()),  # noqa: SIM905
    "ReplaceUnaryOperator_Delete_USub", "ReplaceAndWithOr", "ReplaceOrWithAnd", "AddNot", "NumberReplacer",
    "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ZeroIterationForLoop",
]  # fmt: skip

NO_NUMBER = "NumPy takes every negative number for the size that is left"
FOR_TYPES = "what is imported for types alone is imported always"
STRICT = "both are as long as the other"
# Lines of a file that choose between ways to the same result, by how they begin: numbers that were measured, and where they are used.
MEASURED = "a measured choice: it changes no result"
CHOICES = {
    "backend/cpu/products.py": (
        *("LARGEST", "DEEPEST", "WORTH", "THINNEST", "ALIGNED", "FEW", "FLATTEST", "FLAT_DEEPEST", "FLAT_WORTH"),
        *("size =", "if size *", "(np.matmul if", "if rows <= SUMMED", "if a.strides", "if columns"),
        *("return piece(", "most =", "fits ="),
    ),
    "backend/conv.py": ("JOINED",),
    "backend/pool.py": (
        "FEW",
        "self.overlaps",
        "self.takes_apart",
        "if len(taps) > TERMS",
        "a = self._laid_out",
        "if a.strides",
        "self.number =",
    ),
    "backend/cpu/winograd.py": ("PAD", "POINTS", "TRANSFORM"),
    "backend/cpu/tiles.py": ("return partial(",),
    "layers/norm.py": ("FAR", "by = ctx.batch", "return self.norm.running_normalization("),
    "optim/optimizer.py": ("_WORTH_THREADS", "_EVEN", "count +=", "if length"),
}
# (file, the changed line): why no test could tell. Filled in from runs of this file.
EQUIVALENT = {
    ('backend/cpu/winograd.py', 'rest = self._scratch("rest", ( 2, 2), max(k * self.tiles, inputs) * c, dtype)[0]'): 'room that nobody uses',
    ('optim/muon.py', 'self.update(model.backend, *matrices, rate=rate, step=self.steps + 2)'): 'Muon has no clock',
    ('optim/muon.py', 'if len(X) > X.shape[ 0]:'): 'the product from the other side is the same',
    ('layers/norm.py', 'y = self.backend.by_column("add", a, minus_mean, out) if self.constants[ 1] else a'): 'adding zero changes nothing',
    ('losses.py', 'if z.ndim == 1 and t.ndim == 1 and self.class_weight is None and not self.label_smoothing:'): 'the slower way gives the same bits',
    ('layers/norm.py', 'self.center = mean if bool((abs(mean) / inv_std > FAR).any()) else None'): 'without the subtraction the error is about the same there',
    ('init.py', 'filters, kh, kw, channels = shape if len(shape) == 4 else (0, 0, 1, 0)'): 'no channels: it is refused all the same',
    ('backend/conv.py', 'def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None, relu: bool = True) -> Array:'): 'every caller says it',
    ('layers/activation.py', '_STEEP = 999.0  # beyond, exp(-|a|) is 0; both bounds are for infinite a, too: 0 times infinity would be NaN'): 'exp(-|a|) is 0 there, too',
    ('backend/cpu/tiles.py', 'first, last = -(shift // self.m) if shift < 1 else 0, min(self.count, (self.size - 1 - shift) // self.m + 1)'): 'of 0 both give 0',
    ('layers/activation.py', '_FAR_OF_TANH = 9.0  # beyond, tanh u is 1 to the last bit, and a^3 might overflow'): 'tanh u is 1 to the last bit there, too',
    ("backend/cpu/winograd.py", "if self.taps > 0:"): "of one tap there is nothing to compare",
    ("backend/cpu/winograd.py", "if self.taps > 2:"): "a pooling that no tile cuts has 1, 4, 9 or 16 taps",
    ("backend/pool.py", "larger = memory.persist(name, (len(taps) + 1, *out.shape), bool) if memory.training else None"): "room that nobody uses",
    ("backend/pool.py", "larger = memory.persist(name, (len(taps) - 0, *out.shape), bool) if memory.training else None"): "room that nobody uses",
    ("backend/cpu/winograd.py", "return [m for m in TILES if pool[0] == pool[1] and m % pool[ 1] == 0]"): "the two are the same here",
    ("layers/activation.py", "_FAR = 29.0  # standard deviations: beyond, Phi is 0 or 1 to the last bit of float64, and a^2 might overflow"):
        "Phi is 0 or 1 to the last bit there, too",
    ("losses.py", "return _mean(losses, xp.where(z > 0, 1, e) / (1 + e) - t)"): "at 0, e is 1",
    ("backend/window.py", "return self.stride == self.kernel and self.dilation == (1, 1) and self.padded_size == (oh / kh, ow * kw)"):
        "the way for windows that overlap gives the same",
    ("backend/conv.py", "value = s[3] if image.shape[3] >= 1 else image.itemsize  # an axis of one value may have any stride"):
        "patches are then copied value by value",
    ("backend/cpu/tiles.py", "first, last = -(shift // self.m) if shift <= 0 else 0, min(self.count, (self.size - 1 - shift) // self.m + 1)"):
        "at 0 both are 0",
    ("losses.py", "return t.astype(dtype, copy=True)"): "a copy that nobody needs",
    ("optim/sgd.py", "v = state[ -1] if state else None"): "there is one",
}  # fmt: skip

# Bugs that others shipped: (what, file, old text, new text).
SHIPPED = [
    ("tanh' returns tanh", "layers/activation.py", "delta, 1 - ctx.y * ctx.y,", "delta, ctx.y,"),
    ("ReLU writes into its argument", "backend/cpu/numpy.py", "zeros, out=pieces[1]", "zeros, out=pieces[0]"),
    ("biased running variance", "backend/operations.py", "var * m / max(m - 1, 1)", "var"),
    ("of equal pixels the last wins in max-pool", "backend/pool.py", "xp.greater_equal(candidate, current,", "xp.greater(candidate, current,"),
    ("padding wins in max-pool", "backend/pool.py", "y[...] = -math.inf", "y[...] = 0"),
    ("NaN takes no delta in max-pool", "backend/pool.py", "if is_nan.any():", "if False:"),
    ("the fans of a convolution without groups", "layers/conv.py", "fan_out=filters // groups * kh * kw", "fan_out=filters * kh * kw"),
    ("zero weight times NaN", "losses.py", "_of_those_there(backend, z, sample_weight), t)", "z, t)"),
    ("the rounded mean of equal values", "layers/norm.py", "x = a - a[..., :1]", "x = a - 0"),
    ("the last batch is dropped", "data/dataset.py", "range(start * batch_size, len(self), batch_size)",
     "range(start * batch_size, len(self) - len(self) % batch_size, batch_size)"),
    ("softmax's backward assumes cross-entropy", "layers/activation.py", "self.xp.multiply(ctx.y, delta - mean,", "self.xp.subtract(ctx.y, delta,"),
]  # fmt: skip
SHIPPED_TESTS = f"{LAYERS} test_backend.py test_conv_algorithms.py test_data_sets.py test_init.py test_losses.py"


class Mutant(NamedTuple):
    """One changed file."""

    what: str
    file: str
    code: str
    tests: str

    def change(self):
        """The lines that differ."""
        before = (PACKAGE / self.file).read_text().splitlines()
        lines = difflib.unified_diff(before, self.code.splitlines(), lineterm="", n=0)
        return [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]

    @property
    def new_line(self):
        return next((line[1:].strip() for line in self.change() if line[0] == "+"), "")


def why_equivalent(mutant):
    """Why no test could tell the mutant from the code, or None."""
    new, before = mutant.new_line, {line[1:].strip() for line in mutant.change() if line[0] == "-"}
    if "reshape" in new and before == {new.replace("- 2", "-1")}:
        return NO_NUMBER
    if before == {new.replace("strict=False", "strict=True")}:
        return STRICT
    if new == "if not TYPE_CHECKING:":
        return FOR_TYPES
    if new.startswith(CHOICES.get(mutant.file, ())):
        return MEASURED
    return EQUIVALENT.get((mutant.file, new))


def every_mutant():
    """All mutants that cosmic-ray's operators make of the files."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    for file, tests in TESTS.items():
        source = (PACKAGE / file).read_text()
        for name in OPERATORS:
            operator, occurrence = get_operator(f"core/{name}")(), 0
            while (code := mutate_code(source, operator, occurrence)) is not None:
                occurrence += 1
                if is_python(code):
                    yield Mutant(name, file, code, tests)


def is_python(code):
    """The changed source; some changes, such as of the star in f(*a), leave none."""
    try:
        compile(code, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def shipped():
    for what, file, old, new in SHIPPED:
        source = (PACKAGE / file).read_text()
        if source.count(old) != 1:
            raise SystemExit(f"{file} has {source.count(old)} times {old!r}")
        yield Mutant(what, file, source.replace(old, new), SHIPPED_TESTS)


def survives(mutant):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PACKAGE, Path(folder) / "nnlite", ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / "nnlite" / mutant.file).write_text(mutant.code)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests.split()]
        environment = os.environ | {"PYTHONPATH": folder, "NNLITE_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            return subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, timeout=LIMIT).returncode == 0
        except subprocess.TimeoutExpired:
            return False


def report(mutants, lives):
    """The table's lines, and the share killed of those not shown equivalent."""
    survivors = [mutant for mutant, alive in zip(mutants, lives, strict=True) if alive]
    known = {mutant: why for mutant in survivors if (why := why_equivalent(mutant))}
    killed, counted = len(mutants) - len(survivors), len(mutants) - len(known)
    share = killed / max(1, counted)
    lines = [f"{killed} of {len(mutants)} mutants were noticed; {len(known)} survivors change nothing that a test could see."]
    lines += [f"Of the other {counted}, {share:.1%} were noticed.", "", "Survivors:", ""]
    for mutant in survivors:
        lines += [f"- `{mutant.file}`, {mutant.what}: {known.get(mutant, 'not noticed')}", "", "  ```diff"]
        lines += [f"  {line}" for line in mutant.change()] + ["  ```"]
    return lines, share


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    planted, population = list(shipped()), list(every_mutant())
    sample = random.Random(args.seed).sample(population, min(args.mutants, len(population)))
    lives = []
    with ThreadPoolExecutor(args.processes) as pool:
        for mutant, alive in zip([*planted, *sample], pool.map(survives, [*planted, *sample]), strict=False):
            lives.append(alive)
            print(
                f"{len(lives)}/{len(planted) + len(sample)} {mutant.file} {mutant.what}: {'ALIVE' if alive else 'noticed'}",
                flush=True,
            )
    first, rest = lives[: len(planted)], lives[len(planted) :]
    lines = ["# Mutants", "", "Bugs that others shipped, planted:", ""]
    lines += [f"- {mutant.what}: {'not noticed' if alive else 'noticed'}" for mutant, alive in zip(planted, first, strict=True)]
    more, share = report(sample, rest)
    lines += ["", f"A sample of {len(sample)} of {len(population):,} (seed {args.seed}):", "", *more, ""]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines))
    if any(first) or share < 0.95:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
