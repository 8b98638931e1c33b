"""The trainer of private models: the loop is that of `Trainer`, batches and gradients are its own."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

from nnlite.arguments import number, shortened, whole
from nnlite.data import Dataset
from nnlite.errors import DataError, StateError
from nnlite.losses import Loss, NoWeightError
from nnlite.metrics import Metric
from nnlite.model import Sequential
from nnlite.optim import Optimizer
from nnlite.optim.groups import ParameterGroups
from nnlite.privacy.accounting import Accountant, composed, need_accounting
from nnlite.privacy.clipping import Clipping, refuse_mixing
from nnlite.privacy.ledger import Ledger
from nnlite.privacy.sampling import PoissonBatches, noise
from nnlite.training.history import History
from nnlite.training.hooks import Callback
from nnlite.training.sources import apart, as_source
from nnlite.training.trainer import Trainer

_BATCH = 1024  # labels that are checked together


class PrivateTrainer(Trainer):
    """Trains a model that reveals little of any one sample, by DP-SGD, and says how little: `fit`, `epsilon`.

    g = (sum over the batch of w_n dJ_n/dp  +  sigma C z) / L,     w_n = min(1, C / |dJ_n/dp|),     z ~ N(0, 1)

    Each batch has every sample with probability L / N, whatever the other batches have; g is what the optimiser is given.
    Frozen parameters are no part of the norms. Only the model is private, not the history or scores on the data.

    clip_norm: C, the most that a sample adds to the sum.
    noise_multiplier: sigma; 0 is no privacy.
    delta: the probability with which epsilon may not hold, well below 1 / N.
    seed: of the batches and the noise; who knows it can subtract the noise. Default: drawn from the operating system.
    model, loss, optimizer, metrics, callbacks: as for `Trainer`.
    Raises ValueError for numbers out of range and for a layer that mixes samples, such as BatchNorm (GroupNorm does not),
    ImportError without dp-accounting, the extra "privacy".
    Source: Abadi et al. 2016, Deep Learning with Differential Privacy, algorithm 1.
    """

    def __init__(
        self,
        model: Sequential,
        loss: Loss,
        optimizer: Optimizer | ParameterGroups,
        *,
        clip_norm: float,
        noise_multiplier: float,
        delta: float,
        metrics: Sequence[Metric] = (),
        callbacks: Sequence[Callback] = (),
        seed: int | None = None,
    ) -> None:
        number("clip_norm", clip_norm, above=0)
        number("noise_multiplier", noise_multiplier, least=0)
        self.delta = number("delta", delta, above=0, below=1)
        need_accounting()
        super().__init__(model, loss, optimizer, metrics, callbacks)
        refuse_mixing(model)
        self.ledger = Ledger(clip_norm, noise_multiplier, seed)

    @property
    def clip_norm(self) -> float:
        """C."""
        return self.ledger.clip_norm

    @property
    def noise_multiplier(self) -> float:
        """sigma."""
        return self.ledger.noise_multiplier

    def fit(  # type: ignore[override]  # no order of the data, and no data of unknown length
        self,
        data: Any,
        epochs: int = 1,
        batch_size: int = 256,
        validation: Any = None,
        *,
        progress: bool = True,
        checkpoint: str | PathLike[str] | None = None,
        every: int | None = None,
        keep: int = 2,
        resume: bool = False,
        validation_steps: int | None = None,
        monitor: str | None = None,
    ) -> History:
        """Train for `epochs` more epochs of N // batch_size steps, and return the history of these and all earlier epochs.

        The other arguments are those of `Trainer.fit`. A checkpoint holds the key of the randomness: keep it secret.

        data: (x, t) or a `nn.data.Dataset`, of N samples without weights.
        batch_size: L, the expected number of samples.
        Raises DataError for other data, for weights of samples or classes, and for a batch larger than the data.
        """
        source, held_out, places = apart(as_source(data), validation, 0)
        batch_size = int(whole("batch_size", batch_size, 1))
        refuse_mixing(self.model)
        self._refuse_data(source, batch_size)
        self.clipping = Clipping(self.model, self.ledger.clip_norm, batch_size)
        self.ledger.sample_rate = batch_size / len(source)
        self.callbacks = [self.ledger, *(callback for callback in self.callbacks if callback is not self.ledger)]
        return super().fit(
            PoissonBatches(source, self.ledger, places),
            epochs,
            batch_size,
            held_out,
            progress=progress,
            checkpoint=checkpoint,
            every=every,
            keep=keep,
            resume=resume,
            validation_steps=validation_steps,
            monitor=monitor,
        )

    def epsilon(self, *, accountant: Accountant = "pld") -> float:
        """The epsilon of all steps so far, of all calls of `fit`: they are (epsilon, delta)-differentially private.

        accountant: as for `epsilon_of`.
        Raises StateError before the first step.
        """
        if not self.ledger.spent:
            raise StateError("no step was made yet that epsilon could be of; epsilon_of(...) computes that of a plan")
        return composed(self.ledger.spent, self.delta, accountant)

    def loss_and_grad(self, x: Any, t: Any, w: Any, z: Any) -> tuple[Any, float]:
        """The mean loss of a batch and its length; fills the model's `grads` with g."""
        model, ledger, loss, n = self.model, self.ledger, 0.0, len(t)
        if n:
            x, t, _, total = model.prepare_batch(x, t, self.loss, None, z)
            loss = self.clipping.loss_and_grad(x, t, self.loss, total, z)
        else:
            model.grads[...] = 0  # only noise is left
        size = float(ledger.noise_multiplier) * float(ledger.clip_norm) / self.clipping.expected
        if size:
            values = size * noise(ledger.key, ledger.steps, len(model.grads))
            model.grads += model.backend.asarray(values, model.params.dtype)
            model.vectors.clear_frozen()
        return loss, float(n)

    def _refuse_data(self, data: Any, batch_size: int) -> None:
        if not isinstance(data, Dataset):
            raise DataError(f"a batch is drawn from all samples: give (x, t) or a nn.data.Dataset, not a {type(data).__name__}")
        if batch_size > len(data):
            raise DataError(f"batches of {batch_size} samples are expected, the data have {len(data)}")
        if data.weights is not None or self._weighs(data):
            raise DataError(
                "each sample must count alike: a loss that is divided by the weights of a batch reveals them; give no weights "
                f"of samples, and a loss without class_weight and ignore_index, not {shortened(self.loss)}"
            )

    def _weighs(self, data: Dataset) -> bool:
        """Whether the loss gives samples weights of their own, by their labels."""
        try:
            one = self._prepared(data.labels[:1])[2]
            for start in range(0, len(data), _BATCH):
                labels = data.labels[start : start + _BATCH]
                _, weights, total = self._prepared(labels)
                if weights is not None or total != one * len(labels):
                    return True
        except NoWeightError:
            return True
        return False

    def _prepared(self, t: Any) -> tuple[Any, Any, float]:
        model = self.model
        return self.loss.prepare((len(t), *model.out_shape), model.params.dtype, t, None, model.backend)
