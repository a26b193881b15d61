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


def test_equal_names_match_whatever_the_order_of_their_folders():
    wanted = [str(number) for number in range(12)]
    found = sorted(wanted)  # 0, 1, 10, 11, 2, ...: folders, sorted as text
    assert class_order("numbers", found, wanted).index.tolist() == [int(name) for name in found]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (["C", "C++", "C#"], ["C#", "C", "C++"]),
        (["+", "-"], ["-", "+"]),
        (["-1", "1"], ["1", "-1"]),
        (["\N{CAT FACE}", "\N{DOG FACE}"], ["\N{DOG FACE}", "\N{CAT FACE}"]),
        (["a", "A"], ["A", "a"]),
    ],
)
def test_names_that_differ_in_case_or_punctuation_alone_stay_apart(found, wanted):
    assert [wanted[i] for i in class_order("x", found, wanted).index] == found
    with pytest.raises(InputError, match="are not the network's"):  # without them they cannot be told apart
        class_order("x", [f" {name}" for name in found], wanted)


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        (["cat", "dog"], ["cat"], "has 2 classes, the network has 1"),
        (["cat", "dog"], ["cat", "cow"], r"its classes .cat, dog. are not the network's .cat, cow."),
        (["dog", "cat"], ["0", "1"], "--classes by-position if class i of the data is logit i"),
        (["0", "1"], ["1", "2"], "are not the network's"),
    ],
)
def test_other_classes_are_refused(found, wanted, message):
    with pytest.raises(InputError, match=message):
        class_order("pets", found, wanted)


def test_assumed_names_match_by_position_and_say_so():
    order = class_order("pets", ["dog", "cat"], ["0", "1"], assumed=True)
    assert (order.index.tolist(), "are assumed" in order.note) == ([0, 1], True)
    order = class_order("pets", ["1", "0"], ["0", "1"], assumed=True)
    assert (order.index.tolist(), order.note) == ([1, 0], "")


def test_classes_match_by_position_where_the_user_says_so():
    order = class_order("pets", ["dog", "cat"], ["0", "1"], "by-position")
    assert (order.index.tolist(), "by position" in order.note) == ([0, 1], True)


def test_classes_match_by_a_mapping():
    order = class_order(
        "pets", ["puma", "poodle", "lion"], ["dog", "cat"], {"puma": "cat", "poodle": "dog", "lion": "cat"}
    )
    assert order.index.tolist() == [1, 0, 1]
    assert "puma -> cat" in order.note
    with pytest.raises(InputError) as error:
        class_order("pets", ["puma", "poodle"], ["dog", "cat"], {"puma": "cta"})
    assert error.value.messages == (
        "pets: the mapping lacks its class 'poodle'",
        "pets: 'cta' is no class of the network; did you mean 'cat'?",
    )
    with pytest.raises(InputError, match="not 'by-nam'"):
        class_order("pets", ["dog"], ["dog"], "by-nam")


def test_images_are_resized_to_a_square_input_of_another_size():
    assert image_size("cifar10", (32, 32)) is None
    assert image_size("cifar10", (64, 64)) == 64
    assert image_size("cifar10", (64, 32)) is None
    assert image_size("some/folder", (32, 32)) == 32
