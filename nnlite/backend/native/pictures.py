"""Pictures cut out of images by the kernel of `augment.c`."""

from typing import Any

import numpy as np

from nnlite.backend.frames import check, gathered
from nnlite.backend.native.operations import NativeOperations, address, kernels
from nnlite.backend.window import Array

_BYTES = np.dtype("uint8")


class Pictures(NativeOperations):
    """Pixels of any dtype are copied as bytes."""

    def framed(self, images: Array, frames: Any, reflect: bool) -> Array:
        """In one sweep."""
        if images.dtype.kind not in "biuf":
            return super().framed(images, frames, reflect)
        check(images, frames, reflect)
        if not images.flags.c_contiguous:
            images, frames = gathered(images, frames)
        (_, height, width, channels), frames = images.shape, self.given(frames)
        pictures = self.room(None, (len(frames), *images.shape[1:]), images.dtype)
        sizes = len(frames), height, width, channels * images.itemsize
        kernels(_BYTES)["cut_frames"](address(images), address(frames), *sizes, reflect, address(pictures))
        return pictures
