"""Training that reveals little of any one sample: `PrivateTrainer`, and `epsilon_of`, what a plan would reveal."""

from nnlite.privacy.accounting import epsilon_of
from nnlite.privacy.trainer import PrivateTrainer

__all__ = ["PrivateTrainer", "epsilon_of"]
