"""The contract of every registered integrator: names, evaluations, carries, coefficients, one graph."""

import copy
import pickle

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resode.errors import InputError
from resode.grids import TimeGrid
from resode.integrators import (
    IMEX,
    RK4,
    AdamsBashforth2,
    Adaptive,
    Euler,
    ExplicitRungeKutta,
    Leapfrog,
    Momentum,
    Projected,
    StormerVerlet,
    TwoStepMidpoint,
    integrators,
    solve,
)
from resode.integrators.base import of_step
from tests.integrators.problems import fixed, usable, with_defaults

CHOSEN = [
    *(integrators.of(name) for name in with_defaults()),
    ExplicitRungeKutta(a=((0, 0), (2 / 3, 0)), b=(1 / 4, 3 / 4), c=(0, 2 / 3), order=2, label="Ralston"),
    TwoStepMidpoint(first="published"),
    Leapfrog(first="published"),
    Momentum(0.95),
    IMEX("field"),
    Projected("heun"),
    Adaptive("bosh3", rtol=1e-5, max_steps=50),
]


@pytest.mark.parametrize("scheme", CHOSEN, ids=repr)
def test_an_integrator_is_a_value_that_plain_data_describes(scheme):
    data = integrators.describe(scheme)
    assert integrators.of(data) == scheme
    assert hash(integrators.of(data)) == hash(scheme)
    assert copy.deepcopy(scheme) == scheme
    assert pickle.loads(pickle.dumps(scheme)) == scheme
    assert integrators.of(scheme) is scheme


@pytest.mark.parametrize("name", integrators.names())
def test_every_integrator_says_what_it_is(name):
    assert integrators.entry(name).summary
    if name in with_defaults():
        assert integrators.describe(integrators.of(name)) == name
        assert integrators.of(name).equation
        assert integrators.of(name).name


grids = st.builds(
    lambda start, steps: TimeGrid(tuple(start + sum(steps[:k]) for k in range(len(steps) + 1))),
    st.floats(-2, 2),
    st.lists(st.floats(0.05, 0.5), min_size=1, max_size=8),
)
FIXED = fixed()


def fitting(scheme, grid: TimeGrid) -> TimeGrid:
    return grid if usable(scheme, grid) else TimeGrid.uniform(grid.steps, grid.end, grid.start)


@pytest.mark.parametrize("name", FIXED)
@settings(deadline=None, max_examples=15)
@given(grid=grids)
def test_the_declared_evaluations_are_those_that_are_made(name, grid):
    """Each of a step once and in order, numbered over the grid without a gap, all within the step."""
    scheme = integrators.of(name)
    grid = fitting(scheme, grid)
    declared, offsets, asked, received = scheme.evaluations_on(grid), scheme.offsets(grid), [], []

    def g(t, y, part="f"):
        received.append((t, part))
        return torch.zeros_like(y)

    y = torch.ones(1, 2, 3, 3, dtype=torch.float64)
    coefficients = {key: value.to(y) for key, value in scheme.coefficients(grid, 2).items()}
    carry = scheme.start(y)
    for k in range(grid.steps):
        s, offset = grid.step(k), offsets[k]

        def f(i, y, s=s, offset=offset):
            asked.append(offset + i)
            assert scheme.evaluations(s)[i] == declared[offset + i]
            assert s.t <= declared[offset + i].time <= s.end
            return torch.zeros_like(y)

        carry = scheme.step(s, f, carry, of_step(coefficients, k, grid.steps))
    made = solve(scheme, grid, g, y)
    assert asked == list(range(len(declared)))
    assert received == [tuple(evaluation) for evaluation in declared]
    assert len(made) == grid.steps + 1
    assert all(grid.start <= t <= grid.end for t, _ in declared)
    assert {part for _, part in declared} == set(scheme.parts)


@pytest.mark.parametrize("name", FIXED)
@settings(deadline=None, max_examples=10)
@given(grid=grids)
def test_without_a_right_hand_side_nothing_moves(name, grid):
    """f = 0 keeps the state, bit for bit (IMEX with L = 0: within the rounding of its transform)."""
    scheme = integrators.of(name)
    grid = fitting(scheme, grid)
    y = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    y = y.abs() if scheme.projects else y
    zero = {key: torch.zeros_like(v, dtype=y.dtype) for key, v in scheme.coefficients(grid, 4).items()}
    states = solve(scheme, grid, lambda t, y, part="f": torch.zeros_like(y), y, zero)
    assert len(states) == grid.steps + 1
    for state in states:
        torch.testing.assert_close(state, y, rtol=0, atol=1e-14 if name == "imex" else 0)


FLOWS = fixed(
    where=lambda s: (
        s.order is not None and not (s.second_order or s.projects) and len(s.parts) == 1 and s != Momentum()
    )
)


@pytest.mark.parametrize("name", FLOWS)
@settings(deadline=None, max_examples=10)
@given(grid=grids, speed=st.floats(-3, 3))
def test_a_constant_right_hand_side_is_integrated_exactly(name, grid, speed):
    """y' = c: y_n = y_0 + c (t_n - t_0) on any grid."""
    scheme = integrators.of(name)
    grid = fitting(scheme, grid)
    y = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    zero = {key: torch.zeros_like(v, dtype=y.dtype) for key, v in scheme.coefficients(grid, 2).items()}
    states = solve(scheme, grid, lambda t, y: torch.full_like(y, speed), y, zero)
    for t, state in zip(grid.nodes, states, strict=True):
        torch.testing.assert_close(state, y + speed * (t - grid.start), rtol=0, atol=1e-13)


@given(grid=grids, force=st.floats(-3, 3))
@settings(deadline=None, max_examples=15)
def test_leapfrog_falls_exactly_on_any_grid(grid, force):
    """y'' = c: y = y_0 + c (t - t_0)^2 / 2."""
    y = torch.ones(1, 1, dtype=torch.float64)
    states = solve(Leapfrog(), grid, lambda t, y: torch.full_like(y, force), y)
    for t, state in zip(grid.nodes, states, strict=True):
        torch.testing.assert_close(state, y + force * (t - grid.start) ** 2 / 2, rtol=0, atol=1e-13)


@given(grid=grids)
@settings(deadline=None, max_examples=15)
def test_adams_bashforth_integrates_t_exactly_but_for_its_start(grid):
    """y' = t: Euler's first step is wrong by h^2/2, the others add nothing to it, whatever their ratios."""
    y = torch.zeros(1, 1, dtype=torch.float64)
    states = solve(AdamsBashforth2(), grid, lambda t, y: torch.full_like(y, t), y)
    error = grid.intervals[0] ** 2 / 2
    for t, state in zip(grid.nodes[1:], states[1:], strict=True):
        assert float(state) == pytest.approx((t**2 - grid.start**2) / 2 - error, abs=1e-13)


@given(grid=grids)
@example(grid=TimeGrid((-0.7, 1.9)))  # -0.7 + (1.9 - -0.7) is not 1.9
@settings(deadline=None, max_examples=15)
def test_stages_at_the_ends_of_a_step_are_at_its_nodes(grid):
    """RK4 asks for theta at t_k and t_{k+1} themselves, so that controls there need no interpolation."""
    times = {t for t, _ in RK4().evaluations_on(grid)}
    assert set(grid.nodes) <= times
    assert len(times) == 2 * grid.steps + 1


@pytest.mark.parametrize(("name", "each", "more"), [("euler", 1, 0), ("rk4", 4, 0), ("stormer_verlet", 2, 1)])
def test_what_a_scheme_costs(name, each, more):
    assert len(integrators.of(name).evaluations_on(TimeGrid.uniform(7))) == 7 * each + more


def test_stormer_verlet_asks_for_times_that_a_step_shares():
    grid = TimeGrid((0.0, 1.0, 3.0))
    assert [tuple(e) for e in StormerVerlet().evaluations_on(grid)] == [
        (0.0, "G"), (0.5, "F"), (1.0, "G"), (2.0, "F"), (3.0, "G"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", FIXED)
def test_learned_coefficients_are_stacked_over_the_steps_and_may_be_meta(name):
    scheme, grid = integrators.of(name), TimeGrid.uniform(5)
    for value in scheme.coefficients(grid, 6).values():
        assert value.shape[0] == (4 if name == "learned_two_step" else 5)  # whose first step is Euler's
    with torch.device("meta"):
        assert all(value.is_meta for value in scheme.coefficients(grid, 6).values())


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_states_keep_their_shape_and_dtype(name, dtype):
    scheme, grid = integrators.of(name), TimeGrid.uniform(3, 0.3)
    y = torch.randn(2, 4, 5, 3).to(dtype)
    states = solve(scheme, grid, lambda t, y, part="f": torch.tanh(y), y)
    assert all(state.shape == y.shape and state.dtype == dtype for state in states)


def small_flow(scheme):
    """The last state as a function of y and of the learned coefficients, with y and these."""
    grid = TimeGrid.uniform(2, 0.2)
    y = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    learned = {key: v.to(y).requires_grad_() for key, v in scheme.coefficients(grid, 2).items()}

    def flow(y, *values):
        coefficients = dict(zip(learned, values, strict=True))
        return solve(scheme, grid, lambda t, y, part="f": torch.tanh(y), y, coefficients)[-1]

    return flow, y, tuple(learned.values())


@pytest.mark.parametrize("name", FIXED)
def test_the_gradient_of_a_solution_is_right(name):
    """In y and in the learned coefficients."""
    flow, y, learned = small_flow(integrators.of(name))
    assert torch.autograd.gradcheck(flow, (y, *learned))


@pytest.mark.parametrize("name", FIXED)
def test_a_solution_is_one_graph(name):
    """`fullgraph=True` on a cheap backend, the values those of the plain form."""
    flow, y, learned = small_flow(integrators.of(name))
    torch._dynamo.reset()
    compiled = torch.compile(flow, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(y, *learned), flow(y, *learned), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", with_defaults())
def test_one_node_is_no_grid_to_integrate_on(name):
    with pytest.raises(InputError, match="at least two nodes"):
        integrators.of(name).check(TimeGrid((0.0,)))


@pytest.mark.parametrize("name", fixed(where=lambda scheme: len(scheme.parts) > 1))
def test_an_odd_width_cannot_be_split(name):
    with pytest.raises(InputError, match=r"3 channels .* even width"):
        solve(integrators.of(name), TimeGrid.uniform(2), lambda t, y, part: y, torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("rk5", "unknown integrator 'rk5'; did you mean 'rk4'"),
        ({"name": "momentum", "gamma": 0.9}, "momentum has no option 'gamma'"),
        ({"name": "momentum", "g": 1}, "0 < g < 1"),
        ({"name": "momentum", "g": 0.0}, "0 < g < 1"),
        ({"name": "momentum", "g": "0.9"}, "0 < g < 1"),
        ({"name": "leapfrog", "first": "hal"}, "unknown first step 'hal'; did you mean 'half'"),
        ({"name": "two_step_midpoint", "first": 2}, "unknown first step '2'"),
        ({"name": "imex", "variant": "damp"}, "unknown variant 'damp'; did you mean 'damped'"),
        ({"name": "euler", "order": 1}, "euler has no option 'order'"),
        ({"name": "projected", "scheme": "huen"}, "unknown scheme 'huen'; did you mean 'heun'"),
        ({"name": "runge_kutta", "b": [1], "c": [0]}, "runge_kutta needs the option 'a'"),
    ],
)
def test_mistakes_get_one_line(data, message):
    with pytest.raises(InputError, match=message) as caught:
        integrators.of(data)
    assert len(str(caught.value).splitlines()) == 1


def test_the_two_step_midpoint_refuses_unequal_steps_with_the_mend():
    with pytest.raises(InputError, match=r"needs equal steps, this grid has steps from 1 to 2; .*adams_bash"):
        solve(TwoStepMidpoint(), TimeGrid((0.0, 1.0, 3.0)), lambda t, y: y, torch.ones(1, 1))
    TwoStepMidpoint().check(TimeGrid.uniform(1000, 0.7, -3.0))


def test_solve_takes_the_initial_coefficients_by_default():
    y = torch.ones(1, 3, 4, 4)
    assert len(solve(IMEX(), TimeGrid.uniform(2), lambda t, y: y, y)) == 3
    assert len(solve(Euler(), TimeGrid.uniform(2), lambda t, y: y, torch.tensor(1.0))) == 3
