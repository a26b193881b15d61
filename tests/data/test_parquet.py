import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resode.data import load
from resode.errors import InputError, IntegrityError
from tests.data.conftest import encoded, random_pixels, write_parquet

PIXELS = random_pixels(6)
FILES = [encoded(image) for image in PIXELS]
LABELS = [0, 1, 0, 1, 0, 1]


def test_the_container_does_not_matter(parquet_folder, class_folder):
    assert load(str(parquet_folder)).fingerprint == load(str(class_folder)).fingerprint


def test_text_labels_are_classes_sorted_by_name(parquet_folder):
    data = load(str(parquet_folder))
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [1, 0, 0, 1, 1, 0]
    assert data.test.labels.tolist() == [1, 0]


def test_bare_numbers_are_classes(tmp_path):
    write_parquet(tmp_path / "train.parquet", FILES, label=LABELS)
    data = load(str(tmp_path))
    assert data.classes == ("0", "1")
    assert np.array_equal(data.train.pixels, PIXELS)
    assert data.train.labels.tolist() == LABELS
    assert data.test is None


def with_class_names(path, names):
    table = pq.read_table(path)
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path
    )


def test_class_names_come_from_the_metadata(tmp_path):
    path = write_parquet(tmp_path / "train-0.parquet", FILES, label=LABELS)
    with_class_names(path, ["cat", "dog"])
    assert load(str(tmp_path)).classes == ("cat", "dog")
    with_class_names(path, ["cat", "dog", "emu"])
    with pytest.raises(InputError, match="no training image of class 'emu'"):
        load(str(tmp_path))
    with_class_names(path, ["cat"])
    with pytest.raises(InputError, match="label 1 of training image 1 is out of range"):
        load(str(tmp_path))
    with_class_names(path, None)
    assert load(str(tmp_path)).classes == ("0", "1")


def test_class_lists_in_another_order_are_mapped_by_name(tmp_path):
    with_class_names(
        write_parquet(tmp_path / "train-0.parquet", FILES[:4], label=[0, 1, 0, 1]), ["cat", "dog"]
    )
    with_class_names(write_parquet(tmp_path / "train-1.parquet", FILES[4:], label=[0, 0]), ["dog", "cat"])
    with_class_names(write_parquet(tmp_path / "test-0.parquet", FILES[:2], label=[1, 0]), ["dog", "cat"])
    data = load(str(tmp_path))
    assert data.train.labels.tolist() == [0, 1, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 1]


def test_another_class_list_is_refused(tmp_path):
    with_class_names(write_parquet(tmp_path / "train-0.parquet", FILES, label=LABELS), ["cat", "dog"])
    test = write_parquet(tmp_path / "test-0.parquet", FILES[:2], label=[1, 0])
    with_class_names(test, ["cat", "emu"])
    with pytest.raises(
        InputError, match=r"test-0.parquet: its class list differs .* .'emu' is none of its 2"
    ):
        load(str(tmp_path))
    with_class_names(test, ["dog"])
    with pytest.raises(InputError, match="label 1 is out of range; its 1 classes are 0 to 0"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (["train.parquet", "test.parquet"], "test"),
        (["train-00000-of-00001-abcdef.parquet", "validation-00000-of-00001.parquet"], "test"),
        (["Train_0.parquet", "val_0.parquet"], "test"),
        (["data/train-0.parquet", "data/test-0.parquet"], "test"),
        (["set/train/0000.parquet", "set/test/0000.parquet"], "test"),
        (["train/0000.parquet", "validation/0000.parquet"], "test"),
        (["train-0.parquet", "unlabeled-0.parquet"], None),
        (["train-0.parquet", ".test-0.parquet"], None),
        (["train-0.parquet", "testing-0.parquet"], None),
    ],
)
def test_files_are_told_apart_by_name(tmp_path, names, split):
    write_parquet(tmp_path / names[0], FILES[:4], label=LABELS[:4])
    write_parquet(tmp_path / names[1], FILES[4:], label=LABELS[4:])
    data = load(str(tmp_path))
    assert np.array_equal(data.train.pixels, PIXELS[:4])
    assert (data.test is not None) == (split is not None)


def test_test_files_go_before_validation_files(tmp_path):
    for name, rows in (("train", FILES[:3]), ("validation", FILES[3:5]), ("test", FILES[5:])):
        write_parquet(tmp_path / f"{name}.parquet", rows, label=[0] * len(rows))
    assert np.array_equal(load(str(tmp_path)).test.pixels, PIXELS[5:])


def test_files_without_a_role_or_with_several_sets(tmp_path):
    write_parquet(tmp_path / "a" / "0000.parquet", FILES, label=LABELS)
    with pytest.raises(InputError, match=r"has no training file \(0000\.parquet\); name it train"):
        load(str(tmp_path / "a"))
    for name in ("one", "two"):
        write_parquet(tmp_path / "b" / name / "train.parquet", FILES, label=LABELS)
    with pytest.raises(InputError, match=r"holds several data sets \(.*one, .*two\); name one"):
        load(str(tmp_path / "b"))
    assert len(load(str(tmp_path / "b" / "two")).train) == 6


def test_fine_labels_are_preferred(tmp_path):
    write_parquet(tmp_path / "train.parquet", FILES, coarse_label=[0] * 6, fine_label=LABELS)
    assert load(str(tmp_path)).train.labels.tolist() == LABELS


def test_a_single_column_may_have_any_name(tmp_path):
    kind = pa.dictionary(pa.int32(), pa.string())
    animals = pa.array(["cat", "dog"] * 3).cast(kind)
    table = pa.table({"picture": pa.array(FILES, pa.large_binary()), "animal": animals, "weight": [0.5] * 6})
    pq.write_table(table, tmp_path / "train.parquet")
    data = load(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert np.array_equal(data.train.pixels, PIXELS)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": pa.array(FILES, pa.binary())}, "has no label column of a known type; it has img"),
        ({"label": LABELS}, "has no image column of a known type; it has label"),
        (
            {"img": pa.array(FILES, pa.binary()), "a": LABELS, "b": LABELS},
            "any of a, b could be the label column",
        ),
        (
            {"x": pa.array(FILES, pa.binary()), "y": pa.array(FILES, pa.binary()), "label": LABELS},
            "any of x, y could be the image column; rename it to 'image'",
        ),
        ({"img": pa.array(FILES, pa.binary()), "label": [0, 1, None, 1, 0, 1]}, "1 rows have no 'label'"),
        (
            {"img": pa.array(FILES, pa.binary()), "label": [0, 1, 10**9, 1, 0, 1]},
            "label 1000000000 is out of range",
        ),
        (
            {"img": pa.array(FILES, pa.binary()), "label": pa.array([0, 1, 2**63, 1, 0, 1], pa.uint64())},
            "label 9223372036854775808 is out of range",
        ),
        ({"img": pa.array(FILES, pa.binary()), "label": [0, 1, -1, 1, 0, 1]}, "label -1 of training image 2"),
        (
            {"img": pa.array(FILES, pa.binary()), "label": [0, 1, 3, 1, 0, 1]},
            "no training image of class '2'",
        ),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=message):
        load(str(tmp_path))


def test_a_file_with_other_columns_is_named(tmp_path):
    write_parquet(tmp_path / "train.parquet", FILES, label=LABELS)
    write_parquet(tmp_path / "test.parquet", FILES, category=LABELS)
    with pytest.raises(
        InputError, match=r"test\.parquet lacks column 'img' or 'label'; it has img, category"
    ):
        load(str(tmp_path))


def test_a_class_that_only_the_test_files_have(tmp_path):
    write_parquet(tmp_path / "train.parquet", FILES, label=["cat", "dog"] * 3)
    write_parquet(tmp_path / "test.parquet", FILES[:1], label=["emu"])
    with pytest.raises(InputError, match="class 'emu' is not among the training images"):
        load(str(tmp_path))


def test_a_bad_image_is_named_by_its_row(tmp_path):
    write_parquet(tmp_path / "train.parquet", [*FILES[:4], b"", FILES[5][:50]], label=LABELS)
    with pytest.raises(InputError, match=r"train\.parquet row 4 is not an image"):
        load(str(tmp_path))
    data = load(str(tmp_path), on_bad_image="skip")
    assert [line.split("parquet ")[-1][:5] for line in data.skipped] == ["row 4", "row 5"]
    assert np.array_equal(data.train.pixels, PIXELS[:4])


@pytest.mark.parametrize("damage", ["truncated", "no parquet", "empty"])
def test_a_corrupt_file_is_an_integrity_error(tmp_path, damage):
    path = write_parquet(tmp_path / "train.parquet", FILES, label=LABELS)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-20], "no parquet": b"x" * 1000, "empty": b""}[damage])
    with pytest.raises(IntegrityError, match=r"train\.parquet: truncated or corrupt parquet file"):
        load(str(tmp_path))


def test_damage_inside_of_a_file_is_an_integrity_error(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", FILES, label=LABELS)
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(255 - byte for byte in content[4:40])
    path.write_bytes(content)
    with pytest.raises(IntegrityError):
        load(str(tmp_path))
