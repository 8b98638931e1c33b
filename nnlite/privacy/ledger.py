"""What the steps of a run have spent, and the key of its randomness: what a checkpoint keeps of a private run."""

import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Any

from nnlite.arguments import whole
from nnlite.training.hooks import Callback, Training

_KEY_BITS = 120  # Philox has keys of 128


class Ledger(Callback):
    """Counts the steps by (sample_rate, noise_multiplier): `spent`. The first callback of a `PrivateTrainer`'s `fit`.

    key: of the draws and the noise: the seed, or, if that is None, drawn from the operating system.
    """

    must_match = ("clip_norm", "noise_multiplier", "seed")

    def __init__(self, clip_norm: float, noise_multiplier: float, seed: int | None) -> None:
        self.clip_norm, self.noise_multiplier, self.seed = clip_norm, noise_multiplier, seed
        self.key = secrets.randbits(_KEY_BITS) if seed is None else int(whole("seed", seed)) % (1 << _KEY_BITS)
        self.sample_rate = 0.0  # of this call of `fit`
        self.spent = Counter[tuple[float, float]]()

    @property
    def steps(self) -> int:
        """The number of all steps: no draw and no noise comes twice."""
        return self.spent.total()

    def on_step_end(self, trainer: Training) -> None:
        self.spent[self.sample_rate, float(self.noise_multiplier)] += 1

    def state(self) -> dict[str, Any]:
        return {"key": self.key, "spent": [[*kind, steps] for kind, steps in self.spent.items()]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.key = int(state["key"])
        self.spent = Counter({(rate, sigma): steps for rate, sigma, steps in state["spent"]})
