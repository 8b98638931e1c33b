"""Whether the texts of an HDF5 file are whole, before they are read.

HDF5 believes what a text claims: of a damaged one it takes up to 4 GB, waits for ever, or reads other memory. A text is its
length in 4 bytes, the address of a heap in 8, and its number there in 4, aligned to 4. A heap begins with GCOL and, 8 bytes
behind that, its size. Source: HDF5 File Format Specification, section III.E.
"""

import re
from collections.abc import Sequence
from typing import IO

from nnlite.errors import FileError

Piece = tuple[int, int]  # where in the file, and how many bytes


def check_texts(file: IO[bytes], arrays: Sequence[Piece], expected: int) -> None:
    """Raise FileError unless all heaps are whole and at least the expected number of texts are in them.

    arrays: the pieces of the file that hold numbers, and no text.
    """
    parts = _between(file, sorted(arrays))
    heaps = {start + at: _lengths(part, at) for start, part in parts for at in _places(b"GCOL", part)}
    count = 0
    for address, lengths in heaps.items():
        for start, part in parts:
            for at in _places(address.to_bytes(8, "little"), part):
                length = _number(part, at - 4, 4) if (start + at) % 4 == 0 else 0
                if length > lengths.get(_number(part, at + 8, 4), 0):
                    raise FileError("a text in it claims to be longer than it is")
                count += length > 0
    if count < expected:
        raise FileError(f"of the {expected} texts in it {expected - count} are missing")


def _between(file: IO[bytes], arrays: list[Piece]) -> list[tuple[int, bytes]]:
    """The rest of the file: (where, bytes)."""
    parts, start = list[tuple[int, bytes]](), 0
    for offset, length in [*arrays, (file.seek(0, 2), 0)]:
        file.seek(start)
        parts.append((start, file.read(max(0, offset - start))))
        start = max(start, offset + length)
    return parts


def _lengths(data: bytes, heap: int) -> dict[int, int]:
    """The lengths of the texts in a heap, by number; what is free in it has number 0."""
    place, end, lengths = heap + 16, heap + _number(data, heap + 8, 8), dict[int, int]()
    while place + 16 <= end <= len(data) and (number := _number(data, place, 2)):
        if number in lengths:
            raise FileError("a heap of texts in it is damaged")
        lengths[number] = _number(data, place + 8, 8)
        place += 16 + -(-lengths[number] // 8) * 8
    free = _number(data, place + 8, 8) if place + 16 <= end else end - place
    if free < 0 or place + free != end or end > len(data):
        raise FileError("a heap of texts in it is damaged")
    return lengths


def _places(wanted: bytes, data: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(wanted), data)]


def _number(data: bytes, place: int, length: int) -> int:
    return int.from_bytes(data[place : place + length], "little")
