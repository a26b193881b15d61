"""Line charts: lines stay in the frame, missing values are gaps, axes are what was asked for."""

import itertools
import re

import pytest

from resode.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from resode.report.lines import Line, lines


def line(*points, css="arm0"):
    return Line("a line", "remark", css, points)


def coordinates(chart):
    found = [tuple(map(float, re.findall(r"[\d.]+", d)[:2])) for d in paths(chart)]
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in chart.svg.iter("circle")]
    return found + dots


def paths(chart):
    return [p.get("d") for p in chart.svg.iter("path") if p.get("class") == "curve"]


@pytest.mark.parametrize("logs", [False, True])
def test_lines_stay_in_the_frame(logs):
    chart = lines("t", [line((1, 1e-9), (2, 0.3), (8, 7.0))], log_x=logs, log_y=logs)
    for x, y in coordinates(chart):
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= HEIGHT - BOTTOM


def test_a_power_is_a_straight_line_on_logarithmic_axes():
    chart = lines(
        "t", [line(*((m, m**-2.0) for m in (1, 2, 4, 8)))], ticks=(1, 2, 4, 8), log_x=True, log_y=True
    )
    places = sorted((float(c.get("cx")), float(c.get("cy"))) for c in chart.svg.iter("circle"))
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(places)]
    assert slopes == pytest.approx([slopes[0]] * 3, rel=0.01)
    assert chart.note == "log x, log y"


def test_what_is_missing_leaves_a_gap():
    chart = lines("t", [line((0, 1.0), (1, 2.0), (2, None), (3, float("nan")), (4, 3.0), (5, 1.0))])
    assert len(paths(chart)) == 2
    assert len(list(chart.svg.iter("circle"))) == 4


@pytest.mark.parametrize("value", [None, float("inf"), float("nan")])
def test_without_a_value_there_is_no_chart(value):
    assert lines("t", [line((0, value))]) is None
    assert lines("t", []) is None


def test_zero_cannot_be_drawn_on_a_logarithmic_axis():
    assert lines("t", [line((0, 0.0), (1, -1.0))], log_y=True) is None


def test_one_point_and_equal_values_have_an_axis():
    for log in (False, True):
        chart = lines("t", [line((1, 2.0)), line((1, 2.0))], log_x=log, log_y=log)
        assert len(list(chart.svg.iter("circle"))) == 2
