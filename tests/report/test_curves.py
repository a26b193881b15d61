"""The geometry of plots: axes, ticks, curves, gaps."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resode.quantities import number
from resode.report import axes, curves
from resode.training.records import reader

MakeRun = Callable[..., Path]


def draw(
    values: Sequence[float | None], *, end: int | None = None, stretch: float = curves.STRETCH
) -> curves.Plot | None:
    points = tuple((k + 1, value) for k, value in enumerate(values))
    series = curves.Series("train", "train", points)
    return curves.plot("Loss", [series], end or len(values), write=number, stretch=stretch)


def coordinates(path: str) -> list[tuple[float, float]]:
    pairs = re.findall(r"[ML](\S+?) ([^ML]+)", path)
    return [(float(x), float(y)) for x, y in pairs]


@given(st.lists(st.none() | st.floats(), max_size=30), st.floats(min_value=1.5))
def test_every_curve_stays_in_its_frame(values: list[float | None], stretch: float) -> None:
    plot = draw(values, stretch=stretch)
    if plot is None:
        assert not any(v is not None and abs(v) <= curves.LARGEST for v in values)
        return
    places = [p for line in plot.lines for p in (*coordinates(line.path), *line.dots)]
    assert len(places) == sum(v is not None and abs(v) <= curves.LARGEST for v in values)
    for x, y in places:
        assert axes.LEFT <= x <= axes.WIDTH - axes.RIGHT
        assert axes.TOP <= y <= axes.HEIGHT - axes.BOTTOM
    assert 2 <= len(plot.y_ticks) <= 15
    heights = [tick.at for tick in plot.y_ticks]
    assert heights == sorted(heights, reverse=True)


def test_larger_is_higher_and_later_is_further_right() -> None:
    plot = draw([1.0, 3.0, 2.0])
    assert plot is not None
    (x1, y1), (x2, y2), (x3, y3) = coordinates(plot.lines[0].path)
    assert x1 < x2 < x3
    assert y2 < y3 < y1
    assert plot.scale == "linear"
    assert plot.y_ticks[0].label == "0"


def test_a_wide_range_is_logarithmic_with_ticks_in_their_places() -> None:
    plot = draw([100.0, 10.0, 1.0])
    assert plot is not None
    assert plot.scale == "logarithmic"
    (_, top), (_, middle), (_, bottom) = coordinates(plot.lines[0].path)
    assert middle == pytest.approx((top + bottom) / 2, abs=0.1)
    ticks = {tick.label: tick.at for tick in plot.y_ticks}
    assert list(ticks) == ["1", "2", "5", "10", "20", "50", "100"]
    assert (ticks["1"], ticks["10"], ticks["100"]) == (bottom, middle, top)


def test_zero_lies_on_a_logarithmic_axis() -> None:
    plot = draw([50.0, 5.0, 0.0])
    assert plot is not None
    assert coordinates(plot.lines[0].path)[-1][1] == axes.HEIGHT - axes.BOTTOM


def test_what_is_not_finite_leaves_a_gap() -> None:
    plot = draw([3.0, 2.0, math.nan, 1.0, math.inf])
    assert plot is not None
    assert plot.lines[0].path.count("M") == 1
    assert len(plot.lines[0].dots) == 1


def test_an_unfinished_run_has_room_for_what_is_to_come() -> None:
    plot = draw([3.0, 2.0], end=100)
    assert plot is not None
    assert coordinates(plot.lines[0].path)[-1][0] < 70
    assert plot.x_ticks[-1].label == "100"


def test_readings_tile_the_width_and_say_the_values() -> None:
    plot = draw([3.0, 2.5, 2.0])
    assert plot is not None
    assert [r.text for r in plot.readings] == ["epoch 1: train 3", "epoch 2: train 2.5", "epoch 3: train 2"]
    assert sum(r.width for r in plot.readings) == pytest.approx(axes.WIDTH - axes.LEFT - axes.RIGHT, abs=0.5)
    long = draw([1.0] * 1000)
    assert long is not None
    assert len(long.readings) <= curves.READINGS


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_epochs_are_labelled_with_few_round_numbers(first: int, length: int) -> None:
    plot = curves.plot(
        "Loss", [curves.Series("train", "train", ((first, 1.0),))], first + length, write=number, stretch=10
    )
    assert plot is not None
    assert 2 <= len(plot.x_ticks) <= 10
    places = [tick.at for tick in plot.x_ticks]
    assert places == sorted(places)


def test_a_schedule_of_milestones_is_logarithmic_a_smooth_one_linear(make_run: MakeRun) -> None:
    def scale(name: str, rates: list[float]) -> str:
        rows = [{"epoch": k + 1, "learning_rate": rate} for k, rate in enumerate(rates)]
        return curves.of(reader.read(make_run(name, epochs=rows, summary=None)))[-1].scale

    assert scale("steps", [0.1] * 10 + [0.01] * 5 + [0.001] * 5) == "logarithmic"
    assert scale("cycle", [0.02 * k for k in range(1, 11)]) == "linear"


def test_what_was_never_measured_has_no_plot(make_run: MakeRun) -> None:
    plots = curves.of(reader.read(make_run(epochs="epoch,train_loss\n1,2.0\n2,1.5\n", summary=None)))
    assert [plot.title for plot in plots] == ["Loss"]
    assert [line.label for line in plots[0].lines] == ["train"]


def test_the_test_error_is_one_point_at_the_last_epoch(make_run: MakeRun) -> None:
    error = curves.of(reader.read(make_run()))[0]
    test = next(line for line in error.lines if line.label == "test")
    assert test.path == ""
    assert len(test.dots) == 1
    assert test.dots[0][0] == axes.WIDTH - axes.RIGHT
    assert test.last == "12.50 %"
