import dataclasses
import shutil

import numpy as np
import pytest

from resode.data import Dataset, Images, decode, load, resize_and_crop, sources
from resode.data.sources import _register
from resode.errors import InputError, IntegrityError, ResourceError
from tests.data.conftest import encoded, known, random_pixels, write_images, write_parquet
from tests.data.test_cifar import cifar10_folder


def small(name, **changes):
    """A named data set as small as the folders of these tests."""
    return dataclasses.replace(known(name), classes=("cat", "dog"), sizes=(6, 2), shape=(3, 8, 8), **changes)


@pytest.fixture
def named(monkeypatch):
    """Register a data set for the duration of a test."""

    def register(entry):
        monkeypatch.setattr(sources, "_entries", dict(sources._entries))
        sources._entries.pop(entry.name, None)
        _register(entry)

    return register


def test_the_names():
    assert set(sources.names()) >= {"cifar10", "cifar100", "stl10", "mnist", "fashion_mnist", "digits"}
    assert sources.entry("stl10").shape == (3, 96, 96)
    assert all(sources.entry(name).summary for name in sources.names())


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "mnist", "fashion_mnist"])
def test_the_pins_are_whole(name):
    entry = known(name)
    assert len(set(entry.classes)) == len(entry.classes) == (100 if name == "cifar100" else 10)
    assert len(entry.pin.revision) == 40
    assert {path.split("/")[1].split("-")[0] for path in entry.pin.files} == {"train", "test"}
    assert all(value is None or len(bytes.fromhex(value)) == 32 for value in entry.pin.files.values())


def test_a_plug_in_adds_a_data_set(monkeypatch):
    monkeypatch.setattr(sources, "_entries", dict(sources._entries))

    @sources.register("stripes")
    def stripes(image_size: int | None = None) -> Dataset:
        side = image_size or 4
        pixels = np.zeros((2, side, side, 1), np.uint8)
        return Dataset.of("stripes", ("a", "b"), Images.of(pixels, np.array([0, 1])))

    assert load("stripes").train.pixels.shape == (2, 4, 4, 1)
    assert load("stripes", image_size=6).train.pixels.shape == (2, 6, 6, 1)
    with pytest.raises(InputError, match="stripes has no option 'on_bad_image'"):
        load("stripes", on_bad_image="skip")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("cifar11", r"called 'cifar11'; did you mean 'cifar10'\? \(names: `resode list data`\)"),
        ("qqqq", r"no data set or folder is called 'qqqq' \(names"),
    ],
)
def test_a_misspelt_name(data, message):
    with pytest.raises(InputError, match=message):
        load(data)


def test_a_misspelt_folder(class_folder):
    with pytest.raises(InputError, match=f"did you mean '{class_folder}'"):
        load(str(class_folder.parent / "petz"))


def test_an_archive_and_an_empty_folder(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"?")
    with pytest.raises(InputError, match="is a file; give its folder, or unpack it"):
        load(str(tmp_path / "cifar-10-python.tar.gz"))
    with pytest.raises(InputError, match=r"holds no data set; expected folders of images .*train\*\.parquet"):
        load(str(tmp_path))


@pytest.mark.parametrize("size", [0, -3, 2.5, True])
def test_an_impossible_image_size(size):
    with pytest.raises(InputError, match="image_size is"):
        load("digits", image_size=size)


def test_an_unknown_way_with_bad_images():
    with pytest.raises(InputError, match="on_bad_image is 'ignore'"):
        load("digits", on_bad_image="ignore")


@pytest.mark.parametrize("layout", ["parquet", "folder", "batches", "batches beside"])
def test_local_files_come_first(tmp_path, monkeypatch, named, class_folder, parquet_folder, layout):
    named(small("cifar10", fingerprint=None))
    root = tmp_path / "local"
    root.mkdir()
    if layout == "parquet":
        parquet_folder.rename(root / "cifar10")
    elif layout == "folder":
        class_folder.rename(root / "cifar10")
    else:
        cifar10_folder(root / "cifar10" if layout == "batches" else root)
    monkeypatch.setenv("RESODE_DATA", str(root))
    data = load("cifar10")
    assert (data.name, data.classes) == ("cifar10", ("cat", "dog"))
    assert len(data.train) == (10 if "batches" in layout else 6)


def test_a_local_folder_with_nothing_in_it_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "cifar10").mkdir()
    monkeypatch.setenv("RESODE_DATA", str(tmp_path))
    with pytest.raises(InputError, match="cifar10 holds no data set"):
        load("cifar10")
    monkeypatch.setenv("RESODE_DATA", str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"RESODE_DATA is '.*absent', which is not a folder"):
        load("cifar10")


def test_known_class_names_are_used_where_they_mean_the_same(tmp_path, monkeypatch, named):
    monkeypatch.setenv("RESODE_DATA", str(tmp_path))
    files = [encoded(image) for image in random_pixels(4)]
    named(small("mnist"))
    write_parquet(tmp_path / "mnist" / "train.parquet", files, label=[0, 1, 0, 1])
    assert load("mnist").classes == ("cat", "dog")
    write_parquet(tmp_path / "mnist" / "train.parquet", files, label=["Cat", "DOG", "Cat", "DOG"])
    assert load("mnist").classes == ("cat", "dog")
    write_parquet(tmp_path / "mnist" / "train.parquet", files, label=["dog", "emu", "dog", "emu"])
    assert load("mnist").classes == ("dog", "emu")
    write_parquet(tmp_path / "mnist" / "train.parquet", files, label=["a", "b", "c", "c"])
    with pytest.raises(InputError, match=r"has 3 classes; mnist has 2"):
        load("mnist")
    write_parquet(tmp_path / "mnist" / "train.parquet", files, label=[0, 1, 2, 1])
    with pytest.raises(InputError, match="label 2 of training image 2 is out of range"):
        load("mnist")


@pytest.fixture
def pinned(tmp_path, monkeypatch, named, class_folder):
    """`cifar10` of eight images with its fingerprint pinned, lying in RESODE_DATA."""
    fingerprint = load(str(class_folder)).fingerprint
    named(small("cifar10", fingerprint=fingerprint))
    root = tmp_path / "local"
    root.mkdir()
    class_folder.rename(root / "cifar10")
    monkeypatch.setenv("RESODE_DATA", str(root))
    return root / "cifar10"


def test_a_pinned_content_is_accepted_from_any_container(pinned, parquet_folder):
    first = load("cifar10")
    shutil.rmtree(pinned)
    parquet_folder.rename(pinned)
    assert load("cifar10").fingerprint == first.fingerprint


def test_another_content_is_refused_with_the_difference(pinned):
    write_images(pinned / "train" / "dog", random_pixels(1, seed=1))
    for _ in range(2):  # decoded, and from the cache
        with pytest.raises(IntegrityError, match=r"is not cifar10: some pixels or labels differ"):
            load("cifar10")
    (pinned / "train" / "dog" / "9.png").write_bytes(encoded(random_pixels(1)[0]))
    with pytest.raises(IntegrityError, match=r"it has \(7, 2\) training and test images, not \(6, 2\)"):
        load("cifar10")
    shutil.rmtree(pinned / "test")
    with pytest.raises(IntegrityError, match=r"it has \(7, 0\)"):
        load("cifar10")
    assert len(load(str(pinned)).train) == 7  # as a folder it is anybody's


def test_a_pinned_content_is_checked_before_it_is_resized(pinned):
    native = load("cifar10")
    for _ in range(2):
        resized = load("cifar10", image_size=5)
        expected = [resize_and_crop(image, size=(5, 5), channels=3) for image in native.train.pixels]
        assert np.array_equal(resized.train.pixels, expected)
        assert resized.test.pixels.shape == (2, 5, 5, 3)
    (pinned / "train" / "dog" / "0.png").write_bytes(encoded(random_pixels(1, seed=5)[0]))
    with pytest.raises(IntegrityError):
        load("cifar10", image_size=5)


def test_image_size_is_that_of_fit(class_folder):
    content = (class_folder / "train" / "cat" / "1.png").read_bytes()
    expected = resize_and_crop(decode(content, name="x"), size=(5, 5), channels=3)
    assert np.array_equal(load(str(class_folder), image_size=5).train.pixels[1], expected)


def test_digits_come_with_the_package():
    data = load("digits")
    assert (data.name, data.classes) == ("digits", tuple("0123456789"))
    assert data.train.pixels.shape == (1437, 8, 8, 1)
    assert data.test.pixels.shape == (360, 8, 8, 1)
    assert np.bincount(np.concatenate([data.train.labels, data.test.labels])).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180
    ]  # fmt: skip
    assert data.train.pixels[0, :, :, 0].tolist()[0] == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0
    assert data.train.pixels.max() == 255
    assert data.fingerprint == "337a64963cb5ae6523407998aa6d4b86f8cf37a78ef5b67afe1eee3df6c8724b"


def test_digits_can_be_resized():
    data = load("digits", image_size=16)
    assert data.train.pixels.shape == (1437, 16, 16, 1)
    assert data.train.labels.tolist() == load("digits").train.labels.tolist()


def test_images_that_do_not_fit_into_memory(class_folder, monkeypatch):
    def refuse(shape, dtype):
        raise MemoryError

    monkeypatch.setattr("resode.data.decoding.np.empty", refuse)
    with pytest.raises(
        ResourceError, match=r"images of 8x8 need 0\.0 GiB of memory; set a smaller image_size"
    ):
        load(str(class_folder))
