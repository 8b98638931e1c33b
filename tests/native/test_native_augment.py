"""Pictures cut out of images in C, by NumPy and pixel by pixel: on any shape, for any dtype."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend import FRAME, get_numpy_backend
from nnlite.backend.operations import Operations
from nnlite.data import AlternatingFlip, Cutout, RandomCrop, RandomFlip

DTYPES = st.sampled_from(["uint8", "bool", "int16", ">u2", "float16", "float32", "int64", "float64", "longdouble"])
SIZES = st.tuples(st.integers(1, 12), st.integers(1, 35), st.sampled_from([1, 2, 3, 4, 5, 7, 9, 17]))


def drawn(n, size, dtype):
    return np.random.default_rng(0).integers(1, 200, (n, *size)).astype(dtype)


def frames_of(n, images, seed, far=1.0):
    """n random frames, at most `far` times the size of an image away and less than 1 for a reflection."""
    rng, (m, height, width, _) = np.random.default_rng(seed), images.shape
    frames = np.zeros(n, FRAME)
    frames["image"], frames["mirrored"] = rng.integers(0, m, n), rng.integers(0, 2, n)
    for name, axis, length in (("top", "row", height), ("left", "column", width)):
        most = max(0, int(far * length) - (far <= 1))
        frames[name] = rng.integers(-most, most + 1, n)
        frames[f"first_{axis}"], frames[f"end_{axis}"] = np.sort(rng.integers(0, length + 1, (2, n)), axis=0)
    return frames


def expected_of(images, frames, reflect):
    """Each picture by itself, cut out of a padded image."""
    pictures, (height, width, _) = np.empty((len(frames), *images.shape[1:]), images.dtype), images.shape[1:]
    for y, (image, top, left, mirrored, *hidden) in zip(pictures, frames.tolist(), strict=True):
        p, q = abs(top), abs(left)
        padded = np.pad(images[image], ((p, p), (q, q), (0, 0)), mode="reflect" if reflect else "constant")
        cut = padded[p + top : p + top + height]
        y[...] = cut[:, q + left : q + left + width][:, :: -1 if mirrored else 1]
        y[slice(*hidden[:2]), slice(*hidden[2:])] = 0
    return pictures


@settings(max_examples=200)
@given(size=SIZES, n=st.integers(0, 5), dtype=DTYPES, reflect=st.booleans(), far=st.sampled_from([0.3, 1.0, 2.5]),
       seed=st.integers(0, 999), displace=st.booleans())  # fmt: skip
def test_pictures(native, displaced, size, n, dtype, reflect, far, seed, displace):
    images = drawn(3, size, dtype)
    frames = frames_of(n, images, seed, min(far, 1.0) if reflect else far)
    expected = expected_of(images, frames, reflect)
    given_images = displaced(images) if displace else images
    for framed in (native.framed, get_numpy_backend().framed, lambda *a: Operations.framed(get_numpy_backend(), *a)):
        pictures = framed(given_images, frames, reflect)
        assert pictures.dtype == images.dtype and pictures.flags.c_contiguous and pictures.flags.writeable
        assert np.array_equal(pictures, expected)


@pytest.mark.parametrize("reflect", [False, True])
def test_pixels_of_any_number_of_bytes(native, reflect):
    for channels in range(1, 35):
        images = drawn(5, (4, 9, channels), "uint8")
        frames = frames_of(60, images, channels)
        assert np.array_equal(native.framed(images, frames, reflect), expected_of(images, frames, reflect))


def test_images_of_any_strides(native):
    images = drawn(8, (9, 7, 3), "uint8")
    frames = frames_of(20, images, 0)
    expected = native.framed(images, frames, True)
    others = np.repeat(images, 2, axis=1)[:, ::2], np.asfortranarray(images), np.flip(np.flip(images, 2).copy(), 2)
    assert all(np.array_equal(native.framed(other, frames, True), expected) for other in others)


def test_a_batch_of_strided_images_copies_no_more_than_itself(native):
    images = np.zeros((4000, 16, 32, 3), "uint8")[:, :, ::2]
    frames = frames_of(2, images, 0)
    native.framed(images, frames, False)
    tracemalloc.start()
    native.framed(images, frames, False)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20_000 < images.nbytes


def test_every_bit_is_copied(native):
    """Those of a NaN, too."""
    bits = np.random.default_rng(0).integers(0, 1 << 64, (2, 3, 5, 3), "uint64")
    images, frames = bits.view("float64"), frames_of(9, bits, 1)
    assert np.array_equal(native.framed(images, frames, True).view("uint64"), expected_of(bits, frames, True))


@pytest.mark.parametrize(
    ("name", "value"),
    [("image", -1), ("image", 3), ("top", 4), ("top", -4), ("left", 5), ("left", -(1 << 62)), ("mirrored", 2),
     ("first_row", -1), ("end_row", 5), ("first_column", -1), ("end_column", 6)],
)  # fmt: skip
def test_frames_that_no_kernel_can_follow(native, name, value):
    frames = np.zeros(2, FRAME)
    frames[name][1] = value
    with pytest.raises(nn.DataError, match=r"too far out of 3 images \(4, 5, 1\)"):
        native.framed(np.zeros((3, 4, 5, 1), "uint8"), frames, True)


@pytest.mark.parametrize("frames", [np.zeros((2, 2), FRAME), np.zeros(2)], ids=str)
def test_what_is_no_vector_of_frames(native, frames):
    with pytest.raises(nn.DataError, match="frames must be a vector"):
        native.framed(np.zeros((3, 4, 5, 1), "uint8"), frames, False)


def test_far_away_everything_is_zero(native):
    frames = np.zeros(4, FRAME)
    frames["top"], frames["left"] = (1 << 40, -(1 << 40), 0, 0), (0, 0, 1 << 40, -(1 << 40))
    frames["mirrored"] = 0, 1, 0, 1
    assert not native.framed(np.ones((1, 4, 5, 3), "float32"), frames, False).any()


def test_objects_never_reach_the_kernel(native):
    images = np.array([[[[object()], [None]]]])
    assert native.framed(images, np.zeros(1, FRAME), False)[0, 0, 0, 0] is images[0, 0, 0, 0]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_data_set_gives_the_same_batches_with_both_kernels(native, threads):
    nn.set_num_threads(threads)
    data = nn.data.shapes(n=50, seed=1).train
    kinds = RandomFlip(), RandomCrop(3), AlternatingFlip(), RandomCrop(2, mode="reflect"), Cutout(5), Cutout(9), RandomFlip()
    batches = {}
    for kernels in ("numpy", "native"):
        nn.set_kernels(kernels)
        batches[kernels] = list(data.augmented(*kinds).batches(16, epoch=2, seed=3))
    for (x, t), (y, u) in zip(*batches.values(), strict=True):
        assert np.array_equal(x, y) and np.array_equal(t, u)
