"""Data: from files, folders and the hub to augmented batches on the device.

`load` gives a `Dataset`; `validation_split` and `channel_statistics` prepare it; a `Loader` makes batches.
"""

from resode.data.augment import Augmentation
from resode.data.images import Dataset, Images
from resode.data.loading import Batch, Loader
from resode.data.picture import decode, fit
from resode.data.sources import load, sources
from resode.data.splits import channel_statistics, validation_split
from resode.data.warped import warped

__all__ = [
    "Augmentation",
    "Batch",
    "Dataset",
    "Images",
    "Loader",
    "channel_statistics",
    "decode",
    "fit",
    "load",
    "sources",
    "validation_split",
    "warped",
]
