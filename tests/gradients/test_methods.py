"""Theorem 5: the gradient of every method, for every registered field and integrator."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch.func import functional_call

from resode.blocks import DynamicBlock
from resode.errors import InputError
from resode.fields import fields
from resode.gradients import Adjoint, Checkpointed, Reversible, gradients, unwatched
from resode.grids import TimeGrid
from resode.integrators import ExplicitRungeKutta, FixedStep, integrators
from resode.stages import Stage
from tests.integrators.problems import fixed, usable, with_defaults

WIDTH = 4
UNEQUAL = TimeGrid((0.0, 0.15, 0.35, 0.5))
TWO_STEPS = TimeGrid((0.0, 0.2, 0.5))
CONTROLS = TimeGrid((0.0, 0.3))


def smooth(field, **options):
    """Plain data of a field with a smooth activation, and what else fits a width of 2."""
    wanted = {"activation": "tanh", "ratio": 2, **options}
    known = fields.entry(field).options()
    return {"name": field, **{name: value for name, value in wanted.items() if name in known}}


def grid_of(integrator):
    return UNEQUAL if usable(integrators.of(integrator), UNEQUAL) else TimeGrid.uniform(3, 0.5)


def block(
    field, integrator, gradient="stored", *, states=None, controls=CONTROLS, dtype=torch.float64, **options
):
    """A block with generic parameters (no zero bias, no scale of one), the same for every method."""
    states = grid_of(integrator) if states is None else states
    torch.manual_seed(0)
    made = DynamicBlock(
        Stage(WIDTH, smooth(field, **options), integrator, states, controls, gradient=gradient)
    )
    made.to(torch.float64)
    for p in made.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return made.to(dtype)


def image(dtype=torch.float64, size=(2, WIDTH, 3, 4)):
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def value_and_gradients(made, x):
    """The last state, and the gradients of a generic loss in the input and in every parameter."""
    x = x.clone().requires_grad_()
    y = made(x)
    weight = torch.linspace(-1, 2, y.numel(), dtype=x.dtype).view_as(y)
    (weight * y + y.square()).sum().backward()
    found = {"state": y.detach(), "input": x.grad}
    return found | {name: p.grad for name, p in made.named_parameters() if p.requires_grad}


def methods(integrator):
    """The methods besides stored that differentiate this scheme exactly."""
    every = [Checkpointed(1), Checkpointed(2), Reversible()]
    for method in every:
        try:
            method.check(integrators.of(integrator), grid_of(integrator))
        except InputError:
            continue
        yield method


PAIRS = [(field, integrator) for field in fields.names() for integrator in fixed()]
pairs = pytest.mark.parametrize(("field", "integrator"), PAIRS, ids=["-".join(pair) for pair in PAIRS])


@pairs
def test_gradcheck(field, integrator):
    """Backpropagation against finite differences, in the input, all parameters and learned coefficients."""
    made = block(field, integrator, states=TWO_STEPS if usable(integrators.of(integrator), TWO_STEPS) else 2)
    names, parameters = zip(*made.named_parameters(), strict=True)

    def state(x, *values):
        return functional_call(made, dict(zip(names, values, strict=True)), (x,))

    x = image(size=(2, WIDTH, 2, 2)).requires_grad_()
    assert torch.autograd.gradcheck(state, (x, *parameters), fast_mode=True)


@pairs
def test_each_method_gives_the_gradient_of_stored(field, integrator):
    expected = value_and_gradients(block(field, integrator), image())
    assert all(g.isfinite().all() for g in expected.values())
    for method in methods(integrator):
        found = value_and_gradients(block(field, integrator, method), image())
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name],
                value,
                rtol=1e-10,
                atol=1e-10,
                msg=lambda text, at=(method, name): f"{at}: {text}",
            )


@pairs
def test_each_method_gives_the_gradient_of_stored_in_single_precision(field, integrator):
    """To 1e-4, relative to the norm of each tensor (or 1 % of the largest, where it vanishes)."""
    expected = value_and_gradients(block(field, integrator, dtype=torch.float32), image(torch.float32))
    largest = max(value.norm() for value in expected.values())
    for method in methods(integrator):
        if method == Checkpointed(1):
            continue
        found = value_and_gradients(
            block(field, integrator, method, dtype=torch.float32), image(torch.float32)
        )
        for name, value in expected.items():
            error = (found[name] - value).norm() / max(value.norm(), largest / 100)
            assert error < 1e-4, (method, name)


@pytest.mark.parametrize("boundary", ["zero", "periodic"])
@pytest.mark.parametrize("field", fields.names())
def test_each_method_gives_the_gradient_of_a_twisted_field(field, boundary):
    options = {"twist": {"tie": "conformal", "degree": 2}, "boundary": boundary, "norm": None}
    made, x = (
        block(field, "leapfrog", **options, states=TimeGrid.uniform(2, 0.5)),
        image(size=(1, WIDTH, 2, 3)),
    )
    names, parameters = zip(*made.named_parameters(), strict=True)

    def state(x, *values):
        return functional_call(made, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(state, (x.requires_grad_(), *parameters), fast_mode=True)
    expected = value_and_gradients(block(field, "leapfrog", **options), image())
    twists = [gradient for name, gradient in expected.items() if name.endswith("twist")]
    assert twists
    assert all(gradient.abs().max() > 1e-9 for gradient in twists)
    for method in methods("leapfrog"):
        found = value_and_gradients(block(field, "leapfrog", method, **options), image())
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("integrator", fixed())
def test_statistics_are_updated_exactly_once_by_every_method(integrator):
    """Recomputation and inversion do not update them again, bit for bit."""
    kept = {}
    for method in ("stored", *methods(integrator)):
        made = block("preactivation", integrator, method, norm="batch")
        before = {name: t.clone() for name, t in made.statistics.named_buffers()}
        value_and_gradients(made, image())
        kept[str(method)] = dict(made.statistics.named_buffers())
        for name, value in kept[str(method)].items():
            assert not torch.equal(value, before[name])
            if name.endswith("num_batches_tracked"):
                assert value == 1
        assert all(torch.equal(kept["stored"][name], t) for name, t in kept[str(method)].items())
    assert len(kept) > 1


@pytest.mark.parametrize("integrator", fixed())
def test_what_is_frozen_gets_nothing_and_changes_nothing(integrator):
    made = block("parabolic", integrator, norm="tv")
    expected = value_and_gradients(made, image())
    for method in methods(integrator):
        frozen = block("parabolic", integrator, method, norm="tv")
        for p in frozen.controls[0].parameters():
            p.requires_grad_(False)
        found = value_and_gradients(frozen, image())
        assert len(found) < len(expected)
        assert all(p.grad is None for p in frozen.controls[0].parameters())
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("integrator", fixed())
def test_gradients_accumulate_and_the_input_need_not_require_one(integrator):
    for method in methods(integrator):
        made, x = block("antisymmetric", integrator, method, norm=None), image()
        made(x).square().sum().backward()
        once = {name: p.grad.clone() for name, p in made.named_parameters()}
        made(x).square().sum().backward()
        for name, p in made.named_parameters():
            torch.testing.assert_close(p.grad, 2 * once[name])
        with torch.no_grad():
            assert not made(x).requires_grad


@pytest.mark.parametrize("integrator", fixed(where=lambda scheme: scheme.reversible))
def test_a_reversible_block_keeps_the_first_and_the_last_state_alone(integrator):
    """What autograd keeps of the input's size does not grow with the steps; stored keeps a share of each."""

    def kept(method, steps):
        made = block("parabolic", integrator, method, states=TimeGrid.uniform(steps, 0.5), norm=None)
        count = 0

        def keep(tensor):
            nonlocal count
            count += tensor.shape[-2:] == x.shape[-2:]
            return tensor

        x = image().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            made(x)
        return count

    assert kept("reversible", 12) == kept("reversible", 4) <= 5
    assert kept("stored", 12) > 2 * kept("stored", 4)


@pytest.mark.parametrize("integrator", fixed(where=lambda scheme: scheme.reversible))
def test_a_reversible_backward_pass_evaluates_each_right_hand_side_once(integrator):
    made, calls = block("parabolic", integrator, "reversible", norm=None), 0

    def count(*_):
        nonlocal calls
        calls += 1

    for node in made.controls.modules():
        if node is not made.controls and type(node).__name__ == "ParabolicLayer":
            node.register_forward_hook(count)
    with unwatched():  # a check inverts the first step once more
        loss = made(image().requires_grad_()).square().sum()
    assert calls == len(made.evaluations)
    loss.backward()
    assert calls == 2 * len(made.evaluations)


@pytest.mark.parametrize("integrator", fixed(where=lambda scheme: scheme.reversible))
@pytest.mark.parametrize("anchor", [1, 2, 7])
def test_anchors_change_no_gradient(integrator, anchor):
    expected = value_and_gradients(block("parabolic", integrator, states=TimeGrid.uniform(5, 0.5)), image())
    made = block("parabolic", integrator, Reversible(anchor), states=TimeGrid.uniform(5, 0.5))
    for name, value in value_and_gradients(made, image()).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm", ["tv", "batch"])
@pytest.mark.parametrize("integrator", ["coupling", "momentum"])
def test_a_first_state_on_the_kink_of_a_relu_is_kept(integrator, norm):
    """Behind a ReLU half of it is zero, where the field's own ReLU has its kink: rounding would decide."""
    found = []
    for method in ("stored", "reversible"):
        torch.manual_seed(0)
        stage = Stage(8, {"name": "preactivation", "norm": norm}, integrator, 5, gradient=method)
        made = DynamicBlock(stage).double().eval()
        found.append(value_and_gradients(made, torch.relu(image(size=(4, 8, 6, 6)))))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-9)


def test_anchors_bound_the_growth_of_rounding():
    """g = 1/2 loses a bit a step: float32 is lost after 13 of 16 steps unless there are anchors."""
    scheme, states = {"name": "momentum", "g": 0.5}, TimeGrid.uniform(16, 0.1)
    made = block("parabolic", scheme, "reversible", states=states, dtype=torch.float32)
    with pytest.raises(InputError, match=r"on 16 steps .* reversible with an anchor every 13 steps, or"):
        made(image(torch.float32).requires_grad_())
    expected = value_and_gradients(block("parabolic", scheme, states=states), image())
    anchored = block("parabolic", scheme, Reversible(5), states=states, dtype=torch.float32)
    found = value_and_gradients(anchored, image(torch.float32))
    for name, value in expected.items():
        assert (found[name].double() - value).norm() < 1e-3 * max(value.norm(), 1e-2), name


@pytest.mark.parametrize("anchor", [0, -1, 1.5, "2", True])
def test_anchors_stand_at_whole_steps(anchor):
    with pytest.raises(InputError, match=f"an anchor every {anchor!r} steps; a positive integer is needed"):
        Stage(WIDTH, "parabolic", "leapfrog", 2, gradient={"name": "reversible", "anchor": anchor})


def test_a_block_takes_another_method_and_keeps_its_parameters():
    made = block("parabolic", "leapfrog")
    expected = value_and_gradients(made, image())
    for method in (Reversible(), Checkpointed(2), "stored"):
        made.zero_grad()
        made.set_gradient(method)
        for name, value in value_and_gradients(made, image()).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)
    with pytest.raises(InputError, match="has no inverse"):
        block("parabolic", "euler").set_gradient("reversible")
    with pytest.raises(InputError, match="make a block with it"):
        block("parabolic", "euler").set_gradient("adjoint")


def test_fewer_checkpoints_keep_fewer_states():
    def kept(every):
        made = block("parabolic", "rk4", Checkpointed(every), states=TimeGrid.uniform(12, 0.5), norm=None)
        x = image(size=(64, WIDTH, 8, 8)).requires_grad_()
        saved = set()
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.add(id(t)) or t, lambda t: t)
        with hooks:
            made(x)
        return len(saved)

    assert kept(1) >= 2 * kept(6)


# ------------------------------------------------------------ what is refused


@pytest.mark.parametrize("name", with_defaults())
def test_reversible_is_refused_where_there_is_no_inverse(name):
    scheme = integrators.of(name)
    if getattr(scheme, "reversible", False):
        Stage(WIDTH, "parabolic", name, 2, gradient="reversible")
        return
    message = "has no inverse; take one of .*leapfrog.*gradient checkpointed"
    message = message if isinstance(scheme, FixedStep) else "chooses its own steps; take stored or adjoint"
    with pytest.raises(InputError, match=message):
        Stage(WIDTH, "parabolic", name, 2, gradient="reversible")


MOMENTUM = {"name": "momentum", "g": 0.9}


def test_the_limit_of_momentum_in_double_precision_is_where_rounding_reaches_1e_10():
    """0.9^-n eps <= 1e-10: n <= 123."""
    Stage(WIDTH, "parabolic", MOMENTUM, TimeGrid.uniform(123, 1.0), gradient="reversible")
    with pytest.raises(InputError, match="124 steps Momentum amplifies the rounding of float64 to 1e-10"):
        Stage(WIDTH, "parabolic", MOMENTUM, TimeGrid.uniform(124, 1.0), gradient="reversible")


def test_the_limit_of_momentum_in_single_precision_is_where_rounding_reaches_1e_3():
    """0.9^-n eps <= 1e-3: n <= 85, before the first backward pass."""
    x = torch.randn(1, WIDTH, 2, 2)
    made = DynamicBlock(Stage(WIDTH, "parabolic", MOMENTUM, TimeGrid.uniform(85, 1.0), gradient="reversible"))
    made(x).sum().backward()
    made = DynamicBlock(Stage(WIDTH, "parabolic", MOMENTUM, TimeGrid.uniform(86, 1.0), gradient="reversible"))
    with pytest.raises(InputError, match="86 steps Momentum amplifies the rounding of float32 to 1e-03"):
        made(x)
    made.double()(x.double()).sum().backward()
    with torch.no_grad():
        made.float()(x)


def test_states_of_a_reversible_block_are_single_precision_under_autocast():
    made = block("parabolic", "leapfrog", "reversible", dtype=torch.float32)
    x = image(torch.float32).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = made(x)
    assert y.dtype == torch.float32
    y.square().sum().backward()
    assert x.grad.dtype == torch.bfloat16
    stored = block("parabolic", "leapfrog", dtype=torch.float32)
    z = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        stored(z).square().sum().backward()
    assert (x.grad.float() - z.grad).norm() < 0.02 * z.grad.norm()


@pytest.mark.parametrize("every", [0, -1, 1.5, "2"])
def test_checkpoints_stand_at_whole_steps(every):
    with pytest.raises(InputError, match="a positive integer is needed"):
        Stage(WIDTH, "parabolic", "rk4", 2, gradient={"name": "checkpointed", "every": every})


@pytest.mark.parametrize("name", gradients.names())
def test_every_method_has_a_name_and_a_line(name):
    assert gradients.entry(name).summary
    assert gradients.describe(gradients.of(name)) == name
    assert gradients.of(name).name == name


# ------------------------------------------------------------ the continuous adjoint

RUNGE_KUTTA = ("euler", "heun", "rk4")
TV = {"name": "tv", "eps": 1.0}  # for 1e-3 the limit h -> 0 begins at h = 1e-3, where y is nearly zero


def distance(first, second):
    return sum((first[name] - second[name]).square().sum() for name in first if name != "state").sqrt().item()


def gap(field, integrator, norm, steps):
    """How far the adjoint is from backpropagation: the controls stay, the grid is refined."""
    states, controls = TimeGrid.uniform(steps, 1.0), TimeGrid((0.0, 0.5, 1.0))
    by_method = [
        value_and_gradients(
            block(field, integrator, method, states=states, controls=controls, norm=norm), image() / 2
        )
        for method in ("stored", "adjoint")
    ]
    assert torch.equal(by_method[0]["state"], by_method[1]["state"])
    return distance(*by_method)


@pytest.mark.parametrize("integrator", RUNGE_KUTTA)
@pytest.mark.parametrize(
    ("field", "norm"), [*((f, None) for f in fields.names()), ("parabolic", TV), ("hamiltonian", TV)]
)
def test_the_gap_of_the_adjoint_falls_at_least_at_the_order_of_the_scheme(field, integrator, norm):

    gaps = [gap(field, integrator, norm, n) for n in (8, 16)]
    assert gaps[1] > 0
    assert math.log2(gaps[0] / gaps[1]) > integrators.of(integrator).order - 0.2


@pytest.mark.parametrize("integrator", RUNGE_KUTTA)
def test_the_adjoint_is_not_backpropagation(integrator):
    """The negative control: on a coarse grid the gap is far above rounding."""
    assert gap("parabolic", integrator, None, 4) > 1e-6


@pytest.mark.parametrize("integrator", fixed(where=lambda scheme: isinstance(scheme, ExplicitRungeKutta)))
def test_the_adjoint_evaluates_at_the_nodes_bit_for_bit(integrator):
    """Backwards from t_{k+1}: c = 0 is the end of a step, c = 1 its start."""
    scheme = integrators.of(integrator)
    for grid in (TimeGrid.uniform(7, 0.7), TimeGrid.uniform(23, 1.1, -0.3)):
        made = iter(Adjoint().backward_evaluations(scheme, grid))
        for start, end in pairwise(grid.nodes):
            for c in scheme.c:
                time = next(made).time
                assert time == pytest.approx(end - c * (end - start))
                assert c not in (0, 1) or time == (start if c else end)


@pytest.mark.parametrize("interpolation", ["constant", "shared"])
def test_the_adjoint_uses_the_controls_of_its_own_interval(interpolation):
    """On nodes that floating point cannot name exactly, with controls that jump there: order 1 remains."""

    def both(steps):
        found = []
        for method in ("stored", "adjoint"):
            torch.manual_seed(0)
            states = TimeGrid.uniform(steps, 0.7)
            controls = TimeGrid.uniform(7, 0.7) if interpolation == "constant" else None
            stage = Stage(
                WIDTH,
                smooth("parabolic", norm=None),
                "heun",
                states,
                controls,
                interpolation=interpolation,
                gradient=method,
            )
            found.append(value_and_gradients(DynamicBlock(stage).double(), image() / 2))
        return distance(*found)

    assert both(28) < 0.6 * both(14)
    assert both(56) < 0.6 * both(28)


@pytest.mark.parametrize(
    "name", [n for n in fixed() if n not in ("euler", "midpoint", "heun", "ssprk3", "rk4")]
)
def test_the_adjoint_is_for_runge_kutta_schemes(name):
    with pytest.raises(InputError, match=r"is no Runge-Kutta scheme; take one .*, or gradient stored"):
        Stage(WIDTH, "parabolic", name, 2, gradient="adjoint")


def test_adaptive_solvers_differentiated_either_way_agree_for_tight_tolerances():
    pytest.importorskip("torchdiffeq")

    def gap(tolerance):
        solver = {"name": "adaptive", "rtol": tolerance, "atol": tolerance}
        found = []
        for method in ("stored", "adjoint"):
            made = block("preactivation", solver, method, states=TimeGrid((0.0, 0.2, 0.5)), norm="group")
            found.append(value_and_gradients(made, image() / 2))
            assert made.function_evaluations > 0
        return distance(*found) / distance(found[0], {name: 0 * g for name, g in found[0].items()})

    loose, tight = gap(1e-2), gap(1e-7)
    assert tight < loose
    assert tight < 1e-4


def test_a_copy_of_a_block_has_gradients_of_its_own():
    made = block("parabolic", "leapfrog", "reversible")
    twin = copy.deepcopy(made)
    value_and_gradients(twin, image())
    assert all(p.grad is None for p in made.parameters())


# ------------------------------------------------------------ what recomputation must not break

AGAIN = [
    ("coupling", "stored"), ("coupling", "checkpointed"), ("coupling", "reversible"), ("heun", "adjoint"),
]  # fmt: skip


@pytest.mark.parametrize(("scheme", "gradient"), AGAIN)
def test_a_graph_can_be_gone_through_twice(scheme, gradient):
    made, x = block("parabolic", scheme, gradient), image().requires_grad_()
    loss = made(x).square().sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("scheme", "gradient"), AGAIN[2:])
def test_second_derivatives_are_refused_where_there_are_none(scheme, gradient):
    made, x = block("parabolic", scheme, gradient), image().requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(made(x).square().sum(), x, create_graph=True)


@pytest.mark.parametrize(("scheme", "gradient"), AGAIN[1:])
def test_a_parameter_changed_before_the_backward_pass_is_noticed(scheme, gradient):
    made = block("parabolic", scheme, gradient)
    loss = made(image().requires_grad_()).sum()
    with torch.no_grad():
        next(made.parameters()).mul_(1.5)
    with pytest.raises(RuntimeError, match="changed or exchanged"):
        loss.backward()


def test_a_mode_changed_before_the_backward_pass_is_noticed():
    made = block("preactivation", "coupling", "reversible", norm="batch")
    loss = made(image().requires_grad_()).sum()
    made.eval()
    with pytest.raises(RuntimeError, match="train\\(\\) or eval\\(\\)"):
        loss.backward()


def test_states_in_bf16_are_not_recovered():
    made = block("parabolic", "coupling", "reversible").bfloat16()
    with pytest.raises(InputError, match="keep the network in float32"):
        made(image().bfloat16())
