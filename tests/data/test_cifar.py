"""CIFAR's pickles: the genuine ones are read, no other one executes anything."""

import pickle
import sys
import types

import numpy as np
import pytest

from resode.data import load
from resode.data.cifar import find
from resode.errors import InputError, IntegrityError
from tests.data.conftest import random_pixels

PIXELS = random_pixels(12, side=32)
LABELS = [0, 1] * 6


def flat(pixels: np.ndarray) -> np.ndarray:
    """As in the published files: one row an image, channel by channel."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1))


def write(path, content, protocol=2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))


def cifar10_folder(root, protocol=2, key=str.encode, batch=None):
    folder = root / "cifar-10-batches-py"
    for number in range(6):
        part = slice(2 * number, 2 * number + 2)
        name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
        content = {
            key("data"): flat(PIXELS[part]),
            key("labels"): LABELS[part],
            key("batch_label"): key(name),
        }
        write(folder / name, content, protocol)
    write(folder / "batches.meta", {key("label_names"): [key("cat"), key("dog")]}, protocol)
    if batch is not None:
        write(folder / "data_batch_3", batch)
    return folder


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("key", [str, str.encode], ids=["text", "bytes"])
def test_batches_are_read_whoever_wrote_them(tmp_path, protocol, key):
    data = load(str(cifar10_folder(tmp_path, protocol, key)))
    assert data.classes == ("cat", "dog")
    assert np.array_equal(data.train.pixels, PIXELS[:10])
    assert np.array_equal(data.test.pixels, PIXELS[10:])
    assert data.train.labels.tolist() == LABELS[:10]


def test_a_batch_that_numpy_1_wrote_under_python_2(tmp_path):
    """The published files: byte strings, and NumPy's old module names."""
    pickled = pickle.dumps({b"data": flat(PIXELS[4:6]), b"labels": LABELS[4:6]}, 2)
    old = pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != pickled
    data = load(str(cifar10_folder(tmp_path, batch=old)))
    assert np.array_equal(data.train.pixels, PIXELS[:10])


def test_labels_may_be_arrays_or_numpy_integers(tmp_path):
    for labels in (np.array(LABELS[4:6]), [np.int64(0), np.uint8(1)], np.array([0, 1], ">i2")):
        batch = {"data": np.asfortranarray(flat(PIXELS[4:6])), "labels": labels}
        data = load(str(cifar10_folder(tmp_path, batch=pickle.dumps(batch))))
        assert np.array_equal(data.train.pixels, PIXELS[:10])
        assert data.train.labels.tolist() == LABELS[:10]


def test_cifar100_has_its_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    for name, part in (("train", slice(0, 10)), ("test", slice(10, 12))):
        content = {b"data": flat(PIXELS[part]), b"fine_labels": LABELS[part], b"coarse_labels": [0] * 10}
        write(folder / name, content)
    write(folder / "meta", {b"fine_label_names": [b"apple", b"bee"]})
    data = load(str(folder))
    assert data.classes == ("apple", "bee")
    assert data.train.labels.tolist() == LABELS[:10]


def test_the_folder_or_its_parent(tmp_path):
    folder = cifar10_folder(tmp_path)
    assert load(str(tmp_path)).fingerprint == load(str(folder)).fingerprint
    assert find(tmp_path) == (folder,)
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(InputError, match=r"several data sets \(cifar-10-batches-py, cifar-100-python\)"):
        load(str(tmp_path))


def test_without_meta_the_classes_are_numbers(tmp_path):
    folder = cifar10_folder(tmp_path)
    (folder / "batches.meta").unlink()
    assert load(str(folder)).classes == ("0", "1")


def test_a_missing_batch_is_named(tmp_path):
    folder = cifar10_folder(tmp_path)
    (folder / "data_batch_1").unlink()
    (folder / "data_batch_4").unlink()
    with pytest.raises(InputError, match="lacks data_batch_1, data_batch_4"):
        load(str(folder))


def opcodes(module: str, name: str, argument: str) -> bytes:
    """GLOBAL module.name, called with one text argument."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("numpy", "load"),
        ("numpy", "memmap"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy._core.multiarray", "_reconstruct.__globals__"),
        ("_codecs", "decode"),
        ("resode.data.cifar", "Path"),
    ],
)
def test_a_hostile_pickle_executes_nothing(tmp_path, module, name):
    victim = tmp_path / "victim"
    folder = cifar10_folder(tmp_path, batch=opcodes(module, name, f"touch {victim}"))
    with pytest.raises(IntegrityError, match="refused, nothing executed") as caught:
        load(str(folder))
    assert caught.value.exit_code == 3
    assert f"{module}.{name}" in str(caught.value)
    assert not victim.exists()


def test_the_hostile_pickle_of_that_test_works(tmp_path):
    """The test above can fail: an ordinary load would run the command."""
    victim = tmp_path / "victim"
    pickle.loads(opcodes("os", "system", f"touch {victim}"))
    assert victim.exists()


def test_a_pickled_object_is_not_even_imported(tmp_path, monkeypatch):
    imported = []
    spy = types.ModuleType("spy")
    spy.__getattr__ = lambda name: imported.append(name)
    monkeypatch.setitem(sys.modules, "spy", spy)
    with pytest.raises(IntegrityError):
        load(str(cifar10_folder(tmp_path, batch=opcodes("spy", "run", "x"))))
    assert not imported


@pytest.mark.parametrize(
    "batch",
    [
        b"",
        b"not a pickle",
        pickle.dumps({"data": flat(PIXELS[:2]), "labels": [0, 1]})[:-9],
        pickle.dumps({"data": flat(PIXELS[:2]), "labels": [0, 1]})[:100],
        pickle.dumps([1, 2, 3]),
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes of 2^63 - 1
        b"\x80\x02r\xff\xff\xff\xff.",  # memo number 2^32 - 1
        b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n)RU\x06labels]u.",  # an array never filled
        b"cnumpy\ndtype\n(V" + b"O8\ntR}b.",  # a type with an odd state
        b"cnumpy.core.multiarray\n_reconstruct\n)RK\x01b.",  # an array with an odd state
    ],
)
def test_a_corrupt_pickle_is_an_integrity_error(tmp_path, batch):
    with pytest.raises(IntegrityError):
        load(str(cifar10_folder(tmp_path, batch=batch)))


@pytest.mark.parametrize(
    "array", [np.array([[None]]), np.zeros((2, 3072), np.float32), np.array(["x"]), np.zeros(2, "M8[s]")]
)
def test_arrays_of_other_types_are_refused(tmp_path, array):
    batch = {"data": array, "labels": [0, 1]}
    with pytest.raises(IntegrityError, match="array"):
        load(str(cifar10_folder(tmp_path, batch=pickle.dumps(batch))))


def test_an_array_larger_than_its_bytes_is_refused(tmp_path):
    pickled = pickle.dumps({"data": flat(PIXELS[:2]), "labels": [0, 1]}, 2)
    huge = pickled.replace(b"M\x00\x0c", b"M\xff\xff")  # 3072 -> 65535
    assert huge != pickled
    with pytest.raises(IntegrityError, match="does not match its 6,144 bytes"):
        load(str(cifar10_folder(tmp_path, batch=huge)))


def test_text_is_encoded_no_more_often_than_the_file_is_long(tmp_path):
    """A text of 1 kB, encoded over and over, would fill the memory from a small file."""
    start = b"c_codecs\nencode\nq\x01X\xe8\x03\x00\x00" + b"a" * 1000 + b"q\x00"
    again = start + b"h\x01h\x00\x85R" * 5000 + b"."
    with pytest.raises(IntegrityError, match="refused"):
        load(str(cifar10_folder(tmp_path, batch=again)))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": flat(PIXELS[:2])}, "no 'labels'"),
        ({"data": [1, 2], "labels": [0, 1]}, "no 'data' array"),
        ({"data": flat(PIXELS[:2]), "labels": [0]}, r"expected uint8 \(N, 3072\) and N labels"),
        ({"data": flat(PIXELS[:2])[:, :100], "labels": [0, 1]}, r"data \(2, 100\)"),
        ({"data": flat(PIXELS[:2]), "labels": ["cat", "dog"]}, "not a list of integers"),
        ({"data": flat(PIXELS[:2]), "labels": [0, 2]}, "label 2 of training image 5 is out of range"),
    ],
)
def test_a_batch_of_another_shape_is_an_input_error(tmp_path, batch, message):
    with pytest.raises(InputError, match=message):
        load(str(cifar10_folder(tmp_path, batch=pickle.dumps(batch))))
