"""The description of a machine names what a report of a problem needs."""

import pytest

from resode.analysis.installation import describe
from resode.version import __version__


def test_versions_hardware_and_the_choice_of_auto_are_named():
    found = describe()
    assert found["resode"] == __version__
    assert {"python", "torch", "cpu", "threads", "memory", "device", "precision", "disk"} <= set(found)
    assert "for ResNet-20: " in found["precision"]
    assert found["digits"] == "1,437 training images come with the package"
    assert all(found.values())
    assert not any("\n" in text for text in found.values())


@pytest.mark.parametrize(
    ("folders", "text"),
    [
        (None, "is not set"),
        ((), "none of the named data sets"),
        (("cifar10", "cifar-100-python", "mine"), ": cifar10, cifar100"),
        ("missing", "NO such folder"),
    ],
)
def test_the_data_sets_of_this_machine_are_named(monkeypatch, tmp_path, folders, text):
    monkeypatch.delenv("RESODE_DATA", raising=False)
    if folders == "missing":
        monkeypatch.setenv("RESODE_DATA", str(tmp_path / "missing"))
    elif folders is not None:
        monkeypatch.setenv("RESODE_DATA", str(tmp_path))
        for name in folders:
            (tmp_path / name).mkdir()
    assert text in describe()["data"]
