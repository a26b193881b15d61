"""An axis covers its values and has distinct levels, for all finite values."""

import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resode.report.axes import LARGEST, axis
from resode.report.scatter import _spaced

VALUES = st.lists(st.floats(-LARGEST, LARGEST), min_size=1, max_size=6)


@given(values=VALUES, zero=st.booleans(), stretch=st.sampled_from([4.0, math.inf]))
@example(values=[55.75, math.nextafter(55.75, 56)], zero=False, stretch=4.0)
@example(values=[55.75, math.nextafter(55.75, 56)], zero=False, stretch=math.inf)
def test_an_axis_covers_its_values_with_distinct_levels(values, zero, stretch) -> None:
    found = axis(values, 40.0, 600.0, zero=zero, stretch=stretch)
    assert all(a < b for a, b in itertools.pairwise(found.levels))
    assert all(40 <= found(value) <= 600 for value in values)
    _spaced([(found(level), f"{level:g}") for level in found.levels])
    if not found.logarithmic:
        slack = 1e-9 * max(map(abs, values)) + 1 / LARGEST
        assert found.low <= min(values) + slack
        assert max(values) <= found.high + slack


@pytest.mark.parametrize("near", [52.0, 1e-3, 4e8, -7.5])
def test_values_equal_to_rounding_have_the_axis_of_one_value(near) -> None:
    one = axis([near], 0.0, 100.0, zero=False)
    assert axis([near, math.nextafter(near, math.inf)], 0.0, 100.0, zero=False).levels == one.levels
