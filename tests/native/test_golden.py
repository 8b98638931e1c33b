"""Training runs with the same bits on every machine.

The hashes change only together with the kernels and `benchmarks/results/processors.md`, where all builds agree.
"""

import bits
import pytest

import nnlite as nn

SHAPES = "9fe140105c6e133b"
CIFAR10 = "bb57fe498207c963"


@pytest.fixture(autouse=True)
def _kernels(native):
    nn.set_kernels("native")


@pytest.mark.parametrize("threads", [1, 3])
def test_a_hundred_steps_on_shapes(threads):
    nn.set_num_threads(threads)
    assert bits.golden(nn.data.shapes(n=400, seed=2).train, epochs=4) == SHAPES


def test_all_builds_agreed_on_it():
    assert SHAPES in (bits.ROOT / "benchmarks" / "results" / "processors.md").read_text()


def test_steps_on_cifar10(data_folder):
    data = nn.data.cifar10(root=data_folder, download=False).train.subset(500)
    assert bits.golden(data, epochs=1) == CIFAR10
