import numpy as np
import pytest

from resode.data import Dataset, Images
from resode.data.images import digests
from resode.errors import InputError
from tests.data.conftest import random_pixels

LABELS = np.array([0, 1, 2, 0, 1, 2])


def dataset(pixels=None, labels=LABELS, classes=("a", "b", "c"), test=None) -> Dataset:
    return Dataset.of(
        "some", classes, Images.of(random_pixels(6) if pixels is None else pixels, labels), test
    )


def test_a_digest_sees_every_pixel_the_label_and_the_shape():
    pixels = random_pixels(1)
    first = digests(pixels, np.array([0]))
    other = pixels.copy()
    other[0, 7, 7, 2] ^= 1
    assert digests(other, np.array([0])) != first
    assert digests(pixels, np.array([1])) != first
    assert digests(pixels.reshape(1, 4, 16, 3), np.array([0])) != first
    assert digests(pixels.copy(), np.array([0])) == first


def test_digests_do_not_depend_on_how_many_are_hashed_at_a_time(monkeypatch):
    pixels, labels = random_pixels(10, side=2), np.arange(10)
    whole = digests(pixels, labels)
    monkeypatch.setattr("resode.data.images._CHUNK", 3)
    assert np.array_equal(digests(pixels, labels), whole)


def test_the_fingerprint_forgets_order_and_nothing_else():
    pixels = random_pixels(6)
    order = [3, 1, 5, 0, 2, 4]
    first = dataset(pixels).fingerprint
    assert dataset(pixels[order], LABELS[order]).fingerprint == first
    assert dataset(pixels, LABELS[order]).fingerprint != first
    assert dataset(pixels, classes=("a", "b", "d")).fingerprint != first
    assert dataset(pixels, test=Images.of(pixels, LABELS)).fingerprint != first
    assert len(first) == 64


def test_train_and_test_are_told_apart():
    one, two = Images.of(random_pixels(6), LABELS), Images.of(random_pixels(6, seed=1), LABELS)
    classes = ("a", "b", "c")
    assert Dataset.of("x", classes, one, two).fingerprint != Dataset.of("x", classes, two, one).fingerprint


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (np.zeros((2, 8, 8), np.uint8), [0, 1], "do not match"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0, 1, 2], "do not match"),
        (np.zeros((2, 8, 8, 3), np.uint8), [0.0, 1.0], "do not match"),
        (np.zeros((2, 8, 8, 2), np.uint8), [0, 1], r"give uint8 or float32 \(N, H, W, 1 or 3\)"),
        (np.zeros((2, 8, 8, 3), np.float64), [0, 1], r"give uint8 or float32 \(N, H, W, 1 or 3\)"),
    ],
)
def test_wrong_shapes_and_types_are_named(pixels, labels, message):
    with pytest.raises(InputError, match=message):
        Images.of(pixels, np.array(labels))


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, 2, 0, 1, 3], "abc", "label 3 of training image 5 is out of range; 3 classes are 0 to 2"),
        ([0, 1, 2, 0, -1, 2], "abc", "label -1 of training image 4"),
        ([0, 0, 2, 0, 2, 2], "abc", "no training image of class 'b'"),
        ([0, 1, 2, 0, 1, 2], "", "has no class"),
        ([0, 1, 2, 0, 1, 2], "aba", "several classes are called 'a'"),
        ([1, 2, 3, 1, 2, 3], "abc", "its labels run from 1 to 3; subtract 1, the first class is 0"),
        ([1, 2, 3, 1, 2, 3], "abcd", "no training image of class 'a'"),
        ([2, 3, 2, 3, 2, 3], "0123", "no training image of class '0', '1'"),
        ([1, 2, 3, 1, 2, 3], "0123", "its labels run from 1 to 3; subtract 1, the first class is 0"),
    ],
)
def test_labels_and_classes_must_fit(labels, classes, message):
    with pytest.raises(InputError, match=message):
        dataset(labels=np.array(labels), classes=tuple(classes))


def test_both_splits_have_one_shape():
    with pytest.raises(InputError, match="make them equal"):
        dataset(test=Images.of(random_pixels(6, side=4), LABELS))
