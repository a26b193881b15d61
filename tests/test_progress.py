"""Progress: long work reports shares that grow to 1, to a listener of the caller and to nobody else."""

import pytest
import torch

from resode.data import load
from resode.models import create
from resode.progress import report, reporting_to
from resode.training.setup.form import choose
from tests.data.conftest import random_pixels, write_images


class Heard:
    def __init__(self):
        self.lines = []

    def __call__(self, what, share):
        self.lines.append((what, share))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESODE_CACHE", str(tmp_path / "cache"))


def test_a_listener_hears_what_happens_within_its_block():
    outer, inner = Heard(), Heard()
    report("unheard", 0.5)
    with reporting_to(outer):
        report("first", 0.5)
        with reporting_to(inner):
            report("second", 1)
        with reporting_to(None):
            report("silent", 0.5)
        report("first", 1)
    assert outer.lines == [("first", 0.5), ("first", 1)]
    assert inner.lines == [("second", 1)]


def test_reading_a_folder_reports_its_images(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / "photos" / "train" / name, random_pixels(100))
    heard = Heard()
    with reporting_to(heard):
        load(str(tmp_path / "photos"))
    shares = [share for what, share in heard.lines if what.startswith("reading")]
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_interrupted_reading_leaves_no_cache(tmp_path):
    def interrupt(what, share):
        if what.startswith("reading"):
            raise KeyboardInterrupt

    for name in ("cat", "dog"):
        write_images(tmp_path / "photos" / "train" / name, random_pixels(100))
    with reporting_to(interrupt), pytest.raises(KeyboardInterrupt):
        load(str(tmp_path / "photos"))
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_the_choice_of_a_precision_reports_its_measurement():
    heard = Heard()
    with reporting_to(heard):
        choose(
            create("he_resnet8", widths=(4, 4, 8)), (3, 8, 8), precision="auto", compile_=False,
            batch=2, images=10**9, device=torch.device("cpu"),
        )  # fmt: skip
    shares = [share for _, share in heard.lines]
    assert shares[0] == 0
    assert shares[-1] == 1
