"""The memory that steps reuse: what forward and backward may overwrite, and the buffers of deltas."""

from collections import Counter
from itertools import count

from nnlite.engine.steps import Stretch


def reuse_values(stretch: Stretch, training: bool) -> None:
    """Mark what forward may overwrite: an input that only this step reads and that no backward pass needs."""
    readers = Counter(v for step in stretch.steps for v in step.reads)
    free = set[int]()  # values whose memory no other step needs; earlier values are kept, and the input is the user's
    for step in stretch.steps:
        layer, keeps = step.layer, step.layer.keeps if training else None
        own = [v for v in step.reads if v in free and readers[v] == 1 and v not in stretch.gives]
        step.over = own[0] if own and layer.elementwise and keeps in (None, "output") else None
        shared = layer.shares_memory or step.over is not None
        if keeps in (None, "input") and (not shared or (own and keeps is None)):
            free.add(step.makes)


def end_values(stretch: Stretch) -> None:
    """Find the last step that needs each value."""
    needed = set(stretch.gives)
    for step in reversed(stretch.steps):
        step.ends = tuple({v for v in step.reads if v not in needed})
        needed.update(step.reads)


def reuse_deltas(stretch: Stretch, in_place: bool) -> None:
    """Give each delta a buffer that is not in use, and mark the deltas that may be overwritten."""
    free = set[int]()  # values whose deltas no other step needs
    places = {v: set[int]() for v in stretch.gives}  # the buffers that the delta of a value may be in
    for step in reversed(stretch.steps):
        layer, is_free, place = step.layer, step.makes in free, places.pop(step.makes)
        if len(step.reads) == 1:
            step.delta_in_place = in_place and is_free and layer.elementwise
            step.buffer = _unused(place, *places.values())
            is_free = is_free or not (layer.shares_memory or step.delta_in_place)
            place = {step.buffer} | (place if layer.shares_memory or layer.elementwise else set())
        else:
            is_free = False  # its inputs share one delta
        for v in step.reads:
            if v in places:
                step.sum_in_place = in_place and is_free
                step.sum_buffer = _unused(place, *places.values())
                places[v] = place if step.sum_in_place else {step.sum_buffer}
                free.add(v)
            else:
                places[v] = place
                if is_free:
                    free.add(v)
    first = {v: step for step in reversed(stretch.steps) for v in step.reads}
    for step in stretch.steps:
        step.completes = frozenset(v for v in step.reads if v in stretch.takes and first[v] is step)


def _unused(*places: set[int]) -> int:
    taken = set[int]().union(*places)
    return next(number for number in count() if number not in taken)
