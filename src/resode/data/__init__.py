"""Data: from files, folders and the Hugging Face hub to augmented batches on the device.

`load` returns a `Dataset`; `validation_split` and `channel_statistics` prepare it; a `Loader` makes batches.
"""

from resode.data.affine import random_affine
from resode.data.augment import Augmentation
from resode.data.folder_split import FolderSplit
from resode.data.given import dataset_of
from resode.data.image_file import decode, resize_and_crop
from resode.data.images import Dataset, Images
from resode.data.loader import Batch, Loader
from resode.data.sources import load, sources
from resode.data.splits import channel_statistics, validation_split

__all__ = [
    "Augmentation",
    "Batch",
    "Dataset",
    "FolderSplit",
    "Images",
    "Loader",
    "channel_statistics",
    "dataset_of",
    "decode",
    "load",
    "random_affine",
    "resize_and_crop",
    "sources",
    "validation_split",
]
