"""Given data: the same images in any form are the same data set; what is none is refused in one line."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from resode.data import Loader, channel_statistics, dataset_of
from resode.data.given import labelled
from resode.errors import InputError

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (12, 5, 6, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3
FIRST = np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))


class Pairs:
    """A map-style Dataset of one's own."""

    classes = ("cat", "dog", "eel")

    def __init__(self, images, labels=LABELS):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, position):
        return self.images[position], self.labels[position]


class Endless(IterableDataset):
    def __iter__(self):
        yield PIXELS[0], 0


SAME = {
    "channels last": (PIXELS, LABELS),
    "channels first": (FIRST, LABELS),
    "tensors": (torch.from_numpy(FIRST), torch.from_numpy(LABELS)),
    "lists of labels": [PIXELS, LABELS.tolist()],
    "TensorDataset": TensorDataset(torch.from_numpy(FIRST), torch.from_numpy(LABELS)),
    "a part of one": Subset(TensorDataset(torch.from_numpy(FIRST), torch.from_numpy(LABELS)), range(12)),
}


@pytest.mark.parametrize("form", SAME)
def test_the_same_images_in_any_form_have_the_same_fingerprint(form):
    found = dataset_of(SAME[form])
    assert found.fingerprint == dataset_of((PIXELS, LABELS)).fingerprint
    assert np.array_equal(found.train.pixels, PIXELS)
    assert found.test is None
    assert found.classes == ("0", "1", "2")
    assert found.name.endswith("given in Python")


@pytest.mark.parametrize(
    "images", [[Image.fromarray(image) for image in PIXELS], list(PIXELS), list(torch.from_numpy(FIRST))]
)
def test_items_may_be_pil_images_arrays_and_tensors_and_classes_have_their_names(images):
    found = dataset_of(Pairs(images))
    assert np.array_equal(found.train.pixels, PIXELS)
    assert found.classes == Pairs.classes


@pytest.mark.parametrize(
    "data",
    [
        (PIXELS, LABELS, PIXELS[:4], LABELS[:4]),
        ((PIXELS, LABELS), (PIXELS[:4], LABELS[:4])),
        (Pairs(PIXELS), Pairs(PIXELS[:4])),
    ],
)
def test_a_test_pair_is_the_test_split(data):
    assert np.array_equal(dataset_of(data).test.pixels, PIXELS[:4])


def test_a_shape_that_reads_both_ways_is_channels_last_in_arrays_and_first_in_tensors():
    array = DRAW.integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    assert np.array_equal(dataset_of((array, [0, 1])).train.pixels, array)
    moved = dataset_of((torch.from_numpy(array), [0, 1])).train.pixels
    assert np.array_equal(moved, array.transpose(0, 2, 3, 1))


def test_grey_images_need_no_channel():
    assert dataset_of((PIXELS[..., 0], LABELS)).train.pixels.shape == (12, 5, 6, 1)


def batches(data, index, **options):
    mean, std = channel_statistics(data.train, index)
    return Loader(data.train, index, batch_size=12, mean=mean, std=std, device="cpu", **options)


def test_floats_from_0_to_1_give_the_inputs_of_the_pixels_they_come_from():
    index = np.arange(12)
    plain, floats = dataset_of((PIXELS, LABELS)), dataset_of((PIXELS / 255.0, LABELS))
    assert floats.train.pixels.dtype == np.float32
    expected, found = (next(iter(batches(data, index))).inputs for data in (plain, floats))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # float32 rounds the pixels


def test_floats_of_any_range_are_normalised_and_kept():
    values = DRAW.normal(7.0, 40.0, PIXELS.shape)
    data = dataset_of((values, LABELS))
    before, loader = data.train.pixels.copy(), batches(data, np.arange(12))
    for _ in range(2):  # a second pass sees the same images
        inputs = next(iter(loader)).inputs
        assert inputs.mean((0, 2, 3)).abs().max() < 1e-5
        assert (inputs.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    assert np.array_equal(data.train.pixels, before)


def test_floats_are_cropped_and_mirrored_like_pixels():
    from resode.data import Augmentation

    augmentation = Augmentation(crop=1, flip=True)
    plain, floats = dataset_of((PIXELS, LABELS)), dataset_of((PIXELS.astype(np.float32), LABELS))
    for data in (plain, floats):  # the same draws, which depend on the content
        object.__setattr__(data.train, "digests", plain.train.digests)
    options = {"batch_size": 12, "device": "cpu", "augmentation": augmentation}
    expected = Loader(plain.train, np.arange(12), mean=(0.5,) * 3, std=(0.2,) * 3, **options).batch(0, 0)
    scaled = {"mean": (127.5,) * 3, "std": (51.0,) * 3}
    found = Loader(floats.train, np.arange(12), **scaled, **options).batch(0, 0)
    assert torch.equal(found.targets, expected.targets)
    torch.testing.assert_close(found.inputs, expected.inputs, rtol=1e-5, atol=1e-5)


def test_arrays_to_evaluate_may_lack_classes():
    found = labelled((PIXELS[:2], [2, 2]), "test", ("a", "b", "c"))
    assert found.classes == ("0", "1", "2")
    with pytest.raises(
        InputError, match="label 3 of image 1 is out of range; the network has classes 0 to 2"
    ):
        labelled((PIXELS[:2], [2, 3]), "test", ("a", "b", "c"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"data cannot be None; give arrays \(images, labels\).*Dataset.*folder.*name"),
        (3, "data cannot be of type int"),
        (PIXELS, "images without labels"),
        ((PIXELS, LABELS, PIXELS), "a tuple of 3"),
        (DataLoader(TensorDataset(torch.zeros(2, 1, 2, 2))), "loader.dataset"),
        (Endless(), "an iterable torch Dataset"),
        ((LABELS, PIXELS), "images: have dtype int64"),
        ((PIXELS.astype(np.int64), LABELS), r"images: have dtype int64; give uint8"),
        ((PIXELS > 9, LABELS), "images: have dtype bool"),
        ((PIXELS.reshape(12, -1), LABELS), r"have shape \(12, 90\); give \(N, H, W\)"),
        ((np.zeros((2, 4, 4, 4), np.uint8), [0, 1]), "C = 1 or 3 channels"),
        ((PIXELS[:0], LABELS[:0]), "images: there is none"),
        ((np.full((2, 4, 4), np.nan), [0, 1]), "NaN"),
        (([[1], [1, 2], [3]], [0, 1, 1]), "no common shape"),
        (([object()], [0]), "no array of real numbers"),
        ((PIXELS, LABELS[:-1]), "12 images and 11 labels"),
        ((PIXELS, np.eye(3)[LABELS]), r"one class number for each image: labels.argmax\(1\)"),
        ((PIXELS, LABELS[:, None]), r"shape \(12, 1\); .*: labels\[:, 0\]"),
        ((PIXELS, LABELS + 900_000), "no training image of class '0'"),
        ((PIXELS.astype(complex), LABELS), "an array of complex128 is no array of real numbers"),
        ((PIXELS[:, :0], LABELS), "images: there is none"),
        ((torch.zeros(2, 1, 4, 4, device="meta"), [0, 1]), "has no values"),
        ((torch.ones(2, 1, 4, 4).to_sparse(), [0, 1]), "is sparse"),
        ((PIXELS, LABELS.astype(float)), r"labels: have dtype float64; give whole numbers"),
        ((PIXELS, ["a", "b", "c"] * 4), "return_inverse"),
        ((PIXELS, LABELS - 1), "-1 is no class"),
        ((PIXELS, LABELS + 1), "begin at 1"),
        ((PIXELS, LABELS * 10**8), "number the classes"),
        ((PIXELS, LABELS * 2), "no training image of class '1', '3'"),
        ((PIXELS, LABELS, PIXELS[:, :4], LABELS), "make them equal"),
        (Pairs([{"image": 1}] * 12), "image 0 is of type dict"),
        (Pairs([PIXELS[0], PIXELS[0, :4]], [0, 1]), "image 1 has shape"),
        (Pairs(PIXELS, ["cat"] * 12), "labels: have dtype <U3"),
        (Pairs([]), "is empty"),
        (TensorDataset(torch.zeros(2, 1, 2, 2)), "item 0 is 1 values; give a Dataset of pairs"),
        ("digts", "did you mean 'digits'"),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(data, message):
    with pytest.raises(InputError, match=message) as error:
        dataset_of(data)
    assert len(error.value.messages) == 1
