"""What every layer is: an equation forward, its delta backward, and parameters declared with their shapes."""

import math
from collections.abc import Callable
from operator import index
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    import inspect

from nnlite.arguments import as_call, constructor, shortened, whole
from nnlite.backend import Array, Backend, Memory, get_numpy_backend
from nnlite.errors import ShapeError
from nnlite.init import DeclaredShape

Shape = tuple[int, ...]
Init = str | Callable[[Shape, Any], Any]


class Parameter(NamedTuple):
    """An array that a layer declares: trained (a parameter) or not (a buffer, such as a running mean)."""

    shape: DeclaredShape
    init: Init
    trained: bool

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Shard:
    """Part of the batch: samples `start` to `start + rows` of training pass `pass_id`.  swept: backward follows directly."""

    start: int
    rows: int
    pass_id: int
    training: bool
    swept = False

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)


class Room(NamedTuple):
    """Memory for samples of a shape: the context's own, or the thread's buffer of that number.  images: stored as images."""

    number: int | None
    shape: Shape
    images: bool


class Context(Memory):
    """What one layer keeps of one shard between forward and backward; the layer may add attributes.

    Set by the model: `dW`, `db`, ... (where backward writes the gradient of `W`, `b`, ...), `prepared` (what the layer's
    `prepare` returned), `batch` (what `combine` returned, for a `BatchLayer`), `out` (an array of the result's
    shape that forward or backward may write to, or None), `trained` (false if the gradients of the parameters are not
    wanted) and `needs_delta` (false if dJ/da is not wanted).
    """

    def __init__(self, backend: Backend, layer_id: int, shard: Shard, dtype: Any) -> None:
        super().__init__(backend)
        self.xp = backend.xp
        self.layer_id, self.shard, self.dtype = layer_id, shard, dtype
        self.prepared: Any = None
        self.batch: Any = None
        self.delta_batch: Any = None
        self.trained = self.needs_delta = True
        self._target: Array | Room | None = None
        self._like: Array | None = None

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # added by the layer and the model

        def __setattr__(self, name: str, value: Any) -> None: ...

    @property
    def training(self) -> bool:
        """Whether this is a training pass."""
        return self.shard.training

    @property
    def needs_backward(self) -> bool:
        """Whether backward follows at all: in a training pass, and for the gradient of the inputs."""
        return self.shard.training or self.shard.swept

    @property
    def swept(self) -> bool:
        """Whether backward follows immediately."""
        return self.shard.swept

    @property
    def out(self) -> Array | None:
        """Where the result may be written; read at most once per forward or backward pass."""
        room = self._target
        if type(room) is not Room:
            return room
        shape, images = (self.shard.rows, *room.shape), room.images
        if room.number is not None:
            scratch = self.backend.scratch_batch if images else self.backend.scratch
            return scratch(f"delta {room.number}", shape, self.dtype)
        images = images and (self._like is None or not self._like.flags.c_contiguous)
        return (self._own.batch if images else self._own.get)("out", shape, self.dtype)

    def aim(self, target: "Array | Room | None", like: Array | None = None) -> None:
        """Set what `out` returns: an array or room for one.

        like: the context's own memory takes the memory order of this array, if that is the order of its shape.
        """
        self._target, self._like = target, like


class Layer:
    """The base of all layers. A subclass writes `build`, `forward` and `backward`, and keeps its constructor's
    arguments under their own names (they are its configuration: printed, copied and saved).

    It also says what `engine/plan.py` may assume; the defaults are the safe ones. `samplewise`: samples are independent.
    `elementwise`: `ctx.out` may be the input. `keeps`: what backward reads of forward's input and output.
    `shares_memory`: the result may be the input's memory, as with Flatten. For trainers: `gives_probabilities`, which
    a loss of logits must not be given; None if the outputs are probabilities whenever the inputs are. `saved_as`: the class
    that files name for it and its subclasses; None: its own. `takes_integers`: as the first layer it gets integers unconverted,
    such as the ids of an embedding; its backward may return None. Otherwise inputs are cast to the model's dtype.
    `images`: whether the arrays of three axes a sample that it reads and makes are images, which a backend stores in an order
    of its own; None: if those of a neighbouring layer are, as for all `elementwise` layers. Other arrays are stored in
    the order of their shape.
    `ends_with_relu`: set only by `engine/rewrite.py`, on a twin of the layer whose outputs include the ReLU.
    """

    samplewise: ClassVar[bool] = True
    elementwise: ClassVar[bool] = False
    keeps: ClassVar[Literal["input", "output", "both"] | None] = "both"
    shares_memory: ClassVar[bool] = True
    gives_probabilities: ClassVar[bool | None] = False
    saved_as: "ClassVar[type[Layer] | None]" = None
    takes_integers: ClassVar[bool] = False
    images: ClassVar[bool | None] = False
    ends_with_relu = False

    backend: Backend = get_numpy_backend()
    in_shape: Shape
    out_shape: Shape
    declared: dict[str, Parameter]
    frozen: set[str]
    owner: "Layer | None" = None  # the whole model that holds the values

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Set up the bookkeeping, so that subclasses need not call `super().__init__()`."""
        if args or kwargs:
            cls._refuse_unnamed(args, kwargs)
        layer = super().__new__(cls)
        layer.declared, layer.frozen = {}, set()
        return layer

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # the declared arrays

    def build(self, in_shape: Shape) -> Shape:
        """Declare parameters for inputs of `in_shape` (without the batch axis) and return the shape of the output."""
        return in_shape

    def forward(self, a: Array, ctx: Context) -> Array:
        """The equation. Keeps in `ctx` what backward needs; writes neither to `a` nor to the layer."""
        raise TypeError(f"{type(self).__name__} has no forward")

    def backward(self, delta: Array, ctx: Context) -> Array | None:
        """From delta = dJ/d(output): write the gradients into `ctx.dW`, ..., return dJ/d(input)."""
        raise TypeError(f"{type(self).__name__} has no backward")

    def prepare(self, memory: Memory) -> Any:
        """What all shards of a pass share, computed once from the declared arrays alone: `ctx.prepared`.

        Inference reuses it while these keep the same values. `memory`: for arrays that the next pass overwrites.
        """
        return None

    def flops(self) -> int:
        """Floating-point operations of a forward pass, for one sample."""
        return 0

    def weights(self) -> int:
        """Number of parameter values, in the form that a shard uses."""
        return sum(p.size for p in self.declared.values() if p.trained)

    def temporaries(self) -> int:
        """Values of temporary memory per sample, besides input and output."""
        return 0

    def declare(
        self,
        name: str,
        shape: Shape,
        init: Init,
        trained: bool = True,
        *,
        fan_in: int | None = None,
        fan_out: int | None = None,
    ) -> None:
        """Declare an array, which is `self.<name>` once the model is built.

        init: a name in `nn.init` or a function (shape, rng) -> array. fan_in, fan_out: the number of inputs of a unit, and of
        outputs that an input reaches, for initialisers that use them; default: those of weights (n_out, ..., n_in).
        """
        for fan in (fan_in, fan_out):
            if fan is not None:
                whole("a fan", fan, 1)
        self.declared[name] = Parameter(DeclaredShape(map(index, shape), fan_in, fan_out), init, trained)

    def declare_shapes(self, in_shape: Shape) -> Shape:
        """Build for `in_shape`, and store both shapes."""
        self.declared.clear()
        in_shape = tuple(in_shape)
        out_shape = tuple(map(index, self.build(in_shape)))
        self.in_shape, self.out_shape = in_shape, out_shape
        return out_shape

    def bind(self, name: str, view: Array) -> None:
        """Make `self.<name>` this view of the model's vector."""
        self.__dict__[name] = view

    has_frozen_form: ClassVar[bool] = False

    def frozen_form(self) -> "Layer":
        """The layer that replaces it in training while parameters and statistics are frozen; if `has_frozen_form` is true."""
        return self

    @property
    def is_frozen_whole(self) -> bool:
        """Whether everything it declares is frozen, including statistics."""
        return bool(self.declared) and self.frozen >= self.declared.keys()

    def children(self) -> dict[str, "Layer"]:
        """The layers inside this one, by their part of the model's names."""
        return {}

    @property
    def xp(self) -> Any:
        """The array module: numpy or cupy."""
        return self.backend.xp

    @classmethod
    def arguments(cls) -> "list[inspect.Parameter]":
        """The constructor's parameters."""
        return constructor(cls)

    @classmethod
    def _refuse_unnamed(cls, args: Any, kwargs: Any) -> None:
        """Raise TypeError, saying what to write, for options passed by position."""
        parameters = cls.arguments()
        if not parameters:
            raise TypeError(f"{cls.__name__}() takes no arguments")
        unnamed = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(args) > len(unnamed) and all(p.kind is not p.VAR_POSITIONAL for p in parameters):
            options = ", ".join(f"{p.name}=" for p in parameters if p.kind is p.KEYWORD_ONLY)
            raise TypeError(
                f"{cls.__name__}({', '.join(unnamed)}) has no place for {shortened(args[len(unnamed)])}: write options by name "
                f"({options or 'there are none'}); the shape of the inputs is found from the layer before"
            )

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        return {p.name: getattr(self, p.name) for p in self.arguments()}

    def __setattr__(self, name: str, value: Any) -> None:
        """Copy parameters into the model's vector, so that views stay views."""
        if name in self.__dict__ and name in self.declared:
            self._assign(name, value)
        else:
            super().__setattr__(name, value)

    def _assign(self, name: str, value: Any) -> None:
        view: Array = self.__dict__[name]
        if value is view:
            return
        array = self.backend.asarray(value)
        if array.shape != view.shape:
            raise ShapeError(f"{shortened(self)}: {name} has shape {view.shape}, not {array.shape}")
        view[...] = array

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "owner"}

    __repr__ = as_call


class Slot(NamedTuple):
    """One named array of a model and its place in a flat vector."""

    path: str
    layer: Layer
    attribute: str
    parameter: Parameter
    place: slice

    @property
    def name(self) -> str:
        """Such as "3.shortcut.0.W"."""
        return f"{self.path}.{self.attribute}"

    @property
    def frozen(self) -> bool:
        """Whether it is excluded from gradients and updates."""
        return self.attribute in self.layer.frozen


class Elementwise(Layer):
    """A function of each value, which may overwrite its input. A subclass says what it `keeps`."""

    elementwise, shares_memory = True, False


class BatchLayer(Layer):
    """A layer that needs the whole batch: a barrier between runs of shards.

    Forward:  `statistics(a)` of each shard -> `combine(all)` = `ctx.batch` -> `forward` of each shard; `commit(batch)` once.
    Backward: `delta_statistics(delta, ctx)` of each shard -> `combine_deltas(all, ctx)` = `ctx.delta_batch`, writing the
    gradients -> `backward` of each shard. The model sets `ctx.a`, the shard's input, for the steps done with each shard.
    """

    samplewise, keeps, shares_memory = False, "input", False

    def statistics(self, a: Array) -> Any:
        """A shard's part of what `combine` needs."""
        raise TypeError(f"{type(self).__name__} has no statistics")

    def combine(self, parts: list[Any]) -> Any:
        """Combine the parts, in the order of the shards."""
        raise TypeError(f"{type(self).__name__} has no combine")

    def commit(self, batch: Any) -> None:
        """Update the running statistics from the batch, once per training pass."""

    def delta_statistics(self, delta: Array, ctx: Context) -> Any:
        """A shard's part of what `combine_deltas` needs."""
        raise TypeError(f"{type(self).__name__} has no delta_statistics")

    def combine_deltas(self, parts: list[Any], ctx: Context) -> Any:
        """Combine the parts, and write the gradients into `ctx`."""
        raise TypeError(f"{type(self).__name__} has no combine_deltas")


def wrong_input(wanted: Shape, shape: Shape) -> str:
    """The message for inputs of this shape that are not (N, *wanted), with the remedy if it is obvious."""
    remedies = {
        (*shape[1:], 1): ": x[..., None] adds the last axis, of one channel",
        shape: ": x[None] is a batch of this one sample",
        (*shape[2:], *shape[1:2]): ": np.moveaxis(x, 1, -1) puts the channels last",
    }
    return f"expects inputs (N, {', '.join(map(str, wanted))}), got {shape}{remedies.get(wanted, '')}"


def check_images(in_shape: Shape) -> None:
    """Raise ShapeError for a sample that is no image."""
    if len(in_shape) != 3:
        raise ShapeError(f"expects images of shape (height, width, channels), got {shortened(in_shape)}")
