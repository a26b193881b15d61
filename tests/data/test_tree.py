"""Tree: links are followed, loops are refused, and what cannot be read is a bad image, never dropped."""

import contextlib
import io
import os
import shutil
import socket

import numpy as np
import pytest

from resode.data import load, tree
from resode.data.sources import load_test
from resode.errors import InputError
from tests.data.conftest import encoded, random_pixels

PIXELS = random_pixels(8)


def names(folder):
    return [path.relative_to(folder).as_posix() for path in tree.files(folder)]


def test_files_at_any_depth_are_sorted_and_hidden_ones_ignored(tmp_path):
    for name in ("b/2.png", "b/.x/3.png", "a.png", "b/c/1.png", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == ["a.png", "b/2.png", "b/c/1.png"]


def test_links_to_files_and_folders_are_followed(class_folder, tmp_path):
    whole = load(str(class_folder))
    cats = class_folder / "train" / "cat"
    cats.rename(tmp_path / "elsewhere")
    cats.symlink_to(tmp_path / "elsewhere")  # a class
    dogs = class_folder / "train" / "dog"
    (tmp_path / "deep").mkdir()
    for file in dogs.iterdir():
        file.rename(tmp_path / "deep" / file.name)
    (dogs / "more").symlink_to(tmp_path / "deep")  # a folder in a class
    test = class_folder / "test"
    file = next((test / "cat").iterdir())
    file.rename(tmp_path / "one.png")
    file.symlink_to(tmp_path / "one.png")
    test.rename(tmp_path / "elsewhere-test")
    test.symlink_to(tmp_path / "elsewhere-test")
    assert load(str(class_folder)).fingerprint == whole.fingerprint


@pytest.mark.parametrize("target", [".", "..", "../../.."])
def test_a_link_to_a_folder_that_it_lies_in_is_refused_by_name(class_folder, target):
    (class_folder / "train" / "cat" / "loop").symlink_to(target)
    for policy in ("error", "skip"):
        with pytest.raises(
            InputError, match=r"train/cat/loop is a link to /.*that it lies in; remove the link"
        ):
            load(str(class_folder), on_bad_image=policy)


def broken(path):
    path.symlink_to("/nowhere/x.png")
    return "cannot be read (No such file or directory)"


def itself(path):
    path.symlink_to(path.name)
    return "cannot be read (Too many levels of symbolic links)"


def a_pipe(path):
    os.mkfifo(path)
    return "is not a regular file"


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as opened, contextlib.chdir(path.parent):  # names have 100 bytes
        opened.bind(path.name)
    return "is not a regular file"


@pytest.mark.parametrize("make", [broken, itself, a_pipe, a_socket])
@pytest.mark.parametrize("split", ["train", "test"])
def test_what_cannot_be_read_is_a_bad_image(class_folder, make, split):
    whole = load(str(class_folder))
    path = class_folder / split / "cat" / "bad.png"
    message = f"{path} {make(path)}"
    with pytest.raises(InputError) as error:
        load(str(class_folder))
    assert str(error.value) == f"{message}; --on-bad-image skip drops it"
    for data in (load(str(class_folder), on_bad_image="skip") for _ in range(2)):  # decoded, and cached
        assert data.skipped == (message,)
        assert data.fingerprint == whole.fingerprint


def refuse(monkeypatch, path):
    """Listing a folder or opening a file fails, as it does for a user without the permission."""

    def refusing(function):
        def call(given=".", *words, **options):
            if isinstance(given, str | os.PathLike) and os.fspath(given) == str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return function(given, *words, **options)

        return call

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    monkeypatch.setattr(io, "open", refusing(io.open))


@pytest.mark.parametrize("name", ["cat/0.png", "cat/more", "dog"])
def test_unreadable_files_and_folders_are_bad_images(class_folder, monkeypatch, name):
    path = class_folder / "train" / name
    if name == "cat/more":
        path.mkdir()
        (path / "9.png").write_bytes(encoded(PIXELS[0]))
    refuse(monkeypatch, path)
    with pytest.raises(InputError) as error:
        load(str(class_folder))
    assert str(error.value) == f"{path} cannot be read (Permission denied); --on-bad-image skip drops it"
    if name == "dog":  # all images of a class
        with pytest.raises(InputError, match="no training image of class 'dog'"):
            load(str(class_folder), on_bad_image="skip")
    else:
        data = load(str(class_folder), on_bad_image="skip")
        assert data.skipped == (f"{path} cannot be read (Permission denied)",)


def test_a_flat_folder_with_an_unreadable_class_is_recognised(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "photos" / name / f"{i}.png").write_bytes(encoded(PIXELS[i]))
    refuse(monkeypatch, tmp_path / "photos" / "cat")
    with pytest.raises(InputError, match=r"photos/cat cannot be read \(Permission denied\); --on-bad"):
        load(str(tmp_path / "photos"))


@pytest.mark.parametrize("name", ["train/emu", "test/dog", "test"])
def test_a_broken_link_in_the_place_of_a_folder_is_refused(class_folder, name):
    path = class_folder / name
    if path.is_dir():
        shutil.rmtree(path)
    path.symlink_to("/nowhere")
    with pytest.raises(InputError, match=rf"{name} is a broken link, to /nowhere; fix or remove it"):
        load(str(class_folder))


def test_an_image_that_can_be_read_again_is_no_longer_skipped(class_folder):
    path = class_folder / "train" / "cat" / "bad.png"
    path.symlink_to("later.png")
    assert len(load(str(class_folder), on_bad_image="skip").skipped) == 1
    (path.parent / "later.png").write_bytes(encoded(PIXELS[7]))
    data = load(str(class_folder), on_bad_image="skip")
    assert (data.skipped, len(data.train)) == ((), 8)


# ---------------------------------------------------------------- names that are not UTF-8


def test_a_path_is_valid_text():
    assert tree.text("caf\udce9/\u00e9") == "caf\\xe9/\u00e9"


def test_names_that_are_not_utf8_are_read_cached_and_skipped(class_folder):
    plain = load(str(class_folder))
    try:
        for split in ("train", "test"):
            (class_folder / split / "cat").rename(class_folder / split / "c\udce9")
        (class_folder / "train" / "c\udce9" / "0.png").rename(
            class_folder / "train" / "c\udce9" / "\udcff.png"
        )
    except OSError:
        pytest.skip("the file system has UTF-8 names alone")
    (class_folder / "train" / "dog" / "\udcfe.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"dog/\\xfe.png is not an image"):
        load(str(class_folder))
    for data in (load(str(class_folder), on_bad_image="skip") for _ in range(2)):
        assert data.classes == ("c\\xe9", "dog")
        assert len(data.train) == len(plain.train)
        assert "dog/\\xfe.png is not an image" in data.skipped[0]
    (class_folder / "train" / "c\\xe9").mkdir()
    with pytest.raises(InputError, match="several classes have one name as UTF-8"):
        load(str(class_folder))


# ---------------------------------------------------------------- test images alone


def test_test_images_alone_are_read_for_an_evaluation(class_folder):
    shutil.rmtree(class_folder / "train")
    with pytest.raises(InputError, match=r"holds test images alone \(test/\); training needs train/<class>/"):
        load(str(class_folder))
    alone = load_test(str(class_folder))
    assert alone.classes == ("cat", "dog")
    assert np.array_equal(alone.train.pixels, PIXELS[6:])
    assert load_test("digits") is None
