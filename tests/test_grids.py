"""Time grids: increasing nodes, refined and coarsened without a trace, read back from plain data."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resode.errors import InputError
from resode.grids import TimeGrid

times = st.floats(-1e3, 1e3).map(lambda t: round(t, 6))
grids = st.lists(times, min_size=2, max_size=12, unique=True).map(
    lambda nodes: TimeGrid(tuple(sorted(nodes)))
)
uniform = st.builds(
    lambda steps, start, length: TimeGrid.uniform(steps, start + length, start),
    st.integers(1, 40),
    st.floats(-10, 10),
    st.floats(0.01, 10),
)


@given(uniform)
def test_a_uniform_grid_has_equal_steps_and_its_own_ends(grid):
    assert grid.is_uniform
    assert grid.intervals == pytest.approx([(grid.end - grid.start) / grid.steps] * grid.steps, rel=1e-9)


def test_steps_are_1_where_no_end_is_given():
    assert TimeGrid.uniform(3).nodes == (0.0, 1.0, 2.0, 3.0)
    assert TimeGrid.uniform(2, start=5.0).nodes == (5.0, 6.0, 7.0)


@given(grids, st.integers(1, 5))
def test_coarsening_undoes_refining_bit_for_bit(grid, factor):
    fine = grid.refine(factor)
    assert fine.steps == factor * grid.steps
    assert fine.coarsen(factor) == grid
    assert set(grid.nodes) <= set(fine.nodes)


@given(grids | uniform)
def test_plain_data_give_the_same_grid(grid):
    assert TimeGrid.of(json.loads(json.dumps(grid.to_data()))) == grid
    assert TimeGrid.of(grid) is grid
    assert TimeGrid.of(list(grid.nodes)) == grid
    assert hash(TimeGrid(grid.nodes)) == hash(grid)


@given(grids, st.floats(-1e3, 1e3))
def test_the_interval_of_a_time_holds_it(grid, t):
    k = grid.interval_of(t)
    assert 0 <= k < grid.steps
    if grid.start <= t < grid.end:
        assert grid.nodes[k] <= t < grid.nodes[k + 1]
    else:
        assert k == (0 if t < grid.start else grid.steps - 1)


@given(grids)
def test_a_grid_is_uniform_only_where_its_steps_are_equal(grid):
    if max(grid.intervals) - min(grid.intervals) > 1e-6:
        assert not grid.is_uniform


def test_data_of_each_kind():
    assert TimeGrid.of(3) == TimeGrid.of([0, 1, 2, 3]) == TimeGrid.of({"steps": 3})
    assert TimeGrid.of({"steps": 4, "end": 1.0, "start": -1}).nodes == (-1.0, -0.5, 0.0, 0.5, 1.0)
    assert str(TimeGrid.uniform(8, 4.0)) == "0 to 4 in 8 steps of 0.5"
    assert str(TimeGrid((0, 0.5, 2))) == "[0, 0.5, 2]"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([0, 1, 1], r"has to increase: 1 is followed by 1 in \[0, 1, 1\]"),
        ([0, 2, 1], "has to increase: 2 is followed by 1"),
        ([], "at least one node"),
        ([0, float("nan")], "finite"),
        ([0, float("inf")], "finite"),
        (["a", 1], "a list of numbers is needed"),
        ([[0, 1]], "a list of numbers is needed"),
        (0, "0 steps: a positive integer is needed"),
        (True, "give nodes"),
        (2.5, "give nodes"),
        (None, "give nodes"),
        ("0,1,2", "give nodes"),
        ({"end": 1}, "needs 'steps'"),
        ({"step": 3}, "did you mean 'steps'"),
        ({3: 1}, "no '3'"),
        ({"steps": 2.5}, "2.5 steps: a positive integer is needed"),
        ({"steps": 3, "end": "1"}, "with end '1': a finite number is needed"),
        ({"steps": 3, "start": [0]}, "with start .*: a finite number is needed"),
        ({"steps": 3, "end": -1}, "has to increase"),
    ],
)
def test_what_is_no_grid_is_refused_in_a_line(data, message):
    with pytest.raises(InputError, match=message) as caught:
        TimeGrid.of(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factor", [0, -1, 2.5, "2"])
def test_only_whole_factors_refine_and_join(factor):
    with pytest.raises(InputError, match="a positive integer is needed"):
        TimeGrid.uniform(4).refine(factor)
    with pytest.raises(InputError, match="a positive integer is needed"):
        TimeGrid.uniform(4).coarsen(factor)


def test_steps_that_do_not_go_in_pairs_are_not_joined():
    with pytest.raises(InputError, match="3 steps cannot be joined 2 at a time"):
        TimeGrid.uniform(3).coarsen()
    with pytest.raises(InputError, match="one step cannot be joined 2 at a time"):
        TimeGrid.uniform(1).coarsen()


def test_arrays_and_tensors_are_grids():
    nodes = [0.0, 0.5, 2.0]
    assert TimeGrid.of(np.array(nodes)) == TimeGrid.of(torch.tensor(nodes)) == TimeGrid.of(nodes)
    assert TimeGrid.of(np.int64(3)) == TimeGrid.uniform(3)
