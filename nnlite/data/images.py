"""Images in PNG and JPEG files, read with Pillow on demand."""

import copy
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import shortened, whole
from nnlite.atomic import shown
from nnlite.backend.cpu.threads import map_shards
from nnlite.data.files import read
from nnlite.data.stored import Stored
from nnlite.errors import DataError

Array = NDArray[Any]
Size = tuple[int, int]
_LONGEST = 150  # characters of a reason in a message


class ImageFiles(Stored):
    """Images (N, H, W, C) of uint8 in N files. Indexing reads them: `files[i]`, `files[:9]`, `files[places]`.

    size: (H, W), to which images of other sizes are resized: bilinear with antialiasing, the aspect ratio is not kept. Default:
    their common size.   channels: 3, RGB, or 1, grey (0.299 R + 0.587 G + 0.114 B).
    Of 16-bit values the upper byte is taken, of palettes the colours; transparency is dropped, and an orientation in EXIF data
    is not applied. These are torchvision's choices, except for 16-bit grey images, which it clips at 255.
    `paths`: (N,) the files.   `part(rows)`: some of the images, not read yet.
    Raises ImportError without Pillow; DataError for no files, for images of several sizes without `size`, and, when it is read,
    for a file that is damaged or missing, with its path.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths: Iterable[str | PathLike[str]], size: Sequence[int] | None = None, channels: int = 3) -> None:
        check_settings(size, channels)
        files = [Path(path) for path in paths]
        if not files:
            raise DataError("there are no image files")
        self.paths: Any = np.empty(len(files), object)  # indexed like other arrays
        self.paths[:] = files
        height, width = size or _common_size(files)
        self.size, self.channels = (int(height), int(width)), int(channels)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"ImageFiles({len(self)} files, size={self.size}, channels={self.channels})"

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)"""
        return (len(self), *self.size, self.channels)

    def __getitem__(self, rows: Any) -> Array:
        paths = self.paths[rows]
        if isinstance(paths, Path):
            return self._image(paths)
        images = np.empty((len(paths), *self.shape[1:]), np.uint8)

        def read_into_place(i: int) -> None:
            images[i] = self._image(paths[i])

        failures = _for_each(read_into_place, len(paths))
        if failures:
            raise failures[min(failures)]
        return images

    def part(self, rows: Any) -> "ImageFiles":
        """The images of a slice, or of an array of places or of booleans, not read yet."""
        twin = copy.copy(self)
        twin.paths = self.paths[rows]
        return twin

    def add_to(self, digest: Any) -> None:
        """Add to a hash what determines the images: the bytes of the files, and how they are read."""
        import hashlib

        digest.update(repr(self).encode())
        for path in self.paths:
            digest.update(hashlib.sha256(read(path)).digest())

    def _image(self, path: Path) -> Array:
        """(H, W, C)"""
        return np.asarray(_read(path, lambda image: _pixels(image, self.size, self.channels)))


def check_settings(size: Sequence[int] | None, channels: int) -> None:
    """Raise ImportError without Pillow, ValueError for an invalid size or number of channels."""
    _pillow()
    if size is not None and not (isinstance(size, list | tuple) and len(size) == 2):
        raise ValueError(f"size must be (height, width), not {shortened(size)}")
    for i, pixels in enumerate(size or ()):
        whole(f"size[{i}]", pixels, 1)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 3, for RGB, or 1, for grey, not {shortened(channels)}")


def find_damaged(paths: Sequence[Path]) -> dict[int, DataError]:
    """Read all files; return the errors of those that cannot be read, by their places."""
    return _for_each(lambda i: _read(paths[i], lambda image: image.load()), len(paths))


def _read(path: Path, use: Callable[[Any], Any]) -> Any:
    """`use(image)` of the image in a file; DataError, with the path, if the file is damaged or missing."""
    pillow = _pillow()
    try:
        with path.open("rb") as file, pillow.open(file, formats=("PNG", "JPEG")) as image:
            return use(image)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make Pillow raise many types
        is_other = isinstance(error, pillow.UnidentifiedImageError)
        reason = "it is neither PNG nor JPEG" if is_other else getattr(error, "strerror", None) or str(error)[:_LONGEST]
        raise DataError(
            f'the image {shown(path)} cannot be read: {reason}; nn.data.folder(..., damaged="skip") leaves such files out'
        ) from error


def _for_each(work: Callable[[int], Any], count: int) -> dict[int, DataError]:
    """`work(0)` ... `work(count - 1)` on threads, because Pillow releases the GIL; returns the DataErrors by their places."""
    failures = dict[int, DataError]()

    def attempt(i: int) -> None:
        try:
            work(i)
        except DataError as error:
            failures[i] = error

    map_shards(attempt, count)
    return failures


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("image files are read with Pillow: pip install 'nnlite-numpy[images]'") from error
    return Image


def _pixels(image: Any, size: Size, channels: int) -> Array:
    """(H, W, C)"""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
        image = _pillow().fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":  # Pillow warns of transparent colours in a palette, not in a channel
        image = image.convert("RGBA")
    image = image.convert("RGB" if channels == 3 else "L")
    if (image.height, image.width) != size:
        image = image.resize(size[::-1], _pillow().Resampling.BILINEAR)
    return np.asarray(image).reshape(*size, channels)


def _common_size(paths: Sequence[Path]) -> Size:
    """(H, W) of all images, from the files' headers."""
    sizes = (_read(path, lambda image: (image.height, image.width)) for path in paths)
    first: Size = next(sizes)
    for path, size in zip(paths[1:], sizes, strict=True):
        if size != first:
            raise DataError(
                f"the images have several sizes, {first} (height, width) in {shown(paths[0])} and {size} in {shown(path)}: "
                "give size=(height, width), to which all are resized"
            )
    return first
