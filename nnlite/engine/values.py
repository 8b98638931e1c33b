"""The values of a model, in flat vectors and by name."""

from contextlib import AbstractContextManager
from typing import Any, cast

from nnlite.backend import Array, ReadersWriterLock
from nnlite.engine.vectors import Vectors
from nnlite.errors import ShapeError, StateError
from nnlite.layers.base import Layer


class Valued(Layer):
    """A layer with the values of all layers inside it, whole or a part of another one, its owner."""

    vectors: Vectors
    _moved_to: str | None

    @property
    def params(self) -> Array:
        """All trained values in one vector; layers hold views of it."""
        return self.vectors.params

    @params.setter
    def params(self, value: Any) -> None:
        self._copy_into(self.vectors.params, value)

    @property
    def grads(self) -> Array:
        """dJ/d(params) of the last backward pass; zero where frozen."""
        return self.vectors.grads

    @grads.setter
    def grads(self, value: Any) -> None:
        self._copy_into(self.vectors.grads, value)

    @property
    def buffers(self) -> Array:
        """Values that are saved but not trained: running statistics."""
        return self.vectors.buffers

    @buffers.setter
    def buffers(self, value: Any) -> None:
        self._copy_into(self.vectors.buffers, value)

    def _copy_into(self, vector: Array, value: Any) -> None:
        if value is not vector:
            array = self.backend.asarray(value)
            if array.shape != vector.shape:
                raise ShapeError(f"this vector has shape {vector.shape}, not {array.shape}")
            vector[...] = array

    def named_params(self) -> dict[str, Array]:
        """Views of `params` by name, such as "0.W"."""
        self._root()
        return self.vectors.named(self.vectors.trained, self.params)

    def named_grads(self) -> dict[str, Array]:
        """Views of `grads` by the names of the parameters."""
        self._root()
        return self.vectors.named(self.vectors.trained, self.grads)

    def named_buffers(self) -> dict[str, Array]:
        """Views of `buffers` by name, such as "1.running_mean"."""
        self._root()
        return self.vectors.named(self.vectors.kept, self.buffers)

    def snapshot(self) -> tuple[Array, Array]:
        """Copies of params and buffers, taken between two updates."""
        with self.lock.reading():
            return self.params.copy(), self.buffers.copy()

    def restore(self, snapshot: tuple[Array, Array]) -> None:
        """Restore the values of a snapshot."""
        with self.updating():
            self.params[...], self.buffers[...] = (self.backend.asarray(v) for v in snapshot)

    def updating(self) -> AbstractContextManager[None]:
        """Block inference while the parameters change: `with model.updating(): ...`."""
        return self.lock.writing()

    @property
    def lock(self) -> ReadersWriterLock:
        """The lock between inference and changes of parameters or statistics: one for the whole model."""
        self._root()
        return self.vectors.lock

    def _root(self) -> "Valued":
        """The model that holds the values: this one, or the one that it is a part of. StateError where there is none."""
        if self.owner is None:
            raise StateError("this Sequential has no input_shape: give it one, or make it a part of a model that has one")
        root = cast(Valued, self.owner)
        moved = self._moved_to or root._moved_to
        if moved is not None:
            raise StateError(f"{moved} now belongs to another model; copy.deepcopy layers to keep both")
        return root
