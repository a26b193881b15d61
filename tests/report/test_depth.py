"""The pages about depth: the verdict with its numbers, in a page of its own and in the report of a run."""

import json

import numpy as np
import pytest

from resode import DynamicNet, Stage, weights
from resode.analysis.depth import depth
from resode.errors import IntegrityError
from resode.models import name_and_options
from resode.report import depth as page
from resode.report import write
from resode.report.dynamics import of_weights
from tests.report.pages import Page, assert_self_contained


def network(scheme="euler"):
    return DynamicNet([Stage(4, {"name": "parabolic", "norm": None}, scheme, states=2)], stem=1)


@pytest.fixture(scope="module")
def found():
    random = np.random.default_rng(0)
    images, labels = random.random((12, 8, 8), np.float32), np.arange(12) % 10
    return depth(network(), (images, labels))


def saved(net, path, data="digits"):
    preprocessing = weights.Preprocessing((0.3,), (0.4,), (8, 8), 1, tuple(map(str, range(10))))
    card = weights.Card(weights.Specification(*name_and_options(net)), preprocessing, {"data": data})
    weights.save(net, path, card)
    return path


def test_the_page_shows_the_verdict_its_rules_and_the_numbers(found, tmp_path):
    source = page.write(found, tmp_path / "depth.html").read_text()
    read = Page(source)
    assert_self_contained(read, source)
    assert found.verdict in read.text.lower()
    assert found.reason[1:] in read.text
    for words in (
        "8 times the steps",
        "RK4, its steps",
        "Distance to the flow",
        "Growth",
        "at least 5 units",
    ):
        assert words in read.text
    assert f"order {found.stages[0].observed_order:.2f}" in read.text


def test_the_report_of_a_weights_file_shows_its_equation_and_norms(tmp_path):
    file = saved(network(), tmp_path / "net.safetensors")
    source = write(file).read_text()
    read = Page(source)
    assert_self_contained(read, source)
    for words in (
        "The differential equation",
        "f = -(K^T relu(K y + b1) + b2)",
        "State y(t)",
        "Stability number",
    ):
        assert words in read.text
    assert "Is it a differential equation?" not in read.text


def test_without_its_images_the_equation_is_shown_without_norms_of_states(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for data in ("arrays given in Python", "hf://nobody/nothing", "mnist"):
        section = of_weights(saved(network(), tmp_path / "net.safetensors", data))
        assert section.note.startswith("Norms of states need test images: ")
        assert [chart.title for chart in section.charts] == ["Controls theta(t)", "Stability number"]


def test_other_weights_have_no_such_section(tmp_path):
    assert of_weights(tmp_path / "missing.safetensors") is None
    from resode.models import create

    assert of_weights(saved(create("digits_resnet8"), tmp_path / "net.safetensors")) is None


def test_a_measurement_in_a_run_is_read_and_damage_is_named(found, tmp_path):
    assert page.read(tmp_path) is None
    (tmp_path / "analysis").mkdir()
    file = tmp_path / "analysis" / page.FILE
    file.write_text(json.dumps(found.record()))
    assert page.read(tmp_path) == found
    file.write_text("{")
    with pytest.raises(IntegrityError, match=r"depth\.json: is no record"):
        page.read(tmp_path)
