"""Networks as scikit-learn estimators: in pipelines, grid searches, calibration, and whatever else takes an estimator."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from nnlite import layers
from nnlite.arguments import shortened
from nnlite.backend import Array
from nnlite.layers.base import Shape
from nnlite.losses import MSE, BinaryCrossEntropy, CrossEntropy, Loss, softmax
from nnlite.model import Sequential
from nnlite.optim import Adam, Optimizer, ParameterGroups
from nnlite.training.callbacks import EarlyStopping
from nnlite.training.hooks import Callback
from nnlite.training.trainer import Trainer

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state, compute_sample_weight
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise ImportError("nnlite.interop.sklearn needs scikit-learn 1.6 or later: pip install 'nnlite-numpy[sklearn]'") from error

Factory = Callable[..., Sequential]
ACTIVATIONS = {"relu": layers.ReLU, "tanh": layers.Tanh, "logistic": layers.Sigmoid, "gelu": layers.GELU, "silu": layers.SiLU}
AUTO_BATCH = 200  # as scikit-learn's MLPClassifier
PATIENCE = 10  # epochs without improvement of the validation loss, with early_stopping


class _Network(BaseEstimator):
    """What both estimators share: building the model and training it."""

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (100,),
        *,
        model: Sequential | Factory | None = None,
        model_params: Mapping[str, Any] | None = None,
        activation: str = "relu",
        optimizer: Optimizer | ParameterGroups | None = None,
        learning_rate: float = 1e-3,
        loss: Loss | None = None,
        batch_size: int | str = "auto",
        max_iter: int = 200,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        class_weight: Any = None,
        weight_decay: float = 1e-4,
        warm_start: bool = False,
        random_state: Any = None,
        dtype: str = "auto",
        callbacks: Sequence[Callback] = (),
        verbose: int = 0,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.model, self.model_params, self.activation = model, model_params, activation
        self.optimizer, self.learning_rate, self.loss = optimizer, learning_rate, loss
        self.batch_size, self.max_iter = batch_size, max_iter
        self.early_stopping, self.validation_fraction = early_stopping, validation_fraction
        self.class_weight, self.weight_decay = class_weight, weight_decay
        self.warm_start, self.random_state, self.dtype = warm_start, random_state, dtype
        self.callbacks, self.verbose = callbacks, verbose

    # ---- parameters: model__width is an argument of a factory, by model_params

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; with deep also model__<name> of `model_params`, and those of optimiser and loss."""
        params: dict[str, Any] = super().get_params(deep=deep)
        if deep and isinstance(self.model_params, Mapping):
            params |= {f"model__{name}": value for name, value in (self.model_params or {}).items()}
        return params

    def set_params(self, **params: Any) -> Self:
        """Set arguments by name; model__<name> is an argument of the factory `model`."""
        own = {name.removeprefix("model__"): params.pop(name) for name in list(params) if name.startswith("model__")}
        super().set_params(**params)
        if own:
            self.model_params = {**(self.model_params or {}), **own}
        return self

    # ---- fitting

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for `max_iter` epochs. X: (n_samples, ...), also images (n_samples, height, width, channels)."""
        X, y, w = self._check(X, y, sample_weight, reset=True)
        fresh = not (self.warm_start and hasattr(self, "model_"))
        targets = self._targets(y, fresh)
        w = self._weigh(y, w)
        if fresh:
            self._begin(X, targets)
        self._train(X, y, targets, w, int(self.max_iter), self.early_stopping)
        return self

    def _train_once(self, X: Any, y: Any, sample_weight: Any) -> Self:
        """One epoch, from where the last call stopped."""
        fresh = not hasattr(self, "model_")
        X, y, w = self._check(X, y, sample_weight, reset=fresh)
        targets = self._targets(y, fresh)
        if fresh:
            self._begin(X, targets)
        self._train(X, y, targets, self._weigh(y, w), 1, early_stopping=False)
        return self

    def _check(self, X: Any, y: Any, sample_weight: Any, reset: bool) -> tuple[Array, Array, Array | None]:
        X, y = validate_data(
            self, X, y, reset=reset, allow_nd=True, dtype=self._dtypes(), multi_output=True, y_numeric=self._takes_numbers
        )
        weight = (
            None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
        )
        return X, y, weight

    _takes_numbers = False

    def _dtypes(self) -> Any:
        """What X is converted to: "auto" keeps float32 and float64, and makes float64 of the rest."""
        return [np.float64, np.float32] if self.dtype == "auto" else np.dtype(self.dtype)

    def _begin(self, X: Array, targets: Array) -> None:
        """A new model and optimiser."""
        self._seed = int(check_random_state(self.random_state).randint(1 << 31))
        self.model_ = self._make_model(X.shape[1:], self._outputs(targets), str(X.dtype))
        optimizer = Adam(self.learning_rate, weight_decay=self.weight_decay) if self.optimizer is None else self.optimizer
        self.optimizer_ = copy.deepcopy(optimizer)
        self.history_: dict[str, list[float]] = {}
        self.n_iter_ = 0

    def _make_model(self, shape: Shape, outputs: int, dtype: str) -> Sequential:
        made = self.model
        if made is None:
            return Sequential(*self._hidden(shape), layers.Dense(outputs), input_shape=shape, seed=self._seed, dtype=dtype)
        if not isinstance(made, Sequential):
            made = made(shape, outputs, **(self.model_params or {}))
        made = copy.deepcopy(made)
        if made.input_shape is None:
            made.seed, made.dtype = self._seed, dtype
            made.assemble(shape)
        if made.in_shape != shape or made.out_shape != (outputs,):
            raise ValueError(
                f"the model takes {made.in_shape} and gives {made.out_shape} a sample, X has {shape} and y needs ({outputs},)"
            )
        return made

    def _hidden(self, shape: Shape) -> list[layers.Layer]:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")
        chain: list[layers.Layer] = [layers.Flatten()] if len(shape) > 1 else []
        for units in np.atleast_1d(self.hidden_layer_sizes):
            chain += [layers.Dense(int(units)), ACTIVATIONS[self.activation]()]
        return chain

    def _train(self, X: Array, y: Array, targets: Array, w: Array | None, epochs: int, early_stopping: bool) -> None:
        validation, callbacks = None, [copy.deepcopy(callback) for callback in self.callbacks]
        if early_stopping:
            X, targets, w, validation = self._hold_out(X, y, targets, w)
            callbacks.append(EarlyStopping("val_loss", patience=PATIENCE))
        trainer = Trainer(self.model_, self.loss or self._loss(), self.optimizer_, callbacks=callbacks)
        batch_size = min(AUTO_BATCH, len(X)) if self.batch_size == "auto" else int(self.batch_size)
        trainer.fit(
            (X, targets) if w is None else (X, targets, w),
            epochs=epochs,
            batch_size=batch_size,
            validation=validation,
            seed=self._seed + self.n_iter_,
            progress=bool(self.verbose),
        )
        for name in trainer.history:
            self.history_.setdefault(name, []).extend(trainer.history[name])
        self.n_iter_ += trainer.epochs
        self.loss_ = self.history_["loss"][-1]

    def _hold_out(self, X: Array, y: Array, targets: Array, w: Array | None) -> tuple[Any, Any, Any, Any]:
        """Training data, and a share of the samples to validate on."""
        places = np.arange(len(X))
        train, held_out = train_test_split(
            places, test_size=self.validation_fraction, random_state=self._seed, stratify=self._strata(y)
        )
        parts = [tuple(a[rows] for a in (X, targets, w) if a is not None) for rows in (train, held_out)]
        return X[train], targets[train], None if w is None else w[train], parts[1]

    def _strata(self, y: Array) -> Array | None:
        return None

    # ---- predicting

    def _outputs_of(self, X: Any) -> Array:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, allow_nd=True, dtype=self._dtypes())
        return Trainer(self.model_, self._loss(), self.optimizer_).predict(X)

    # ---- what a classifier and a regressor differ in

    def _targets(self, y: Array, fresh: bool) -> Array:
        raise NotImplementedError

    def _outputs(self, targets: Array) -> int:
        raise NotImplementedError

    def _loss(self) -> Loss:
        raise NotImplementedError

    def _weigh(self, y: Array, w: Array | None) -> Array | None:
        return w

    @property
    def loss_curve_(self) -> list[float]:
        """The loss of each epoch."""
        return self.history_["loss"]


class NNClassifier(ClassifierMixin, _Network):
    """A classifier: a multi-layer perceptron, or any network, trained with cross-entropy.

    hidden_layer_sizes, activation: of the perceptron: "relu", "tanh", "logistic", "gelu" or "silu".
    model: instead of it, a factory `f(input_shape, outputs, **model_params)` or a Sequential without input_shape, whose last
    layer gives logits.  optimizer: default Adam(learning_rate, weight_decay=weight_decay).  loss: default CrossEntropy, or
    BinaryCrossEntropy for several labels a sample.
    batch_size: "auto" is min(200, n_samples).  max_iter: epochs.  early_stopping: hold `validation_fraction` of the samples
    out, stop after 10 epochs without a smaller loss of theirs, keep the best weights.
    class_weight: a dict {label: weight} or "balanced".  dtype: "auto" follows X: float32 or float64.
    verbose: whether to show progress.

    After `fit`: `classes_`, `model_`, `optimizer_`, `history_`, `loss_`, `loss_curve_`, `n_iter_`.
    """

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch, from where the last call stopped. classes: all labels, which the first call must know."""
        if classes is not None and not hasattr(self, "model_"):
            self._known = np.unique(classes)
        return self._train_once(X, y, sample_weight)

    def predict(self, X: Any) -> Array:
        """The label of each sample; of several labels a sample, zeros and ones."""
        z = self._outputs_of(X)
        return (z > 0).astype(int) if self.multilabel_ else self.classes_[z.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Array:
        """Probabilities, in the order of `classes_`; of several labels a sample, of each label."""
        z = self._outputs_of(X)
        return 1 / (1 + np.exp(-z)) if self.multilabel_ else softmax(z)

    def _targets(self, y: Array, fresh: bool) -> Array:
        check_classification_targets(y)
        y = _column(y)
        if fresh:
            self.multilabel_ = type_of_target(y).startswith("multilabel")
            known = self.__dict__.pop("_known", None)
            self.classes_ = np.arange(y.shape[1]) if self.multilabel_ else np.unique(y) if known is None else known
        if self.multilabel_:
            return y
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"y has the label {shortened(unknown[0])}, the classes are {self.classes_}: give all as classes=")
        return np.searchsorted(self.classes_, y)

    def _outputs(self, targets: Array) -> int:
        return len(self.classes_)

    def _loss(self) -> Loss:
        return BinaryCrossEntropy() if self.multilabel_ else CrossEntropy()

    def _weigh(self, y: Array, w: Array | None) -> Array | None:
        if self.class_weight is None:
            return w
        weight = compute_sample_weight(self.class_weight, _column(y, warn=False))
        return weight if w is None else weight * w

    def _strata(self, y: Array) -> Array | None:
        return None if self.multilabel_ else _column(y, warn=False)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class NNRegressor(RegressorMixin, _Network):
    """A regressor: a multi-layer perceptron, or any network, trained with the mean squared error.

    Arguments and attributes are those of `NNClassifier`, without class_weight; y: (n_samples,) or (n_samples, n_outputs).
    """

    _takes_numbers = True

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch, from where the last call stopped."""
        return self._train_once(X, y, sample_weight)

    def predict(self, X: Any) -> Array:
        """The outputs, in the shape of the y that was fitted."""
        z = self._outputs_of(X)
        return z[:, 0] if self.is_flat_ else z

    def _targets(self, y: Array, fresh: bool) -> Array:
        y = _column(y)
        if fresh:
            self.is_flat_ = y.ndim == 1
        return y.reshape(len(y), -1)

    def _outputs(self, targets: Array) -> int:
        return int(targets.shape[1])

    def _loss(self) -> Loss:
        return MSE()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _column(y: Array, warn: bool = True) -> Array:
    """(n,) for (n, 1)."""
    return column_or_1d(y, warn=warn) if y.ndim == 2 and y.shape[1] == 1 else y
