"""Data sets: found, downloaded, checked and iterated in seeded, augmented batches."""

from nnlite.data.augment import AlternatingFlip, Augmentation, Cutout, RandomCrop, RandomFlip, mirror, views
from nnlite.data.cifar import cifar10, parse_cifar_binary
from nnlite.data.dataset import Dataset, Datasets, balanced_class_weight
from nnlite.data.files import cache_folder
from nnlite.data.folders import folder
from nnlite.data.idx import fashion_mnist, mnist, parse_idx
from nnlite.data.images import ImageFiles
from nnlite.data.shards import npz_shards
from nnlite.data.stored import as_stored
from nnlite.data.synthetic import shapes

__all__ = [
    "AlternatingFlip",
    "Augmentation",
    "Cutout",
    "Dataset",
    "Datasets",
    "ImageFiles",
    "RandomCrop",
    "RandomFlip",
    "as_stored",
    "balanced_class_weight",
    "cache_folder",
    "cifar10",
    "fashion_mnist",
    "folder",
    "mirror",
    "mnist",
    "npz_shards",
    "parse_cifar_binary",
    "parse_idx",
    "shapes",
    "views",
]
