"""Charts of a run: axes, labels, curves, gaps, readings."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resode.quantities import number
from resode.report import curves
from resode.report.axes import LARGEST, STRETCH
from resode.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart
from resode.training.records import reader

MakeRun = Callable[..., Path]
FRAME = WIDTH - LEFT - RIGHT


def draw(values: Sequence[float | None], *, end: int | None = None, stretch: float = STRETCH) -> Chart | None:
    points = tuple((k + 1, value) for k, value in enumerate(values))
    series = curves.Series("train", "train", points)
    return curves.chart("Loss", [series], end or len(values), number, stretch)


def drawn(values: Sequence[float | None], *, end: int | None = None) -> Chart:
    chart = draw(values, end=end)
    assert chart is not None
    return chart


def coordinates(chart: Chart, css: str = "train") -> list[tuple[float, float]]:
    """The points of the curves of a class, those that stand alone at the end."""
    group = chart.svg.find(f"g[@class='{css}']")
    assert group is not None
    paths = [path.get("d", "") for path in group.iter("path") if path.get("class") == "curve"]
    pairs = [pair for path in paths for pair in re.findall(r"[ML](\S+?) ([^ML]+)", path)]
    pairs += [(dot.get("cx", ""), dot.get("cy", "")) for dot in group.iter("circle")]
    return [(float(x), float(y)) for x, y in pairs]


def labels(chart: Chart, anchor: str) -> list[ET.Element]:
    """The labels of an axis: anchored in the `middle` of the horizontal, at the `end` of the vertical one."""
    return chart.svg.findall(f"g[@class='grid']/text[@text-anchor='{anchor}']")


def readings(chart: Chart) -> list[ET.Element]:
    return chart.svg.findall("g[@class='readings']/g")


@given(st.lists(st.none() | st.floats(), max_size=30), st.floats(min_value=1.5))
def test_every_curve_stays_in_its_frame(values: list[float | None], stretch: float) -> None:
    chart = draw(values, stretch=stretch)
    if chart is None:
        assert not any(v is not None and abs(v) <= LARGEST for v in values)
        return
    places = coordinates(chart)
    assert len(places) == sum(v is not None and abs(v) <= LARGEST for v in values)
    for x, y in places:
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= HEIGHT - BOTTOM
    heights = [float(label.get("y", "")) for label in labels(chart, "end")]
    assert 2 <= len(heights) <= 15
    assert heights == sorted(heights, reverse=True)


def test_larger_is_higher_and_later_is_further_right() -> None:
    chart = drawn([1.0, 3.0, 2.0])
    (x1, y1), (x2, y2), (x3, y3) = coordinates(chart)
    assert x1 < x2 < x3
    assert y2 < y3 < y1
    assert chart.note == ""
    assert labels(chart, "end")[0].text == "0"


def test_a_wide_range_is_logarithmic_with_ticks_in_their_places() -> None:
    chart = drawn([100.0, 10.0, 1.0])
    assert chart.note == "log scale"
    (_, top), (_, middle), (_, bottom) = coordinates(chart)
    assert middle == pytest.approx((top + bottom) / 2, abs=0.1)
    ticks = {label.text: float(label.get("y", "")) for label in labels(chart, "end")}
    assert list(ticks) == ["1", "2", "5", "10", "20", "50", "100"]
    assert (ticks["1"], ticks["10"], ticks["100"]) == (bottom, middle, top)


def test_zero_lies_on_a_logarithmic_axis() -> None:
    chart = drawn([50.0, 5.0, 0.0])
    assert coordinates(chart)[-1][1] == HEIGHT - BOTTOM


def test_what_is_not_finite_leaves_a_gap() -> None:
    chart = drawn([3.0, 2.0, math.nan, 1.0, math.inf])
    assert len([path for path in chart.svg.iter("path") if path.get("class") == "curve"]) == 1
    assert len(list(chart.svg.iter("circle"))) == 1


def test_an_unfinished_run_leaves_room_for_the_epochs_to_come() -> None:
    chart = drawn([3.0, 2.0], end=100)
    assert coordinates(chart)[-1][0] < 70
    assert labels(chart, "middle")[-1].text == "100"


def test_readings_tile_the_width_and_show_the_values() -> None:
    columns = readings(drawn([3.0, 2.5, 2.0]))
    texts = [column.findtext("text") for column in columns]
    assert texts == ["epoch 1: train 3", "epoch 2: train 2.5", "epoch 3: train 2"]
    widths = [float(rect.get("width", "")) for column in columns for rect in column.iter("rect")]
    assert sum(widths) == pytest.approx(FRAME, abs=0.5)
    assert len(readings(drawn([1.0] * 1000))) <= curves.READINGS


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_epochs_are_labelled_with_few_round_numbers(first: int, length: int) -> None:
    series = curves.Series("train", "train", ((first, 1.0),))
    chart = curves.chart("Loss", [series], first + length, number)
    assert chart is not None
    places = [float(label.get("x", "")) for label in labels(chart, "middle")]
    assert 2 <= len(places) <= 10
    assert places == sorted(places)


def test_a_schedule_of_milestones_is_logarithmic_a_smooth_one_linear(make_run: MakeRun) -> None:
    def note(name: str, rates: list[float]) -> str:
        rows = [{"epoch": k + 1, "learning_rate": rate} for k, rate in enumerate(rates)]
        return curves.of_run(reader.read(make_run(name, epochs=rows, summary=None)))[-1].note

    assert note("steps", [0.1] * 10 + [0.01] * 5 + [0.001] * 5) == "log scale"
    assert note("cycle", [0.02 * k for k in range(1, 11)]) == ""


def test_a_quantity_that_was_never_measured_has_no_chart(make_run: MakeRun) -> None:
    run = reader.read(make_run(epochs="epoch,train_loss\n1,2.0\n2,1.5\n", summary=None))
    (chart,) = curves.of_run(run)
    assert chart.title == "Loss"
    assert chart.legend == (("train", "train", "1.5"),)


def test_the_test_error_is_one_point_at_the_last_epoch(make_run: MakeRun) -> None:
    error = curves.of_run(reader.read(make_run()))[0]
    ((x, _),) = coordinates(error, "test")
    assert x == WIDTH - RIGHT
    assert ("test", "test", "12.50 %") in error.legend


def test_a_chart_is_described_and_escaped() -> None:
    series = curves.Series("</svg><script>", "train", ((1, 1.0), (2, 0.5)))
    chart = curves.chart("Loss", [series], 2, number)
    assert chart is not None
    assert chart.svg.get("aria-label") == "Loss by epoch; last values: </svg><script> 0.5"
    assert "<script" not in chart.__html__()
