"""Reading ahead: a thread makes the next batches while the model trains on the present one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

_BATCHES = 2  # that are ready at most


class Ahead:
    """The items of an iterator, read on a thread. An exception there is raised here when its item is due."""

    def __init__(self, items: Iterator[Any]) -> None:
        self.items, self.is_closed = items, False
        self.room, self.ready = threading.Semaphore(_BATCHES), SimpleQueue[tuple[Any, BaseException | None]]()
        self.thread = threading.Thread(target=self._read, name="nnlite-ahead", daemon=True)

    def __iter__(self) -> "Ahead":
        return self

    def __next__(self) -> Any:
        item, error = self.ready.get()
        if error is not None:
            self.ready.put((None, error))  # for the next call, too
            raise error
        self.room.release()
        return item

    def close(self) -> None:
        """End the thread; it finishes the item that it reads."""
        self.is_closed = True
        self.room.release()
        self.thread.join()

    def _read(self) -> None:
        try:
            while self.room.acquire() and not self.is_closed:
                self.ready.put((next(self.items), None))
        except BaseException as error:  # StopIteration, too
            self.ready.put((None, error))


@contextmanager
def read_ahead(source: Any, batches: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """The batches of a source; where its samples are in files, they are read on a thread that ends with the block."""
    if not getattr(source, "in_files", False):
        yield batches
        return
    ahead = Ahead(batches)
    ahead.thread.start()
    try:
        yield ahead
    finally:
        ahead.close()
