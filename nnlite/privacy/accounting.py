"""How much a number of steps reveals, by the package dp-accounting."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

from nnlite.arguments import choice, number, whole

Accountant = Literal["pld", "rdp"]

_PLD_STEP = 1e-4  # of the privacy loss; rounding is upwards


def epsilon_of(
    sample_rate: float, noise_multiplier: float, steps: int, delta: float, *, accountant: Accountant = "pld"
) -> float:
    """The epsilon of a plan: so many steps of DP-SGD are (epsilon, delta)-differentially private. Infinite without noise.

    The data sets compared differ in one sample, there or not.

    sample_rate: the probability that a batch has a given sample.
    noise_multiplier: the standard deviation of the noise, in units of the clip norm.
    accountant: "pld", the tightest (Koskela et al. 2020), or "rdp", Renyi's (Mironov et al. 2019).
    Raises ImportError without dp-accounting, ValueError for numbers out of range, no steps included.
    """
    number("sample_rate", sample_rate, above=0, most=1)
    number("noise_multiplier", noise_multiplier, least=0)
    number("delta", delta, above=0, below=1)
    return composed({(float(sample_rate), float(noise_multiplier)): int(whole("steps", steps, 1))}, delta, accountant)


def composed(spent: Mapping[tuple[float, float], int], delta: float, accountant: Accountant) -> float:
    """epsilon of steps of several kinds together. spent: their numbers, by (sample_rate, noise_multiplier)."""
    choice("accountant", accountant, "pld", "rdp")
    need_accounting()
    if not all(sigma for _, sigma in spent):
        return math.inf
    import dp_accounting
    from dp_accounting import pld, rdp

    # Losses grow with 1 / sigma^2: with steps of one size those of little noise would fill the memory.
    step = _PLD_STEP * max(1, (0.5 / min(sigma for _, sigma in spent)) ** 2)
    sums: Any = pld.PLDAccountant(value_discretization_interval=step) if accountant == "pld" else rdp.RdpAccountant()
    for (sample_rate, sigma), steps in spent.items():
        sums.compose(dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(sigma)), steps)
    return float(sums.get_epsilon(float(delta)))


def need_accounting() -> None:
    """Raise ImportError, with what to install, without dp-accounting."""
    if find_spec("dp_accounting") is None:
        raise ImportError('epsilon is computed by dp-accounting: pip install "nnlite-numpy[privacy]"')
