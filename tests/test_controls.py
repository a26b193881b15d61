"""Controls: theta(t) by its formulas, the nodes that are used, statistics, and regularity in time."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from resode.blocks import DynamicBlock
from resode.controls import (
    INTERPOLATIONS,
    Controls,
    controls_of,
    default_controls,
    interpolation_weights,
    roughness,
)
from resode.errors import InputError
from resode.gradients import gradients
from resode.grids import TimeGrid
from resode.integrators import integrators
from resode.models.dynamic import DynamicNet
from resode.stages import Stage
from tests.integrators.problems import fixed, usable

times = st.integers(-60_000, 60_000).map(lambda k: k / 1000)
grids = st.lists(times, min_size=1, max_size=8, unique=True).map(lambda ts: TimeGrid(tuple(sorted(ts))))
state_grids = grids.filter(lambda grid: grid.steps >= 1)


def value(weights, at_nodes):
    return sum(w * at_nodes[j] for j, w in weights)


@given(grids, times)
def test_linear_weights_are_those_of_linear_interpolation(grid, t):
    at_nodes = [np.sin(3 * tau) for tau in grid.nodes]
    expected = np.interp(t, grid.nodes, at_nodes)
    assert value(interpolation_weights(grid, "linear", t), at_nodes) == pytest.approx(expected, abs=1e-9)


@given(grids, times)
def test_constant_weights_take_the_node_to_the_left(grid, t):
    left = max([j for j, tau in enumerate(grid.nodes) if tau <= grid.snap(t)], default=0)
    assert interpolation_weights(grid, "constant", t) == ((left, 1.0),)


@given(grids, times, st.sampled_from(INTERPOLATIONS))
def test_weights_are_positive_and_sum_to_one(grid, t, interpolation):
    weights = interpolation_weights(grid, interpolation, t)
    assert all(w > 0 for _, w in weights)
    assert [j for j, _ in weights] == list(range(weights[0][0], weights[-1][0] + 1))
    assert sum(w for _, w in weights) == pytest.approx(1, abs=1e-14)  # a few roundings for each degree


@pytest.mark.parametrize(("interpolation", "degree"), [("quadratic", 2), ("cubic", 3)])
@given(grids.filter(lambda grid: len(grid.nodes) >= 5), st.data())
def test_every_polynomial_of_its_degree_is_a_spline(interpolation, degree, grid, data):
    """Through the values at as many times as there are controls, theta is the polynomial everywhere."""
    t = np.linspace(grid.start, grid.end, 50)
    unit = lambda t: 2 * (np.asarray(t) - grid.start) / (grid.end - grid.start) - 1  # noqa: E731
    power = data.draw(st.integers(0, degree))
    basis = np.array(
        [
            [value(interpolation_weights(grid, interpolation, s), e) for e in np.eye(len(grid.nodes))]
            for s in t
        ]
    )
    coefficients, *_ = np.linalg.lstsq(basis, unit(t) ** power, rcond=None)
    assert np.abs(basis @ coefficients - unit(t) ** power).max() < 1e-8
    beyond = np.linalg.lstsq(basis, unit(t) ** (len(grid.nodes) + 3), rcond=None)[0]
    assert np.abs(basis @ beyond - unit(t) ** (len(grid.nodes) + 3)).max() > 1e-6


@pytest.mark.parametrize(("interpolation", "degree"), [("quadratic", 2), ("cubic", 3)])
@given(st.integers(1, 6), st.floats(0, 6))
def test_splines_on_few_nodes_are_bernstein_polynomials(interpolation, degree, nodes, t):
    """Up to d + 1 nodes there is no inner knot; on fewer the degree is one less than their number."""
    grid = TimeGrid(tuple(float(k) for k in range(nodes)))
    if nodes > degree + 1 or not grid.start < t < grid.end:
        return
    n, x = nodes - 1, t / grid.end
    for j, w in interpolation_weights(grid, interpolation, t):
        assert w == pytest.approx(math.comb(n, j) * x**j * (1 - x) ** (n - j), abs=1e-12)


def test_a_spline_of_degree_d_has_d_minus_1_continuous_derivatives():
    """Differences of order d over h^(d-1) vanish with h, those of order d + 1 over h^d do not."""
    grid, c = TimeGrid.uniform(6), np.sin(np.arange(7.0) * 2)
    for interpolation, degree in (("quadratic", 2), ("cubic", 3)):
        h = 1e-3
        t = np.arange(0.5, 5.5, h)
        theta = np.array([value(interpolation_weights(grid, interpolation, s), c) for s in t])
        jumps = [np.abs(np.diff(theta, k + 1)).max() / h**k for k in (degree - 1, degree)]
        assert jumps[0] < 0.05
        assert jumps[1] > 0.05


@given(grids, st.sampled_from(["linear", "constant"]))
def test_a_node_is_used_exactly_as_it_is(grid, interpolation):
    for j, tau in enumerate(grid.nodes):
        assert interpolation_weights(grid, interpolation, tau) == ((j, 1.0),)


@given(grids, st.sampled_from(["linear", "constant"]), st.sampled_from([-math.inf, math.inf]))
def test_a_time_that_differs_from_a_node_by_rounding_is_that_node(grid, interpolation, direction):
    """Else theta would jump where controls are constant, and a node count as touched with no weight."""
    for j, tau in enumerate(grid.nodes):
        beside = math.nextafter(tau, direction)
        assert interpolation_weights(grid, interpolation, beside) == ((j, 1.0),)
    assert interpolation_weights(TimeGrid((-1.0, 1e-17)), "linear", 0.0) == ((1, 1.0),)


THREE = TimeGrid((0.0, 1.0, 3.0))


def controls(grid=THREE, interpolation="linear", parts=("f",)):
    torch.manual_seed(0)
    return Controls(lambda: nn.Conv2d(2, 2, 3).double(), parts, grid, interpolation)


def test_theta_between_nodes_is_the_combination_of_every_parameter():
    made = controls()
    for name, theta in made.at(1.5).items():
        before, after = (dict(made[j].named_parameters())[name] for j in (1, 2))
        torch.testing.assert_close(theta, 0.75 * before + 0.25 * after, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("interpolation", ["linear", "constant"])
def test_theta_at_a_node_and_outside_is_the_parameters_themselves(interpolation):
    made = controls(interpolation=interpolation)
    for t, j in ((-5.0, 0), (0.0, 0), (1.0, 1), (3.0, 2), (9.0, 2)):
        assert all(theta is dict(made[j].named_parameters())[name] for name, theta in made.at(t).items())


def test_shared_controls_are_one_node():
    made = controls(TimeGrid((0.0,)), "shared")
    assert made.at(-1.0)["weight"] is made.at(7.0)["weight"] is made[0].weight
    with pytest.raises(InputError, match=r"shared controls have one node, \[0, 1, 3\] has 3"):
        controls(interpolation="shared")


@pytest.mark.parametrize("interpolation", ["linaer", None, 3, ["linear"]])
def test_an_unknown_interpolation_is_named(interpolation):
    with pytest.raises(InputError, match=r"unknown interpolation .*linear, constant, shared"):
        controls(interpolation=interpolation)


@pytest.mark.parametrize(
    ("integrator", "steps", "interpolations", "evaluations"),
    [("rk4", 4, 4, 16), ("euler", 4, 0, 4), ("midpoint", 3, 3, 6), ("heun", 3, 0, 6)],
)
def test_equal_times_share_one_theta(monkeypatch, integrator, steps, interpolations, evaluations):
    """RK4 on 4 steps interpolates at 4 times, not in 16 evaluations."""
    block = DynamicBlock(Stage(2, "parabolic", integrator, steps))
    a_node = len(list(block.controls[0].parameters()))
    calls, lerp = [], torch.lerp
    monkeypatch.setattr(torch, "lerp", lambda *args: calls.append(1) or lerp(*args))
    block(torch.randn(1, 2, 4, 4))
    assert len(calls) == interpolations * a_node
    assert len(block.evaluations) == evaluations


@pytest.mark.parametrize(("integrator", "steps", "count"), [("euler", 3, 3), ("rk4", 4, 5), ("heun", 2, 3)])
def test_the_nodes_where_none_are_given(integrator, steps, count):
    block = DynamicBlock(Stage(2, "parabolic", integrator, steps))
    assert block.controls.grid == TimeGrid(tuple(range(count)))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(fixed()), st.sampled_from(INTERPOLATIONS), state_grids)
def test_the_nodes_where_none_are_given_are_all_used(name, interpolation, grid):
    """For every scheme on any grid that it accepts; every evaluated state node is among them."""
    scheme = integrators.of(name)
    assume(usable(scheme, grid))
    evaluations = scheme.evaluations_on(grid)
    chosen = default_controls(grid, evaluations, interpolation)
    for part in scheme.parts:
        times = [t for t, of in evaluations if of == part]
        touched = {j for t in times for j, _ in interpolation_weights(chosen, interpolation, t)}
        assert touched == set(range(len(chosen.nodes)))
    if interpolation == "linear":
        assert {t for t, _ in evaluations} & set(grid.nodes) <= set(chosen.nodes)


@pytest.mark.parametrize("name", fixed())
def test_a_default_block_of_every_scheme_and_interpolation_can_be_built(name):
    for interpolation in INTERPOLATIONS:
        block = DynamicBlock(Stage(4, "parabolic", name, 2, interpolation=interpolation))
        y = block(torch.randn(1, 4, 3, 3))
        y.square().sum().backward()
        assert all(p.grad is not None for p in block.controls.parameters())


def test_a_node_that_nothing_evaluates_is_an_error():
    message = (
        "no evaluation of Euler on states [0, 1, 2] touches the control nodes 2 of [0, 1, 2]: "
        "remove them, or omit controls (default: [0, 1])"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        DynamicBlock(Stage(2, "parabolic", "euler", 2, controls=2))


def methods_of(name):
    """The gradient methods that a scheme can run."""
    for method in gradients.names():
        try:
            gradients.of(method).check(integrators.of(name), TimeGrid.uniform(2))
        except InputError:
            continue
        yield method


KEPT = [(name, method) for name in fixed() for method in methods_of(name) if method != "adjoint"]


@pytest.mark.parametrize(("name", "method"), KEPT)
@pytest.mark.parametrize("interpolation", ["linear", "constant"])
def test_kept_nodes_have_the_gradient_zero_and_change_nothing(name, method, interpolation):
    """Two nodes behind the grid: the second is never touched, of no part."""
    usual = Stage(4, "parabolic", name, TimeGrid.uniform(2), interpolation=interpolation, gradient=method)
    grid = TimeGrid((*DynamicBlock(usual).controls.grid.nodes, 8.0, 9.0))
    torch.manual_seed(0)
    block = DynamicBlock(
        Stage(4, "parabolic", name, 2, grid, interpolation=interpolation, gradient=method, keep_unused=True)
    )
    last = len(grid.nodes) - 1
    assert last in block.unused
    x = torch.randn(2, 4, 4, 4)
    y = block(x)
    y.square().sum().backward()
    for j in block.unused:
        for part in block.controls.parts:
            grads = [p.grad for p in block.controls.node(j, part).parameters()]
            assert all(g is not None for g in grads)
            if j in block.controls.untouched(block.evaluations, part):
                assert all(g.count_nonzero() == 0 for g in grads)
    with torch.no_grad():
        for p in block.controls[last].parameters():
            p.fill_(1e3)
    assert torch.equal(block(x), y)


def test_kept_nodes_and_the_adjoint_exclude_each_other():
    """Backwards Euler evaluates at the end of its steps, where the forward pass never was."""
    with pytest.raises(InputError, match="the adjoint equation touches other nodes"):
        DynamicBlock(Stage(4, "parabolic", "euler", 2, [0, 1, 2], gradient="adjoint", keep_unused=True))


@pytest.mark.parametrize("interpolation", ["linear", "constant"])
def test_nodes_that_differ_by_rounding_are_the_same(interpolation):
    """Two grids of tenths, computed in two ways, differ by an ulp in some nodes."""
    states, nodes = TimeGrid.uniform(5, end=1.0).refine(), TimeGrid.uniform(10, end=1.0)
    assert states != nodes
    for j, t in enumerate(states.nodes):
        assert interpolation_weights(nodes, interpolation, t) == ((j, 1.0),)
    block = DynamicBlock(Stage(4, "parabolic", "euler", states, nodes.nodes[:-1], interpolation))
    assert len(block._times) == 10


# ------------------------------------------------------------ regularity in time


@settings(max_examples=15, deadline=None)
@given(grids, st.floats(0, 3), st.floats(0, 3), st.sampled_from([("f",), ("F", "G")]))
def test_roughness_is_its_formula(grid, a, b, parts):
    made = controls(grid, parts=parts)
    theta = [torch.cat([p.flatten() for p in node.parameters()]).detach().numpy() for node in made]
    expected = 0.0
    for j, (tau, after) in enumerate(pairwise(grid.nodes)):
        d = theta[j + 1] - theta[j]
        expected += a * np.abs(d).sum() + b / 2 * (d**2).sum() / (after - tau)
    assert made.roughness(a, b).item() == pytest.approx(expected, rel=1e-10)


def test_a_smooth_total_variation_has_a_gradient_at_equal_nodes_and_its_own_formula():
    made = controls(TimeGrid((0.0, 0.5, 2.0)))
    theta = [torch.cat([p.flatten() for p in node.parameters()]).detach().numpy() for node in made]
    slopes = [((q - p) / h, h) for (p, q), h in zip(pairwise(theta), (0.5, 1.5), strict=True)]
    expected = sum(0.7 * h * np.sqrt(s**2 + 1e-2).sum() for s, h in slopes)
    assert made.roughness(0.7, 0.0, 1e-2).item() == pytest.approx(expected, rel=1e-10)
    made[1].load_state_dict(made[0].state_dict())
    made[2].load_state_dict(made[0].state_dict())
    made.roughness(1.0, 0.0, 1e-2).backward()
    assert all((p.grad == 0).all() for p in made.parameters())


def test_roughness_of_a_network_is_the_sum_and_pulls_nodes_together():
    net = DynamicNet(
        [Stage(2, "parabolic", "rk4", 2), Stage(4, "hamiltonian", "stormer_verlet", 2)], classes=2
    )
    parts = [part.roughness(0.5, 2.0) for part in controls_of(net)]
    assert len(parts) == 2
    total = roughness(net, 0.5, 2.0)
    assert total.item() == pytest.approx(sum(p.item() for p in parts))
    total.backward()
    made = net.stages[0].controls
    sign = (made[0].conv.weight - made[1].conv.weight).sign()
    assert torch.equal(made[0].conv.weight.grad.sign(), sign)
    assert roughness(nn.Linear(2, 2), 1.0, 1.0) is None


def test_equal_nodes_are_not_rough():
    made = controls()
    for node in list(made)[1:]:
        node.load_state_dict(made[0].state_dict())
    assert made.roughness(1.0, 1.0).item() == 0


# ------------------------------------------------------------ statistics


def batch_net(integrator="rk4", steps=2):
    torch.manual_seed(0)
    return DynamicNet([Stage(4, "preactivation", integrator, steps)], classes=3)


@pytest.mark.parametrize("name", fixed())
def test_statistics_belong_to_an_evaluation_and_nodes_hold_none(name):
    net = batch_net(name)
    block = net.stages[0]
    state = net.state_dict()
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    kept = {n for n in state if n.startswith("stages.") and n.endswith(buffers)}
    assert kept == {
        f"stages.0.statistics.{e}.{norm}.{buffer}"
        for e in range(len(block.evaluations))
        for norm in ("norm1", "norm2")
        for buffer in buffers
    }
    width = 4 // len(block.controls.parts)
    assert state["stages.0.statistics.0.norm1.running_mean"].shape == (width,)


def test_each_evaluation_records_its_own_batch():
    net = batch_net()
    x = torch.randn(8, 3, 6, 6)
    net(x)
    block = net.stages[0]
    means = [s.get_buffer("norm1.running_mean") for s in block.statistics]
    assert all(not torch.equal(a, b) for i, a in enumerate(means) for b in means[:i])
    y = torch.relu(net.stem.norm(net.stem.conv(x)))
    torch.testing.assert_close(means[0], 0.1 * y.mean((0, 2, 3)))
    assert all(s.get_buffer("norm2.num_batches_tracked") == 1 for s in block.statistics)


def test_statistics_are_restored_and_used():
    net, x = batch_net(), torch.randn(8, 3, 6, 6)
    untrained = net.eval()(x)
    net.train()(x)
    twin = batch_net()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin.eval()(x), net.eval()(x))
    assert not torch.allclose(net(x), untrained)
    for statistics in net.stages[0].statistics:
        statistics.reset()
    fresh = net.stages[0].statistics[3]
    assert torch.equal(fresh.get_buffer("norm1.running_var"), torch.ones(4))
    assert fresh.get_buffer("norm1.num_batches_tracked") == 0


def test_evaluation_mode_records_nothing():
    net, x = batch_net().eval(), torch.randn(4, 3, 6, 6)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    net(x).sum().backward()
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())


@pytest.mark.parametrize("interpolation", ["quadratic", "cubic"])
@pytest.mark.parametrize(("scheme", "gradient"), [("rk4", "checkpointed"), ("leapfrog", "reversible")])
def test_the_gradient_of_spline_controls_is_that_of_plain_backpropagation(interpolation, scheme, gradient):
    torch.manual_seed(0)
    field = {"name": "parabolic", "norm": None, "activation": "tanh"}
    block = DynamicBlock(
        Stage(4, field, scheme, TimeGrid.uniform(6, 0.6), TimeGrid.uniform(4, 0.6), interpolation)
    ).double()
    y, found = torch.randn(2, 4, 5, 5, dtype=torch.float64), []
    for method in ("stored", gradient):
        block.set_gradient(method)
        block.zero_grad()
        block(y).square().sum().backward()
        found.append([p.grad for p in block.controls.parameters()])
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)
