"""The model: layers one after another, their values in flat vectors, and the ways to run them."""

from collections.abc import Callable, Collection, Mapping
from functools import wraps
from os import PathLike
from typing import Any, ClassVar, Literal, TypeVar, cast

from nnlite.arguments import choice, flag, instance, sample_shape, shortened, whole
from nnlite.backend import Array, get_backend, length, single_threaded_blas, with_chosen_kernels
from nnlite.engine.engine import Engine
from nnlite.engine.plan import Plan
from nnlite.engine.summary import summary
from nnlite.engine.vectors import Valued, Vectors, everything, refuse_repeats, unchanged_by_errors, walk
from nnlite.errors import DataError, DeviceError, ShapeError, StateError
from nnlite.layers.base import Layer, Shape, wrong_input
from nnlite.layers.branches import build_chain, check_layers
from nnlite.losses import Loss
from nnlite.serialize import Taken, check_names, read_model, renamed, save, take

# Attributes set by `assemble`, not copied.
_MADE_ANEW = {"owner", "vectors", "engine", "_moved_to", "in_shape", "out_shape"}

Method = TypeVar("Method", bound=Callable[..., Any])


def _says_what_memory_was_missing(method: Method) -> Method:
    @wraps(method)
    def wrapper(self: "Sequential", *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except MemoryError as error:
            raise self.backend.out_of_memory(error) from error

    return cast(Method, wrapper)


class Sequential(Valued):
    """Layers one after another: a -> layers[0] -> ... -> z.     x: (N, *input_shape)   z: (N, *out_shape)

    input_shape: the shape of one sample. With it the model is built at once; without it, it is part of another model.
    seed: of the initial values and of the randomness in a pass. dtype: "float32" or "float64". `to` moves it to a GPU.
    Raises ShapeError, naming the layer and both shapes, if a layer does not fit the one before it, and for an invalid shape.
    """

    engine: Engine
    saved_as: ClassVar[type[Layer] | None]

    def __init__(self, *layers: Layer, input_shape: Shape | None = None, seed: int = 0, dtype: str = "float32") -> None:
        check_layers("Sequential", layers)
        dtype = getattr(dtype, "__name__", getattr(dtype, "name", dtype))  # numpy.float32 and its dtype are accepted
        self.layers = list(layers)
        self.input_shape = None if input_shape is None else sample_shape("input_shape", input_shape)
        self.seed, self.dtype, self.passes = whole("seed", seed), choice("dtype", dtype, "float32", "float64"), 0
        self._rewrite = True
        self._moved_to: Any = None
        if self.input_shape is not None:
            self.assemble(self.input_shape)

    # ---- building

    def children(self) -> dict[str, Layer]:
        return {str(i): layer for i, layer in enumerate(self.layers)}

    def build(self, in_shape: Shape) -> Shape:
        return build_chain(self.children(), in_shape)

    def assemble(self, input_shape: Shape) -> None:
        """Make this a whole model: infer all shapes, gather the values of all layers in flat vectors, make the plan.

        An error leaves all layers, and the models that they belong to, unchanged.
        """
        self.backend = with_chosen_kernels(self.backend)
        every = dict(everything(self))
        owners = [(layer, layer.owner) for layer in every.values() if layer.owner is not None]
        with unchanged_by_errors(every.values()):
            self._assemble(tuple(map(int, input_shape)), every)
        for layer, owner in owners:
            if not any(owner is here for here in every.values()):
                owner._moved_to = f"layer {shortened(layer)}"

    def _assemble(self, input_shape: Shape, every: dict[str, Layer]) -> None:
        if self.input_shape is None or tuple(self.input_shape) != input_shape:
            self.input_shape = input_shape
        leaves = list(walk(self.children()))
        refuse_repeats(leaves)
        for layer in every.values():
            layer.backend, layer.owner = self.backend, self
        self.declare_shapes(input_shape)
        for path, layer in every.items():
            _refuse_own_passes(path, layer)
        self.vectors = Vectors(leaves, self.backend, self.dtype, self.seed)
        for path, layer in every.items():
            if isinstance(layer, Sequential):
                if path:
                    layer.vectors, layer.dtype = self.vectors.part(path + "."), self.dtype
                layer.engine = Engine(layer.children(), layer.in_shape, layer.vectors, layer.seed, layer._rewrite)

    @property
    def plan(self) -> Plan:
        """The runs of steps that a batch goes through."""
        return self.engine.plan

    @property
    def rewrite(self) -> bool:
        """Whether neighbouring layers may become joined and in-place steps (default: yes).

        The results have the same bits, except that a convolution joined with the max-pooling after it agrees to rounding.
        """
        return self.engine.rewrite

    @rewrite.setter
    def rewrite(self, value: bool) -> None:
        self._rewrite = self.engine.rewrite = bool(flag("rewrite", value))
        self.engine.make_plan()

    # ---- running

    @_says_what_memory_was_missing
    def __call__(self, x: Any) -> Array:
        """z = model(x): inference.     x: (N, *input_shape), any real numbers   z: (N, *out_shape), on the model's device"""
        with single_threaded_blas, self.lock.reading():
            return self.engine.infer(self._input(x))

    @_says_what_memory_was_missing
    def forward(self, x: Any, training: bool = False, pass_id: int | None = None) -> Array:  # type: ignore[override]
        """Like `model(x)`; with training=True, as in training (batch statistics, dropout), and `backward` may follow.

        pass_id: the number of the training pass, which dropout draws from; default: the next.
        """
        if not training:
            return self(x)
        x = self._input(x)
        with single_threaded_blas:
            return self.engine.forward(x, self._next_pass(pass_id))

    @_says_what_memory_was_missing
    def backward(self, delta: Any) -> Array:  # type: ignore[override]
        """From delta = dJ/dz of the last training forward: fill `grads`, return dJ/dx. StateError if values changed since."""
        self._root()
        current = self.engine.under_way
        if current is None:
            raise StateError("backward needs a forward(x, training=True) before it, one for each call")
        delta = self.backend.asarray(delta, self.dtype)
        if delta.shape != (current.n, *self.out_shape):
            raise ShapeError(f"delta must have the shape of the outputs {(current.n, *self.out_shape)}, not {delta.shape}")
        with single_threaded_blas:
            return self.engine.backward(current, delta)

    @_says_what_memory_was_missing
    def input_gradient(self, x: Any, delta: Any) -> Array:
        """dJ/dx from delta = dJ/dz at the outputs of `model(x)`, as in inference: by running statistics, without dropout.

        x: (N, *input_shape)   delta: (N, *out_shape)   dJ/dx: as x. Leaves `grads`, `buffers`, `passes` and a pass between
        forward and backward alone. Raises ShapeError for what does not fit, StateError for ids, which have no gradient, and for
        a layer of your own that needs the whole batch and has no frozen form.
        """
        x = self._input(x)
        delta = self.backend.asarray(delta, self.dtype)
        if delta.shape != (len(x), *self.out_shape):
            raise ShapeError(f"delta must have the shape of the outputs {(len(x), *self.out_shape)}, not {delta.shape}")
        with single_threaded_blas, self.lock.reading():
            return self.engine.input_gradient(x, delta)

    @_says_what_memory_was_missing
    def loss_and_grad(
        self,
        x: Any,
        t: Any,
        criterion: Loss,
        sample_weight: Any = None,
        out: Array | None = None,
        pass_id: int | None = None,
        *,
        total: float | None = None,
    ) -> Any:
        """The loss of a batch; fills `grads`. The same bits as forward, criterion and backward, in less memory and time.

        The loss is a float; on a GPU a 0-d array on the device, so that the call does not wait: `float(loss)` does.
        x: (N, *input_shape)   t: targets as the criterion takes them   sample_weight: (N,)   out: (N, *out_shape), receives z
        total: what the criterion divides by, if `prepare_batch` returned it with x, t and sample_weight.
        """
        if total is None:
            x, t, sample_weight, total = self.prepare_batch(x, t, criterion, sample_weight, out)
        with single_threaded_blas:
            return self.engine.loss_and_grad(x, t, criterion, sample_weight, total, out, self._next_pass(pass_id))

    @_says_what_memory_was_missing
    def prepare_batch(
        self, x: Any, t: Any, criterion: Loss, sample_weight: Any = None, out: Array | None = None
    ) -> tuple[Array, Array, Array | None, float]:
        """x, t and sample_weight, checked and on the device, and their total, which the criterion divides by.

        Raises ShapeError and DataError for what does not fit, NoWeightError where the total is zero.
        """
        x = self._input(x)
        n = self.engine.exchange.samples(x, t, self.plan.training, self.vectors)
        if length(t) != n:
            raise DataError(f"{n} samples, but {length(t)} targets")
        shape = (n, *self.out_shape)
        if out is not None and out.shape != shape:
            raise ShapeError(f"out must have shape {shape}, not {out.shape}")
        return x, *criterion.prepare(shape, self.params.dtype, t, sample_weight, self.backend)

    def _input(self, x: Any) -> Array:
        self._root()
        x = self.backend.asarray(x)
        if x.shape[1:] != self.in_shape or x.ndim != 1 + len(self.in_shape):
            raise ShapeError(f"layer 0 {shortened(self.layers[0])}: {wrong_input(self.in_shape, x.shape)}")
        if len(x) == 0 and self.engine.exchange.size == 1:  # of several processes, one may have no part in a batch
            raise DataError("the batch is empty")
        return x

    def _next_pass(self, pass_id: int | None) -> int:
        if pass_id is not None:
            return pass_id
        self.passes += 1
        return self.passes

    # ---- freezing, moving

    def freeze(self, pattern: str, *, statistics: bool = True) -> None:
        """Stop training the parameters whose names match, such as "0.*": no gradient, no update.

        statistics: whether a BatchNorm that is frozen whole keeps its running statistics and normalises by them in training.
        """
        self._root()
        self.vectors.freeze(pattern, statistics)
        self._refresh()

    def unfreeze(self, pattern: str) -> None:
        """Train the parameters whose names match again; the statistics of their layers are updated again, too."""
        self._root()
        self.vectors.unfreeze(pattern)
        self._refresh()

    def set_frozen(self, names: Collection[str]) -> None:
        """Freeze what has these names, parameters and statistics, and nothing else."""
        self._root()
        self.vectors.set_frozen(names)
        self._refresh()

    def _refresh(self) -> None:
        """Apply a change of what is frozen to the whole model."""
        for _, model in everything(self._root()):
            if isinstance(model, Sequential):
                model.vectors.refresh()
                model.engine.refresh()
        self._root().vectors.clear_frozen()

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        return self.backend.device

    @property
    def kernels(self) -> str:
        """Whose kernels it uses: "native" or "numpy", as `nn.set_kernels` said when it was built, or "cuda"."""
        return self.backend.kernel_set

    def to(self, device: str, precision: Literal["float32", "tf32"] = "float32") -> "Sequential":
        """Move the model to "cpu" or "cuda"; raises DeviceError if there is none. Returns the model.

        precision: of float32 products on "cuda": "tf32" is faster, its factors have 10 bits.
        """
        backend = get_backend(device, precision)
        if self is not self.owner:
            raise DeviceError("only a whole model moves: call `to` on the model that this one is a part of")
        if backend is not self.backend:
            with unchanged_by_errors(layer for _, layer in everything(self)):
                for _, layer in walk(self.children()):
                    for name in layer.declared:
                        layer.bind(name, backend.asarray(self.backend.to_host(getattr(layer, name))))
                self.backend = backend
                self.assemble(self.in_shape)
        return self

    # ---- copying, saving, showing

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _MADE_ANEW}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _moved_to=None)
        if self.input_shape is not None:
            self.assemble(self.input_shape)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file for `nnlite.load`. StateError for a layer's argument that cannot be saved: a function."""
        with self.lock.reading():
            save(self, self.vectors, self.passes, path)

    def load_weights(self, path: str | PathLike[str], strict: bool = True, names: Mapping[str, str] | None = None) -> Taken:
        """Take values by name from a saved model. Returns the names that were taken; its `left_out` lists the others.

        strict: raise FileError, naming extra, missing and wrong-shaped entries; otherwise take what fits, if anything does.
        names: {"old.*": "new.*"}: names in the file and the names here; * matches the same text on both sides.
        """
        flag("strict", strict)
        check_names(names)
        arrays, _ = read_model(path)
        self._root()
        return take(self.vectors, renamed(arrays, names or {}), strict, path)

    def summary(self) -> None:
        """Print each layer's output shape, number of parameters, and MFLOP of a forward pass for one sample."""
        self._root()
        print(summary(self, self.vectors))

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int | slice) -> Any:
        return self.layers[index]


Sequential.saved_as = Sequential  # of a subclass, the layers are saved


def needs_model(model: Any) -> None:
    """Raise ValueError for what is no model, such as its trainer, StateError for one without input_shape."""
    instance("model", model, Sequential, "a nn.Sequential").named_params()


def _refuse_own_passes(path: str, layer: Layer) -> None:
    """Raise StateError for a layer with layers inside that is more than a chain or branches: only its layers would run."""
    has_own_forward = type(layer).forward not in (Layer.forward, Sequential.forward)
    if path and layer.children() and (has_own_forward or layer.declared):
        raise StateError(
            f"{shortened(layer)} has layers inside, which run one after another: "
            "it can have no forward, backward or parameters itself"
        )
