"""Matching: classes of a data set are found among those of a network by name, whatever their order."""

import numpy as np
import pytest

from resode.data import Images
from resode.data.matching import class_order, image_size
from resode.errors import InputError


def test_classes_are_matched_by_name_without_case_and_punctuation():
    order = class_order("pets", ["big Dog", "cat", "Fish"], ["fish", "big_dog", "cat"])
    assert order.index.tolist() == [1, 2, 0]
    assert order.note == ""
    images = Images.of(np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 2, 2]))
    assert order.relabel(images).labels.tolist() == [1, 0, 0]


def test_equal_classes_leave_the_images_as_they_are():
    images = Images.of(np.zeros((1, 2, 2, 1), np.uint8), np.array([1]))
    assert class_order("pets", ["cat", "dog"], ["cat", "dog"]).relabel(images) is images


def test_numbers_for_names_match_by_number_and_give_a_note():
    order = class_order("pets", ["dog", "cat"], ["0", "1"])
    assert order.index.tolist() == [0, 1]
    assert order.note.startswith("pets: ")
    assert class_order("pets", ["0", "1"], ["0", "1"]).note == ""


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["cat"], "has 2 classes, the network has 1"),
        (["cat", "cow"], "its class 'dog' is none of the network's"),
    ],
)
def test_other_classes_are_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        class_order("pets", ["cat", "dog"], wanted)


def test_images_are_resized_to_a_square_input_of_another_size():
    assert image_size("cifar10", (32, 32)) is None
    assert image_size("cifar10", (64, 64)) == 64
    assert image_size("cifar10", (64, 32)) is None
    assert image_size("some/folder", (32, 32)) == 32
