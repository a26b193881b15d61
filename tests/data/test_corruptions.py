"""CIFAR-10-C: the published layout is read as it is, and what is not of it is refused in a line."""

import pickle

import numpy as np
import pytest

from resode.data import corruptions
from resode.data.corruptions import CLASSES, EXTRA, STANDARD, read
from resode.errors import InputError, IntegrityError

COUNT = 3


def write(folder, *names, labels=(4, 0, 9)):
    """Arrays of the published layout; every pixel of severity s and image i is 10 s + i."""
    folder.mkdir(exist_ok=True)
    levels = (10 * np.arange(1, 6)[:, None] + np.arange(COUNT)).astype(np.uint8).reshape(-1, 1, 1, 1)
    for name in names:
        np.save(folder / f"{name}.npy", np.broadcast_to(levels, (5 * COUNT, 32, 32, 3)))
    np.save(folder / "labels.npy", np.tile(np.array(labels, dtype=np.int64), 5))
    return folder


def test_severities_come_apart_and_the_standard_ones_first(tmp_path):
    folder = write(tmp_path / "any", "saturate", "fog", "gaussian_noise")
    (folder / "._fog.npy").write_bytes(b"what an archive of another system leaves")
    found = read(str(folder))
    assert list(found.pixels) == ["gaussian_noise", "fog", "saturate"]
    assert found.labels.tolist() == [4, 0, 9]
    fog = found.pixels["fog"]
    assert fog.shape == (5, COUNT, 32, 32, 3)
    assert fog[:, :, 7, 8, 2].tolist() == [[10 * s + i for i in range(COUNT)] for s in range(1, 6)]
    assert isinstance(fog.base, np.memmap) or isinstance(fog, np.memmap)
    assert not fog.flags.writeable


def test_the_names_are_those_of_the_publication():
    assert (len(STANDARD), len(EXTRA), len({*STANDARD, *EXTRA})) == (15, 4, 19)
    assert CLASSES[0] == "airplane"
    assert CLASSES[9] == "truck"


def test_the_name_and_the_folder_above_lead_there(tmp_path, monkeypatch):
    folder = write(tmp_path / "CIFAR-10-C", "snow")
    assert read(str(tmp_path)).folder == folder
    with pytest.raises(InputError, match="set RESODE_DATA"):
        read("cifar10-c")
    monkeypatch.setenv("RESODE_DATA", str(tmp_path))
    assert read("cifar10-c").folder == folder
    monkeypatch.setenv("RESODE_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="elsewhere/CIFAR-10-C: no such folder"):
        read("cifar10-c")
    with pytest.raises(InputError, match="none: no such folder"):
        read(str(tmp_path / "none"))


class Hostile:
    """Would create a file if a loader ran it."""

    def __reduce__(self):
        return open, ("executed", "w")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def archive(path):
    with path.open("wb") as file:
        np.savez(file, fog=np.zeros(3))


PIXELS = np.zeros((5 * COUNT, 32, 32, 3), np.uint8)
MISTAKES = {
    "truncated": ("fog", truncate, IntegrityError, "fog.npy: is truncated or not a plain array"),
    "empty": ("fog", lambda p: p.write_bytes(b""), IntegrityError, "fog.npy: is truncated"),
    "a pickle": (
        "fog",
        lambda p: p.write_bytes(pickle.dumps(Hostile())),
        IntegrityError,
        "not a plain array",
    ),
    "objects": ("fog", lambda p: np.save(p, np.array([Hostile()])), IntegrityError, "not a plain array"),
    "an archive": ("fog", archive, IntegrityError, "not a plain array"),
    "a folder": ("fog", lambda p: (p.unlink(), p.mkdir()), InputError, "fog.npy: cannot be read"),
    "too few": ("fog", lambda p: np.save(p, PIXELS[:-5]), InputError, r"expected uint8 \(15, 32, 32, 3\)"),
    "floats": ("fog", lambda p: np.save(p, PIXELS / 1.0), InputError, "float64"),
    "channels first": (
        "fog",
        lambda p: np.save(p, PIXELS.transpose(0, 3, 1, 2)),
        InputError,
        "expected uint8",
    ),
    "no labels": ("labels", lambda p: p.unlink(), InputError, "has no labels.npy"),
    "labels not divisible by five": ("labels", lambda p: np.save(p, np.arange(7)), InputError, r"5 n,\)"),
    "real labels": ("labels", lambda p: np.save(p, np.zeros(15)), InputError, "integers"),
    "labels that are pickled": (
        "labels",
        lambda p: np.save(p, np.array([Hostile()])),
        IntegrityError,
        "labels.npy: is truncated",
    ),
    "an eleventh class": ("labels", lambda p: np.save(p, np.full(15, 10)), InputError, "0 to 9"),
    "labels in another order": ("labels", lambda p: np.save(p, np.arange(15) % 10), IntegrityError, "differ"),
    "another name": ("fgo", lambda p: np.save(p, PIXELS), InputError, "'fgo' is not a corruption.*'fog'"),
    "nothing": ("fog", lambda p: p.unlink(), InputError, "holds no corruption"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_what_is_not_of_the_layout_is_refused(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    name, spoil, error, message = MISTAKES[what]
    folder = write(tmp_path / corruptions.FOLDER, "fog")
    spoil(folder / f"{name}.npy")
    with pytest.raises(error, match=message) as raised:
        read(str(folder))
    assert len(raised.value.messages) == 1
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "executed").exists()
