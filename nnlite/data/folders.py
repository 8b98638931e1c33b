"""A folder of images as a data set, one sub-folder a class."""

import os
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import choice
from nnlite.atomic import shown
from nnlite.data.dataset import Dataset
from nnlite.data.images import ImageFiles, check_settings, find_damaged
from nnlite.errors import DataError

Labels = NDArray[np.int64]
SUFFIXES = (".png", ".jpg", ".jpeg")
_SHOWN = 3  # files in a warning


def folder(
    path: str | PathLike[str],
    *,
    size: Sequence[int] | None = None,
    channels: int = 3,
    damaged: Literal["raise", "skip"] = "raise",
) -> Dataset:
    """The PNG and JPEG files in the folders of `path`, each folder a class: labels 0, 1, ... in alphabetical order.

    The images (N, H, W, C), uint8, are read when a batch is made, on threads.
    size, channels: as `ImageFiles` takes them.   damaged: "raise" DataError, with the path, when a damaged file is read, or
    "skip" it: all files are then read once in advance, and a warning says which of them the data set leaves out.
    Other files and hidden ones are ignored; links and the folders inside a class's folder are followed.
    Raises DataError for anything but a folder, for no classes, for a class without images, and for images of several sizes
    without `size`; ImportError without Pillow.
    """
    check_settings(size, channels)
    choice("damaged", damaged, "raise", "skip")
    classes = _class_folders(Path(path).expanduser())
    found = [_image_files(each) for each in classes]
    paths, labels = [path for each in found for path in each], np.repeat(np.arange(len(found)), [len(each) for each in found])
    _refuse_empty(classes, labels)
    if damaged == "skip":
        paths, labels = _without_damaged(paths, labels)
        _refuse_empty(classes, labels)
    return Dataset(ImageFiles(paths, size, channels), labels, [each.name for each in classes])


def _class_folders(root: Path) -> list[Path]:
    if not os.path.isdir(root):  # Path.is_dir raises where a path is too long
        raise DataError(f"{shown(root)} is no folder")
    _, folders, _ = next(os.walk(root, onerror=_refuse))
    names = sorted(name for name in folders if not _is_hidden(name))
    if not names:
        raise DataError(f"{shown(root)} has no folders: each class needs one, which has its name and its images")
    return [root / name for name in names]


def _image_files(root: Path) -> list[Path]:
    """In alphabetical order, those in subfolders last. Each folder is searched once, however many links lead to it."""
    found, searched = list[Path](), set[str]()
    for place, folders, names in os.walk(root, onerror=_refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        if (real := os.path.realpath(place)) in searched:
            folders.clear()
            continue
        searched.add(real)
        found += [Path(place, name) for name in sorted(names) if name.lower().endswith(SUFFIXES) and not _is_hidden(name)]
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"the folder {shown(Path(str(error.filename)))} cannot be read: {error.strerror}") from error


def _refuse_empty(classes: list[Path], labels: Labels) -> None:
    for each, count in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True):
        if not count:
            raise DataError(f"the class {shown(each)} has no image that can be read: its folder needs {', '.join(SUFFIXES)}")


def _without_damaged(paths: list[Path], labels: Labels) -> tuple[list[Path], Labels]:
    damaged = find_damaged(paths)
    if damaged:
        places = sorted(damaged)
        names = ", ".join(shown(paths[i]) for i in places[:_SHOWN]) + ", ..." * (len(places) > _SHOWN)
        text = f"{len(places)} of {len(paths)} image files cannot be read and are left out: {names}"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    kept = [i for i in range(len(paths)) if i not in damaged]
    return [paths[i] for i in kept], labels[kept]
