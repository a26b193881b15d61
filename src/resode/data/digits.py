"""The 1,797 handwritten digits of 8x8 pixels in the package (source and licence: assets/README.md).

Grey levels 0 to 16 are scaled to 0 to 255; the last 360 images (20 %) are the test set.
"""

import gzip
from importlib import resources
from typing import Final

import numpy as np

from resode.data.images import Dataset, Images

TEST: Final = 360  # test images


def read() -> Dataset:
    """1,437 training and 360 test images, `(N, 8, 8, 1)`."""
    packed = resources.files("resode.data").joinpath("assets", "digits.csv.gz").read_bytes()
    table = np.loadtxt(gzip.decompress(packed).decode().splitlines(), delimiter=",", dtype=np.int64)
    pixels = ((table[:, :64] * 255 + 8) // 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, 64]
    for array in (pixels, labels):
        array.flags.writeable = False
    train, test = Images.of(pixels[:-TEST], labels[:-TEST]), Images.of(pixels[-TEST:], labels[-TEST:])
    return Dataset.of("digits", [str(digit) for digit in range(10)], train, test)
