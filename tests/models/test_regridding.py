"""Re-gridding: the same theta(t) and the same flow on other time grids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resode.controls import interpolation_weights
from resode.errors import InputError
from resode.grids import TimeGrid
from resode.integrators import integrators
from resode.models import create, name_and_options
from resode.models.dynamic import DynamicNet
from resode.models.lifting import lift
from resode.models.regridding import fitting, regrid, regridding
from resode.models.transitions import Connector
from resode.stages import Stage
from resode.statistics import estimate_statistics
from tests.integrators.problems import fixed, orders


def field(name="parabolic", **options):
    return {"name": name, "norm": None, "activation": "tanh", **options}


def network(
    integrator="rk4", states=4, controls=None, *, described=None, interpolation="linear", width=4, **options
):
    """One stage with generic parameters, in float64."""
    torch.manual_seed(0)
    stage = Stage(
        width, described or field(), integrator, states, controls, interpolation=interpolation, **options
    )
    net = DynamicNet([stage], classes=3).double()
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net


def theta(net, t, part=None):
    controls = net.stages[0].controls
    return torch.cat([p.flatten() for p in controls.at(t, part or controls.parts[0]).values()])


def image(net, size=8, batch=4):
    generator = torch.Generator().manual_seed(1)
    channels = net.stem_specification.in_channels
    return torch.randn(batch, channels, size, size, dtype=torch.float64, generator=generator)


# ------------------------------------------------------------ theta(t)

increasing = st.lists(st.integers(1, 20), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(
    increasing, st.sampled_from(["linear", "constant"]), st.lists(st.floats(-1, 12), min_size=5, max_size=5)
)
def test_theta_is_the_same_at_any_time_after_doubling_the_controls(steps, interpolation, times):
    nodes = [sum(steps[:k]) / 10 for k in range(len(steps) + 1)]
    fine = TimeGrid(tuple(nodes)).refine(4)
    old = network("rk4", fine, nodes, interpolation=interpolation, keep_unused=True)
    new = regrid(old, controls="double")
    assert new.stages[0].controls.grid == TimeGrid(tuple(nodes)).refine()
    for t in (*nodes, *times):
        torch.testing.assert_close(theta(new, t), theta(old, t), rtol=1e-12, atol=1e-13)
        if interpolation == "constant":
            assert torch.equal(theta(new, t), theta(old, t))


@pytest.mark.parametrize("part", ["F", "G"])
def test_both_parts_of_a_split_field_are_transferred(part):
    old = network("stormer_verlet", 4, [0, 2, 4])
    new = regrid(old, controls="double")
    for t in (0.0, 0.7, 1.0, 2.5, 4.0):
        torch.testing.assert_close(theta(new, t, part), theta(old, t, part), rtol=1e-13, atol=1e-13)


def test_arbitrary_nodes_take_theta_there():
    old = network("rk4", 4, [0, 1, 4])
    new = regrid(old, controls=[0, 0.3, 2.5, 4])
    for j, t in enumerate((0, 0.3, 2.5, 4)):
        at_node = torch.cat([p.flatten() for p in new.stages[0].controls[j].parameters()])
        torch.testing.assert_close(at_node, theta(old, t), rtol=1e-14, atol=1e-15)


def test_shared_controls_stay_shared():
    old = network("rk4", 2, interpolation="shared")
    new = regrid(old, states="double", controls="double")
    assert len(new.stages[0].controls) == 1
    assert torch.equal(theta(new, 0.3), theta(old, 0.3))


# ------------------------------------------------------------ the flow


def small(name):
    """A scheme whose asymptotic order shows on few steps: the lag of momentum is g / (1 - g) steps."""
    options = integrators.entry(name).options()
    return integrators.of({"name": name, "g": 0.2} if "g" in options else name)


@pytest.mark.parametrize("name", fixed(where=lambda scheme: scheme.order is not None))
def test_the_refined_network_approaches_the_flow_at_the_order_of_its_scheme(name):
    """Doubled repeatedly, with theta(t) and learned coefficients transferred, against a much finer grid."""
    states, controls = TimeGrid.uniform(8, 1.0), [0, 0.5]
    net = network(small(name), states, controls, interpolation="linear")
    with torch.no_grad():
        y = net.stem(image(net, 5))
        finest = states.refine(128 if small(name).order == 1 else 32)
        exact = regrid(net, states=finest).stages[0](y)
        errors = []
        for _ in range(3):
            net = regrid(net, states="double")
            errors.append((net.stages[0](y) - exact).norm().item())
    assert orders(errors)[-1] == pytest.approx(small(name).order, abs=0.2)


@pytest.mark.parametrize("name", ["euler", "heun", "ssprk3"])
def test_the_flow_equals_that_of_another_scheme(name):
    net = network(name, TimeGrid.uniform(8, 1.0), [0, 0.5])
    rk4 = network("rk4", TimeGrid.uniform(64, 1.0), [0, 0.5])
    rk4.load_state_dict(net.state_dict())
    with torch.no_grad():
        y = net.stem(image(net, 5))
        exact = rk4.stages[0](y)
        errors = []
        for _ in range(3):
            net = regrid(net, states="double")
            errors.append((net.stages[0](y) - exact).norm().item())
    assert orders(errors)[-1] == pytest.approx(integrators.of(name).order, abs=0.2)


# ------------------------------------------------------------ there and back


@pytest.mark.parametrize("name", fixed())
@pytest.mark.parametrize("interpolation", ["linear", "constant"])
def test_halving_after_doubling_gives_back_the_network_bit_for_bit(name, interpolation):
    """Parameters, learned coefficients and the running statistics of every evaluation."""
    described = {"name": "preactivation", "activation": "tanh"}
    states = TimeGrid.uniform(3, 0.7)
    old = network(name, states, described=described, interpolation=interpolation)
    old(image(old))
    fine = regridding(old, states="double", controls="double" if len(old.stages[0].controls) > 1 else None)
    back = regridding(
        fine.module, states="halve", controls="halve" if len(old.stages[0].controls) > 1 else None
    )
    before, after = old.state_dict(), back.module.state_dict()
    assert set(before) == set(after)
    assert all(torch.equal(before[n], after[n]) for n in before)
    x = image(old)
    assert torch.equal(back.module.eval()(x), old.eval()(x))


@pytest.mark.parametrize("name", fixed())
def test_the_same_grids_give_the_same_network(name):
    """RK4 evaluates three times at some nodes, each with statistics of its own."""
    old = network(name, described={"name": "preactivation", "activation": "tanh"})
    old(image(old))
    new = regrid(old)
    assert new.stages[0].stage == old.stages[0].stage
    assert new is not old
    state = new.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in old.state_dict().items())
    assert {p.data_ptr() for p in new.parameters()}.isdisjoint({p.data_ptr() for p in old.parameters()})


def test_doubling_the_controls_alone_changes_no_logits():
    described = {"name": "preactivation", "activation": "tanh"}
    old = network("rk4", TimeGrid.uniform(2, 1.0), described=described)
    old(image(old))
    new = regrid(old, controls="double")
    x = image(old)
    torch.testing.assert_close(new.eval()(x), old.eval()(x), rtol=1e-12, atol=1e-12)


def test_statistics_come_from_the_nearest_evaluation_of_the_same_part():
    old = network("symplectic_euler", 2, described={"name": "hamiltonian", "norm": "batch"})
    block = old.stages[0]
    for e, statistics in enumerate(block.statistics):
        statistics.get_buffer("norm.running_mean").fill_(e)
    new = regrid(old, states="double", controls="states").stages[0]
    found = [s.get_buffer("norm.running_mean")[0].item() for s in new.statistics]
    assert [part for _, part in new.evaluations] == ["F", "G"] * 4
    assert found == [0, 1, 0, 1, 2, 3, 2, 3]


# ------------------------------------------------------------ transfer of other tensors


def test_learned_coefficients_are_constant_on_each_old_step():
    old = network("imex", TimeGrid((0.0, 1.0, 3.0)))
    new = regrid(old, states=[0, 0.5, 1, 2, 2.5, 3], controls="states")
    values = old.stages[0].scheme["B"]
    assert torch.equal(new.stages[0].scheme["B"], values[[0, 0, 1, 1, 1]])


def test_parts_of_a_step_without_a_coefficient_take_that_of_the_next():
    """The learned two-step scheme begins with an Euler step, which has no k."""
    old = network("learned_two_step", TimeGrid((0.0, 1.0, 3.0, 4.0)))
    new = regrid(old, states=[0, 0.5, 1, 2, 3, 4], controls="states")
    assert torch.equal(new.stages[0].scheme["k"], old.stages[0].scheme["k"][[0, 0, 0, 1]])
    single = network("learned_two_step", TimeGrid((0.0, 1.0)))
    with pytest.raises(InputError, match="on a single step it has no k for finer steps to take"):
        regrid(single, states="double", controls="states")


def test_optimizer_tensors_are_transferred_by_the_same_map():
    """Linear in the tensors: applied to the parameters it gives the new parameters."""
    old = network("learned_two_step", TimeGrid.uniform(4, 1.0), [0, 0.3, 0.8], keep_unused=True)
    made = regridding(old, states="double", controls=[0, 0.2, 0.5, 0.8])
    parameters = {n: p.detach() for n, p in old.named_parameters()}
    names = {n for n, _ in made.module.named_parameters()}
    own = made.transfer(parameters)
    assert set(own) == names
    assert all(torch.equal(own[n], p) for n, p in made.module.named_parameters())
    first, second = ({n: torch.randn_like(p) for n, p in parameters.items()} for _ in range(2))
    both = made.transfer({n: 2 * first[n] + second[n] for n in first})
    each = made.transfer(first), made.transfer(second)
    for n in names:
        torch.testing.assert_close(both[n], 2 * each[0][n] + each[1][n])
        assert both[n].shape == own[n].shape
    w = (0.5 - 0.3) / (0.8 - 0.3)
    middle = "stages.0.controls.{}.conv.weight".format
    expected = (1 - w) * first[middle(1)] + w * first[middle(2)]
    torch.testing.assert_close(each[0][middle(2)], expected)


def test_tensors_that_are_not_given_are_not_transferred():
    old = network()
    made = regridding(old, controls="double")
    assert set(made.transfer({"head.linear.bias": torch.ones(3)})) == {"head.linear.bias"}
    moved = made.transfer({"stages.0.controls.0.conv.weight": torch.ones(4, 4, 3, 3)})
    assert set(moved) == {"stages.0.controls.0.conv.weight"}


def test_the_rest_of_the_network_and_the_old_one_are_unchanged():
    torch.manual_seed(0)
    old = DynamicNet(
        [Stage(4, "parabolic", "rk4", 2, gradient="checkpointed"), Stage(6, "preactivation", "leapfrog", 2)],
        connector=Connector(3, pool="stride"),
        last=5,
        classes=7,
    ).eval()
    before = {n: t.clone() for n, t in old.state_dict().items()}
    new = regrid(old, states=["double", None], controls=[None, "states"])
    assert all(torch.equal(t, before[n]) for n, t in old.state_dict().items())
    assert [b.stage.states.steps for b in new.blocks()] == [4, 2]
    assert not new.training
    rest = [n for n in before if not n.startswith("stages.")]
    assert all(torch.equal(new.state_dict()[n], before[n]) for n in rest)
    assert [b.stage.gradient for b in new.blocks()] == [b.stage.gradient for b in old.blocks()]
    x = torch.randn(2, 3, 8, 8)
    assert new(x).shape == (2, 7)
    again = create(name_and_options(new)[0], **name_and_options(new)[1]).eval()
    again.load_state_dict(new.state_dict())
    assert torch.equal(again(x), new(x))


@pytest.mark.parametrize("name", ["dynamicblocks", "neural_ode", "imex_net", "lm_resnet20", "revnet38"])
def test_published_networks_take_finer_grids(name):
    torch.manual_seed(0)
    widths = {"lm_resnet20": (4, 6, 8), "neural_ode": (4, 6, 8)}
    old = create(name, **({} if name == "revnet38" else {"widths": widths.get(name, (4, 6))}))
    new = regrid(old, states="double")
    x = torch.randn(4, 3, 8, 8)
    new(x).square().sum().backward()
    assert new(x).isfinite().all()


# ------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": "dubble"}, "stage 1: unknown change of a grid 'dubble': double, halve, keep"),
        ({"controls": "dubble"}, "stage 1: unknown change of a grid 'dubble'"),
        ({"states": [0, 1, 2]}, r"stage 1: states \[0, 1, 2\] do not go from 0 to 3 as before"),
        ({"states": [0, 2, 1, 3]}, "stage 1: a time grid has to increase"),
        ({"states": "halve"}, "stage 1: 3 steps cannot be joined 2 at a time"),
        ({"controls": "double"}, "stage 1: .* touches the control nodes 0.5, 1.5 of"),
        ({"controls": [0, 1, 9, 10]}, "stage 1: control nodes .* reach beyond the states"),
        ({"states": ["double", "double"]}, "2 time grids are given for 1 stages"),
        ({"states": 2.5}, "stage 1: a time grid of 2.5"),
        ({"states": []}, "stage 1: a time grid needs at least one node"),
    ],
)
def test_invalid_options_are_refused_in_one_line(change, message):
    with pytest.raises(InputError, match=message) as caught:
        regrid(network("euler", 3), **change)
    assert all("\n" not in message for message in caught.value.messages)


def test_a_grid_that_a_scheme_cannot_use_is_refused():
    with pytest.raises(InputError, match="stage 1: TwoStepMidpoint needs equal steps"):
        regrid(network("two_step_midpoint", 3), states=[0, 1, 3])
    with pytest.raises(InputError, match="stage 1: unknown change of a grid 'dubble'"):
        regrid(network("rk4", 3, interpolation="shared"), controls="dubble")


# ------------------------------------------------------------ modes and further options


def test_frozen_parameters_stay_frozen():
    net = network("euler", 4, described=field("preactivation", norm="batch"))
    net.stem.requires_grad_(False).eval()
    net.stages[0].controls[1].requires_grad_(False)
    new = regrid(net.train(), states="double", controls="double")
    assert not any(p.requires_grad for p in new.stem.parameters())
    assert new.stages[0].training
    frozen = [not any(p.requires_grad for p in node.parameters()) for node in new.stages[0].controls]
    assert frozen == [False, False, True, True, False, False, False]  # a node follows the one at or before it


def test_evaluation_mode_is_copied_module_by_module():
    net = network("euler", 4).train()
    net.stem.eval()
    new = regrid(net, states="double")
    assert new.training
    assert not new.stem.training
    assert not new.stem.norm.training


@pytest.mark.parametrize("integrator", ["euler", "symplectic_euler", "rk4", "stormer_verlet"])
def test_both_grids_can_be_halved(integrator):
    new = regrid(network(integrator, 4), states="halve", controls="halve")
    assert new.stages[0].stage.states.nodes == (0.0, 2.0, 4.0)
    assert new.stages[0].controls.grid.nodes == (
        (0.0, 2.0, 4.0) if integrator in ("rk4", "stormer_verlet") else (0.0, 2.0)
    )


def test_nodes_that_are_unused_after_halving_are_reported_with_the_fix():
    with pytest.raises(InputError, match="--controls states"):
        regrid(network("euler", 4), states="halve")


def test_shared_controls_have_no_other_nodes():
    with pytest.raises(InputError, match="shared controls have one node"):
        regrid(network("rk4", 2, interpolation="shared"), controls=[0, 1, 2])


def test_with_images_the_statistics_are_those_of_the_new_network():
    """Those of one pass over the images, batch by batch; without images, of the nearest old evaluation."""
    old = network("rk4", 2, described={"name": "preactivation"})
    images = torch.randn(300, *image(old).shape[1:], dtype=torch.float64)
    kept = regrid(old, states="double")
    new = regrid(old, states="double", images=images)
    estimate_statistics(kept, images.tensor_split(2))
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor, new.state_dict()[name]), name


def test_images_of_a_loaded_network_may_be_pixels():
    old = network("rk4", 2, described={"name": "preactivation"})
    old.preprocessing = lambda pixels: pixels.double() / 255
    pixels = torch.randint(0, 256, (8, *image(old).shape[1:]), dtype=torch.uint8)
    new = regrid(old, states="double", images=pixels)
    same = regrid(old, states="double", images=pixels.double() / 255)
    assert all(map(torch.equal, new.state_dict().values(), same.state_dict().values()))
    assert new.preprocessing is old.preprocessing


def test_only_networks_with_time_grids_have_others():
    with pytest.raises(InputError, match="regrid: a HeResNet has no time grids; give a DynamicNet"):
        regrid(create("he_resnet8"), states="double")


# ------------------------------------------------------------ splines, and fewer controls


def polynomial(net, degree):
    """The parameters of each node times a polynomial's coefficients for its spline: theta is a polynomial."""
    block = net.stages[0]
    grid, interpolation = block.controls.grid, block.stage.interpolation
    basis = np.zeros((40, len(grid.nodes)))
    times = np.linspace(grid.start, grid.end, 40)
    for k, t in enumerate(times):
        for j, w in interpolation_weights(grid, interpolation, t):
            basis[k, j] = w
    coefficients = np.linalg.lstsq(basis, (1 + times) ** degree, rcond=None)[0]
    base = {name: p.detach().clone() for name, p in block.controls[0].named_parameters()}
    with torch.no_grad():
        for c, node in zip(coefficients, block.controls, strict=True):
            for name, p in node.named_parameters():
                p.copy_(float(c) * base[name])
    return base


@pytest.mark.parametrize(("interpolation", "degree"), [("quadratic", 2), ("cubic", 3)])
def test_a_polynomial_theta_stays_itself_on_any_control_grid(interpolation, degree):
    old = network("rk4", TimeGrid.uniform(6, 1.2), TimeGrid.uniform(6, 1.2), interpolation=interpolation)
    base = polynomial(old, degree)
    for controls in ("double", "halve", [0, 0.3, 0.5, 0.9, 1.2]):
        new = regrid(old, controls=controls)
        for t in (0.0, 0.11, 0.6, 1.0, 1.2):
            for name, value in new.stages[0].controls.at(t).items():
                torch.testing.assert_close(value, (1 + t) ** degree * base[name], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("interpolation", ["quadratic", "cubic"])
def test_refined_states_keep_a_spline_bit_for_bit(interpolation):
    old = network("rk4", TimeGrid.uniform(4, 1.0), TimeGrid.uniform(5, 1.0), interpolation=interpolation)
    new = regrid(old, states="double")
    for a, b in zip(old.stages[0].controls.parameters(), new.stages[0].controls.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("interpolation", ["constant", "linear", "quadratic", "cubic"])
def test_as_many_controls_as_units_give_the_units_again(interpolation):
    net = lift(create("he_preact_resnet32")).double()
    new = fitting(net, 5, interpolation).module
    for block, fitted in zip(net.blocks(), new.blocks(), strict=True):
        for k in range(block.stage.states.steps):
            theta = fitted.controls.at(k)
            for name, value in block.controls[k].named_parameters():
                torch.testing.assert_close(theta[name], value, rtol=1e-9, atol=1e-11)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(new(x), net(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("interpolation", ["constant", "linear", "quadratic", "cubic"])
def test_fewer_controls_are_the_nearest(interpolation):
    """The sum of squares has no derivative in them: residuals are orthogonal to every basis function."""
    net = lift(create("he_preact_resnet44")).double()
    for count in (1, 2, 3, 4):
        done = fitting(net, count, interpolation)
        old, new = net.stages[0], done.module.stages[0]
        assert len(new.controls) == count
        times = range(old.stage.states.steps)
        theta = [new.controls.at(t)["conv1.weight"] for t in times]
        residual = [a - b.conv1.weight for a, b in zip(theta, old.controls, strict=True)]
        for j in range(count):
            weights = [dict(new.controls.weights(float(t))).get(j, 0.0) for t in times]
            pulled = sum(w * r.detach() for w, r in zip(weights, residual, strict=True))
            assert float(pulled.abs().max()) < 1e-12
        moved = done.transfer(dict(net.named_parameters()))
        assert moved.keys() == dict(done.module.named_parameters()).keys()
    assert torch.equal(
        done.module.state_dict()["stages.0.statistics.2.norm1.running_var"],
        net.state_dict()["stages.0.statistics.2.norm1.running_var"],
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fitting(create("he_resnet8"), 2), "a HeResNet has none; .*lift it first"),
        (lambda: fitting(lift(create("he_resnet8")), 0), "controls 0: a positive integer"),
        (lambda: fitting(lift(create("he_resnet8")), 2, "cubik"), "unknown interpolation 'cubik'.*'cubic'"),
        (lambda: fitting(lift(create("he_resnet8")), 2, "shared"), "give controls=1 and constant"),
        (lambda: lift(create("he_resnet8"), controls=1.5), "controls 1.5: a positive integer"),
    ],
)
def test_controls_that_cannot_be_fitted_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
