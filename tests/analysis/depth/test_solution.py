"""An equation is solved in other steps with the same theta(t): the same flow, at the order of the scheme."""

import pytest
import torch
from torch import nn

import resode
from resode import DynamicNet, Stage, TimeGrid
from resode.analysis.depth.convergence import FACTORS, Products
from resode.analysis.depth.normalisation import AffineMaps
from resode.analysis.depth.schemes import TABLEAUS, OfPair, OfSecondOrder, other_schemes
from resode.analysis.depth.solution import Solution, finer, integrated_back, scheme_of, solving, steps_of
from resode.blocks import DynamicBlock
from resode.integrators import FixedStep, Leapfrog, LearnedTwoStep, Momentum, integrators, solve
from resode.statistics import Statistics

SMOOTH = {"name": "parabolic", "norm": None, "activation": "tanh"}
SCHEMES = [
    name
    for name in integrators.names()
    if not integrators.entry(name).required and isinstance(integrators.of(name), FixedStep)
]
WITH_ORDER = [name for name in SCHEMES if integrators.of(name).order is not None]
PAIR = {"name": "hamiltonian", "norm": None, "activation": "tanh"}


def block(scheme, states, field=None, **more):
    scheme = integrators.of(scheme)
    field = field or (PAIR if len(scheme.parts) == 2 else SMOOTH)
    made = DynamicBlock(Stage(4, field, scheme, states, **more)).double().eval()
    return made.requires_grad_(False)


def state(n=3):
    return torch.randn(n, 4, 5, 5, dtype=torch.float64, generator=torch.manual_seed(1))


def refined(made, factor):
    return Solution(made, scheme_of(made), steps_of(finer(made, factor)))


def convergence(made, y):
    products = Products()
    products.add(y, {factor: refined(made, factor)(y) for factor in FACTORS})
    return products.convergence()


@pytest.mark.parametrize("name", SCHEMES)
def test_in_its_own_steps_it_is_the_network(name):
    made, y = block(name, TimeGrid.uniform(3, 0.9)), state()
    torch.testing.assert_close(refined(made, 1)(y), made(y), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["euler", "adams_bashforth2", "symplectic_euler"])
def test_kept_statistics_are_those_of_the_network_at_its_own_evaluations(name):
    field = {"name": "hamiltonian", "norm": "batch"} if name == "symplectic_euler" else "preactivation"
    made, y = block(name, TimeGrid.uniform(3, 0.9), field), state()
    for tensor in made.statistics.buffers():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2.0)
    for parameter in made.parameters():
        parameter.uniform_(-0.5, 0.5)
    torch.testing.assert_close(refined(made, 1)(y), made(y), rtol=1e-11, atol=1e-11)


def test_between_evaluations_the_affine_maps_are_interpolated_linearly():
    made = block("euler", [0, 1, 2], "preactivation")
    for tensor in made.statistics.buffers():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2.0)

    def affine(time):
        found = AffineMaps(made).tensors("f", time, time)
        return found["norm1.weight"], found["norm1.bias"]

    (a0, c0), (a1, c1), (a, c) = affine(0.0), affine(1.0), affine(0.25)
    torch.testing.assert_close(a, 0.75 * a0 + 0.25 * a1)
    torch.testing.assert_close(c, 0.75 * c0 + 0.25 * c1)
    for after in (1.0, 1.5, 2.0):  # Euler never evaluates there: constant
        torch.testing.assert_close(affine(after), (a1, c1))


def test_a_normalisation_without_parameters_keeps_its_map():
    def make(width):
        return nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width, affine=False))

    made, y = block("euler", 2, make), state()
    for tensor in made.statistics.buffers():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2.0)
    torch.testing.assert_close(refined(made, 1)(y), made(y), rtol=1e-11, atol=1e-11)


def test_finer_steps_are_those_of_a_regridded_network():
    net = DynamicNet([Stage(4, SMOOTH, "rk4", states=2)]).double().eval()
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    doubled = resode.regrid(net, states="double")
    made = solving(net, lambda b: (scheme_of(b), finer(b, 2)))
    torch.testing.assert_close(made(x), doubled(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", WITH_ORDER)
def test_the_observed_order_is_the_stated_one(name):
    scheme = integrators.of(name)
    if isinstance(scheme, Momentum):  # in a time in which its two errors, Euler's and the lag, do not cancel
        made = block(Momentum(0.5), TimeGrid.uniform(16, 0.2), interpolation="shared")
    else:
        made = block(name, TimeGrid.uniform(4, 0.8), interpolation="shared")
    found = convergence(made, state())
    assert found.order == pytest.approx(scheme.order, abs=0.2)
    assert found.low <= found.order <= found.high
    for coarse, fine in ((1, 2), (2, 4)):
        assert found.distances[fine] < 0.75 * found.distances[coarse]


def test_the_limit_of_a_linear_field_is_its_flow():
    def linear(width):
        return nn.Conv2d(width, width, 1, bias=False)

    made, y = block("heun", TimeGrid.uniform(4, 1.0), linear, interpolation="shared"), state()
    matrix = made.controls[0].weight[:, :, 0, 0]
    flow = torch.einsum("oc,nchw->nohw", torch.linalg.matrix_exp(matrix), y)
    found = convergence(made, y)
    exact = ((made(y) - flow).flatten(1).norm(dim=1) / (flow - y).flatten(1).norm(dim=1)).median()
    assert found.order == pytest.approx(2, abs=0.1)
    assert found.distances[1] == pytest.approx(float(exact), rel=0.02)


def test_with_jumps_of_theta_the_order_is_kept_because_steps_stay_in_a_piece():
    made = block("rk4", TimeGrid.uniform(3, 0.9), controls=[0, 0.3, 0.6, 0.9], interpolation="constant")
    assert convergence(made, state()).order == pytest.approx(4, abs=0.2)
    inside = block("heun", [0, 0.5, 1.0], controls=[0, 0.3, 1.0], interpolation="constant")
    assert 0.3 in finer(inside, 2).nodes
    assert convergence(inside, state()).order == pytest.approx(2, abs=0.2)


def test_a_field_of_zeros_is_exact_and_has_no_order():
    def zero(width):
        made = nn.Conv2d(width, width, 1)
        nn.init.zeros_(made.weight)
        nn.init.zeros_(made.bias)
        return made

    found = convergence(block("euler", 2, zero), state())
    assert found.exact
    assert found.order is None
    assert set(found.distances.values()) == {0.0}


def test_states_that_are_not_finite_give_no_numbers():
    products = Products()
    products.add(state(), {factor: torch.full_like(state(), float("nan")) for factor in FACTORS})
    found = products.convergence()
    assert found.order is None
    assert not found.exact
    assert set(found.distances.values()) == {None}


# ---------------------------------------------------------------- schemes


@pytest.mark.parametrize("tableau", TABLEAUS, ids=lambda s: s.name)
@pytest.mark.parametrize("kind", ["second order", "pair"])
def test_systems_are_solved_at_the_order_of_the_tableau(tableau, kind):
    scheme = OfSecondOrder(tableau) if kind == "second order" else OfPair(tableau, -1.0)
    y = torch.tensor([[0.7, 0.3]], dtype=torch.float64)

    def f(t, y, part="f"):
        return torch.sin(y + t) if kind == "pair" else -torch.sin(y) - t

    ends = [solve(scheme, TimeGrid.uniform(n, 1.0), f, y)[-1] for n in (32, 64, 128)]
    order = torch.log2((ends[0] - ends[1]).norm() / (ends[1] - ends[2]).norm())
    assert float(order) == pytest.approx(tableau.order, abs=0.2)


@pytest.mark.parametrize(
    ("own", "other"), [("leapfrog", "rk4"), ("stormer_verlet", "rk4"), ("symplectic_euler", "rk4")]
)
def test_other_schemes_solve_the_same_equation(own, other):
    made, y = block(own, TimeGrid.uniform(2, 0.4), interpolation="shared"), state()
    scheme = next(s for s in other_schemes(scheme_of(made)) if s.name == "RK4")
    fine = TimeGrid.uniform(64, 0.4)
    ours = Solution(made, scheme_of(made), steps_of(fine))(y)
    theirs = Solution(made, scheme, steps_of(fine))(y)
    limit = 1e-2 if own == "symplectic_euler" else 1e-4  # h and h^2
    assert (ours - theirs).norm() < limit * (theirs - y).norm()


def test_a_scheme_is_not_swapped_for_itself_or_for_another_equation():
    assert [s.name for s in other_schemes(integrators.of("euler"))] == ["Heun", "RK4"]
    assert [s.name for s in other_schemes(integrators.of("midpoint"))] == ["Euler", "Heun", "RK4"]
    projected = other_schemes(integrators.of("projected_euler"))
    assert [s.name for s in projected] == ["Projected Heun", "Projected RK4"]
    assert all(isinstance(s, OfSecondOrder) for s in other_schemes(Leapfrog()))
    assert [s.sign for s in other_schemes(integrators.of("coupling"))] == [1.0] * 3
    assert other_schemes(LearnedTwoStep()) == ()
    assert other_schemes(integrators.of("imex")) == ()
    assert len(other_schemes(integrators.of({"name": "imex", "variant": "field"}))) == 3


# ---------------------------------------------------------------- reversal, statistics


@pytest.mark.parametrize("name", SCHEMES)
def test_integrating_back_ends_near_the_start(name):
    made, y = block(name, TimeGrid.uniform(16, 0.4), interpolation="shared"), state()
    if scheme_of(made).projects:
        pytest.skip("a projection loses what it cuts off")
    end, start = integrated_back(made, y)
    torch.testing.assert_close(end, made(y))
    error = (start - y).norm() / y.norm()
    assert error < (1e-10 if scheme_of(made).reversible else 0.1)


def test_statistics_estimated_anew_belong_to_the_evaluations_of_the_finer_grid():
    net = DynamicNet([Stage(4, "preactivation", "euler", states=2)])
    made = solving(net, lambda b: (scheme_of(b), finer(b, 4)), anew=True)
    assert len([m for m in made.modules() if isinstance(m, Statistics)]) == 8
    kept = solving(net, lambda b: (scheme_of(b), finer(b, 4)))
    assert not [m for m in kept.modules() if isinstance(m, Statistics)]
