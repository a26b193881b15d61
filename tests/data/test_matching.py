"""Matching: classes of a data set are found among those of a network by name, whatever their order."""

import numpy as np
import pytest

from resode.data import Images
from resode.data.matching import class_order, image_size, read_how
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
    with pytest.raises(
        InputError, match="are not the network's"
    ):  # without case and punctuation they are equal
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
    assert (order.index.tolist(), "are assumed" in order.note, order.how) == ([0, 1], True, "assumed")
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


def test_data_may_lack_classes_of_equal_names_alone():
    order = class_order("pets", ["fish", "cat"], ["cat", "dog", "fish"])
    assert (order.index.tolist(), order.note) == ([2, 0], "pets: has 2 of the network's 3 classes")
    with pytest.raises(InputError, match="are not the network's"):
        class_order("pets", ["Fish", "cat"], ["cat", "dog", "fish"])
    with pytest.raises(InputError, match="are not the network's"):
        class_order("pets", ["fish", "cow"], ["0", "1", "2"], assumed=True)


def test_a_file_maps_names_as_they_are_written(tmp_path):
    file = tmp_path / "names.yaml"
    file.write_text("puma: cat\nyes: no\n01: 1.0\n")
    assert read_how(str(file)) == {"puma": "cat", "yes": "no", "01": "1.0"}
    json_file = tmp_path / "names.json"
    json_file.write_text('{"puma": "cat", "\\ud83d\\udc31": "c#"}')
    assert read_how(str(json_file)) == {"puma": "cat", "\N{CAT FACE}": "c#"}
    assert (read_how("by-name"), read_how("by-position")) == ("by-name", "by-position")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("by-nam", None, "No such file.*did you mean 'by-name'"),
        ("a.yaml", "puma: cat\npuma: dog\n", "names 'puma' twice"),
        ("a.json", '{"puma": "cat", "puma": "dog"}', "names 'puma' twice"),
        ("a.yaml", "- puma\n", "is no mapping from names to names"),
        ("a.yaml", "puma: [cat]\n", "is no mapping from names to names"),
        ("a.yaml", "", "is no mapping"),
        ("a.json", "[1]", "is no mapping"),
        ("a.json", "{", "is no YAML or JSON"),
        ("a.yaml", "a: b: c", "is no YAML or JSON"),
    ],
)
def test_a_file_that_maps_nothing_is_refused(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_how(name)
