import shutil

import numpy as np
import pytest

from resode.data import FolderSplit, load
from resode.errors import InputError, IntegrityError
from tests.data.conftest import encoded, random_pixels, write_images

PIXELS = random_pixels(8)


def test_classes_are_the_folders_by_name(class_folder):
    data = load(str(class_folder))
    assert data.classes == ("cat", "dog")
    assert np.array_equal(data.train.pixels, PIXELS[:6])
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(data.test.pixels, PIXELS[6:])
    assert data.name == str(class_folder)


def test_without_test_images_there_is_no_test_split(class_folder):
    shutil.rmtree(class_folder / "test")
    assert load(str(class_folder)).test is None


@pytest.mark.parametrize("train", ["Train", "training", "TRAINING"])
@pytest.mark.parametrize("test", ["Test", "testing", "valid", "Val", "VALIDATION"])
def test_usual_names_of_the_parts_are_known(class_folder, train, test):
    whole = load(str(class_folder)).fingerprint
    (class_folder / "train").rename(class_folder / train)
    (class_folder / "test").rename(class_folder / test)
    data = load(str(class_folder))
    assert (data.fingerprint, data.notes) == (whole, ())


@pytest.mark.parametrize(("one", "other"), [("train", "Training"), ("test", "Testing"), ("val", "valid")])
def test_two_names_of_one_part_are_refused(class_folder, one, other):
    for name in (one, other):
        (class_folder / name).mkdir(exist_ok=True)
    if one == "val":
        shutil.rmtree(class_folder / "test")
    with pytest.raises(InputError, match=rf"holds {other}/ and {one}/|holds {one}/ and {other}/.*rename one"):
        load(str(class_folder))


def test_a_misspelt_test_folder_is_refused_and_any_other_noted(class_folder):
    (class_folder / "test").rename(class_folder / "tests")
    with pytest.raises(InputError, match=r"tests is not a test folder; did you mean 'test'\? \(rename"):
        load(str(class_folder))
    (class_folder / "tests").rename(class_folder / "more")
    assert load(str(class_folder)).notes == (f"{class_folder}: not read: more/",)


def test_validation_images_beside_test_images_are_noted(class_folder):
    shutil.copytree(class_folder / "test", class_folder / "valid")
    assert load(str(class_folder)).notes == (f"{class_folder}: not read: valid/",)


@pytest.mark.parametrize("name", ["__MACOSX", ".ipynb_checkpoints", "@eaDir"])
def test_leftover_folders_are_no_classes(class_folder, flat, name):
    for folder, inside in ((class_folder, "train"), (class_folder, "test"), (class_folder, "."), (flat, ".")):
        before = load(str(folder))
        write_images(folder / inside / name / "cat", PIXELS[:1])
        after = load(str(folder))
        assert after.fingerprint == before.fingerprint
        assert len(after.notes) == 1
        assert f"{name}/" in after.notes[0]


def test_leftover_files_are_no_images(class_folder):
    before = load(str(class_folder)).fingerprint
    for name in ("Thumbs.db", "desktop.ini"):
        (class_folder / "train" / name).write_bytes(b"?")
        (class_folder / "train" / "cat" / name).write_bytes(b"?")
    write_images(class_folder / "train" / "cat" / "@eaDir", PIXELS[:1])
    assert load(str(class_folder)).fingerprint == before


def test_test_images_without_labels_are_for_predict(class_folder):
    next((class_folder / "test" / "cat").iterdir()).rename(class_folder / "test" / "6.png")
    with pytest.raises(InputError, match=r"6\.png is outside a class folder; .*`resode predict`: rename"):
        load(str(class_folder))


def test_a_folder_around_the_data_set_names_it(class_folder, tmp_path):
    (tmp_path / "around").mkdir()
    class_folder.rename(tmp_path / "around" / "images")
    with pytest.raises(InputError, match=r"no data set itself; give the folder in it: .*around/images$"):
        load(str(tmp_path / "around"))


@pytest.mark.parametrize("name", ["val", "validation"])
def test_val_stands_in_for_test(class_folder, name):
    whole = load(str(class_folder)).fingerprint
    (class_folder / "test").rename(class_folder / name)
    assert load(str(class_folder)).fingerprint == whole
    write_images(class_folder / "test" / "cat", PIXELS[:1])
    assert len(load(str(class_folder)).test) == 1


def test_hidden_files_are_ignored_and_folders_searched(class_folder):
    whole = load(str(class_folder)).fingerprint
    (class_folder / "train" / ".DS_Store").write_bytes(b"?")
    (class_folder / "train" / ".thumbnails").mkdir()
    (class_folder / "train" / "cat" / "._0.png").write_bytes(b"?")
    (class_folder / "train" / "cat" / "images").mkdir()
    (class_folder / "train" / "cat" / "0.png").rename(class_folder / "train" / "cat" / "images" / "0.png")
    assert load(str(class_folder)).fingerprint == whole


def test_images_outside_of_the_class_folders(class_folder):
    (class_folder / "train" / "loose.png").write_bytes(encoded(PIXELS[0]))
    with pytest.raises(InputError, match=r"loose\.png is outside a class folder"):
        load(str(class_folder))


def test_a_train_folder_with_images_only(tmp_path):
    write_images(tmp_path / "train", PIXELS)
    with pytest.raises(InputError, match=r"put each image into .*train/<class>/ \(8 such files\)"):
        load(str(tmp_path))


def test_no_class_and_an_empty_class(class_folder, tmp_path):
    (class_folder / "train" / "emu").mkdir()
    with pytest.raises(InputError, match="emu holds no image"):
        load(str(class_folder))
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match="has no class folder"):
        load(str(tmp_path / "empty"))


def test_a_test_class_that_train_does_not_have(class_folder):
    (class_folder / "test" / "dog").rename(class_folder / "test" / "dogs")
    with pytest.raises(InputError, match="dogs is a class that train/ does not have; did you mean 'dog'"):
        load(str(class_folder))


def test_a_test_class_may_be_missing(class_folder):
    shutil.rmtree(class_folder / "test" / "dog")
    assert load(str(class_folder)).test.labels.tolist() == [0]


def test_bad_images_stop_or_are_skipped(class_folder):
    cats = class_folder / "train" / "cat"
    (cats / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"notes\.txt is not an image .*; --on-bad-image skip drops it"):
        load(str(class_folder))
    (cats / "1.png").write_bytes(encoded(PIXELS[1])[:60])
    with pytest.raises(IntegrityError, match=r"1\.png: truncated or corrupt.*; --on-bad-image skip drops it"):
        load(str(class_folder))
    for data in (load(str(class_folder), on_bad_image="skip") for _ in range(2)):  # decoded, and cached
        assert [line.split("/")[-1].split(":")[0].split(" ")[0] for line in data.skipped] == [
            "1.png",
            "notes.txt",
        ]
        assert np.array_equal(data.train.pixels, PIXELS[[0, 2, 3, 4, 5]])
        assert data.train.labels.tolist() == [0, 0, 1, 1, 1]


def test_a_class_that_skipping_empties_is_an_error(class_folder):
    for path in (class_folder / "train" / "dog").iterdir():
        path.write_text("no image")
    with pytest.raises(InputError, match="no training image of class 'dog'"):
        load(str(class_folder), on_bad_image="skip")
    for path in (class_folder / "train" / "cat").iterdir():
        path.write_text("no image")
    with pytest.raises(InputError, match=r"has no image left; .*0\.png is not an image"):
        load(str(class_folder), on_bad_image="skip")


def test_unequal_sizes_need_an_image_size(class_folder):
    (class_folder / "train" / "dog" / "5.png").write_bytes(encoded(np.zeros((9, 8, 3), np.uint8)))
    with pytest.raises(
        InputError, match=r"0\.png is 8x8, .*5\.png is 9x8; give one size: --set data.image_size=32"
    ):
        load(str(class_folder))
    data = load(str(class_folder), image_size=6)
    assert data.train.pixels.shape == (7, 6, 6, 3)
    assert data.test.pixels.shape == (2, 6, 6, 3)


def test_unequal_splits_need_an_image_size(class_folder):
    shutil.rmtree(class_folder / "test")
    write_images(class_folder / "test" / "cat", random_pixels(1, side=9))
    with pytest.raises(
        InputError, match=r"0\.png is 8x8, .*test/cat/0\.png is 9x9; give one size: --set data.image_size=32"
    ):
        load(str(class_folder))


def test_only_if_all_images_are_grey_there_is_one_channel(tmp_path):
    grey, colour = random_pixels(4, channels=1), random_pixels(1)
    write_images(tmp_path / "train" / "a", grey)
    write_images(tmp_path / "test" / "a", grey[:2])
    assert np.array_equal(load(str(tmp_path)).train.pixels, grey)
    write_images(tmp_path / "test" / "a" / "more", colour)
    data = load(str(tmp_path))
    assert np.array_equal(data.train.pixels, np.repeat(grey, 3, axis=3))
    assert np.array_equal(data.test.pixels, np.concatenate([np.repeat(grey[:2], 3, axis=3), colour]))


def test_images_need_not_be_square(tmp_path):
    write_images(tmp_path / "train" / "a", random_pixels(4)[:, :5])
    assert load(str(tmp_path)).train.pixels.shape == (4, 5, 8, 3)
    assert load(str(tmp_path), image_size=4).train.pixels.shape == (4, 4, 4, 3)


# ---------------------------------------------------------------- flat folders


@pytest.fixture
def flat(tmp_path):
    """Three classes of 10, 5 and 1 images, and a list beside them."""
    root = tmp_path / "photos"
    for seed, (name, count) in enumerate({"cat": 10, "dog": 5, "emu": 1}.items()):
        write_images(root / name, random_pixels(count, seed=seed))
    (root / "list.csv").write_text("name,class")
    return root


def test_a_flat_folder_is_split_by_class(flat):
    data = load(str(flat))
    assert data.classes == ("cat", "dog", "emu")
    assert np.bincount(data.train.labels).tolist() == [8, 4, 1]
    assert np.bincount(data.test.labels, minlength=3).tolist() == [2, 1, 0]
    assert not set(data.train.digests) & set(data.test.digests)
    assert data.split == FolderSplit(0.2, 0)
    assert load(str(flat)).fingerprint == data.fingerprint  # from the cache
    assert load(str(flat)).split == data.split


def test_the_split_depends_on_seed_and_share_alone(flat, tmp_path):
    def test_images(root=flat, size=None, **options):
        test = load(str(root), image_size=size, split=FolderSplit(**options)).test
        return sorted(test.digests.tolist())

    usual = test_images()
    assert any(test_images(seed=seed) != usual for seed in range(1, 4))
    assert len(test_images(share=0.5)) == 5 + 2
    assert set(usual) < set(test_images(share=0.5))
    shutil.copytree(flat, tmp_path / "elsewhere")
    assert test_images(tmp_path / "elsewhere") == usual


def test_images_read_at_another_size_are_split_alike(flat):
    for path in flat.rglob("*.png"):  # each image one grey level of its own, at any size
        level = np.full((8, 8, 1), int(path.stem) * 3 + 40 * ord(path.parent.name[0]) % 200, np.uint8)
        path.write_bytes(encoded(level))
    whole, small = (load(str(flat), image_size=size).test.pixels[:, 0, 0, 0].tolist() for size in (8, 4))
    assert whole == small


def test_a_train_folder_without_test_images_is_split_on_request(class_folder):
    shutil.rmtree(class_folder / "test")
    data = load(str(class_folder), split=FolderSplit(share=0.34))
    assert (len(data.train), len(data.test)) == (4, 2)


def test_test_images_of_its_own_are_not_replaced(class_folder):
    with pytest.raises(InputError, match=r"has test images of its own.*; remove data\.split"):
        load(str(class_folder), split=FolderSplit())
    with pytest.raises(InputError, match=r"digits: data\.split divides a folder"):
        load("digits", split=FolderSplit())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Training", "if Training is a class, give it another name"),
        ("Valid", "rename the folder of the training images to train, or move all class folders into one"),
    ],
)
def test_a_folder_of_splits_is_no_folder_of_classes(flat, name, expected):
    """A class called like a part is not guessed to be one."""
    (flat / "cat").rename(flat / name)
    with pytest.raises(InputError, match=expected):
        load(str(flat))


def test_loose_images_beside_the_classes(flat):
    (flat / "loose.JPG").write_bytes(encoded(PIXELS[0]))
    with pytest.raises(InputError, match=r"loose\.JPG is outside a class folder"):
        load(str(flat))
