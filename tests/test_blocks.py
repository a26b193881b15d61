"""Dynamic blocks: what a stage is, what is refused before training, stability, and what a block says."""

import copy
import json
import math
import re
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from resode import memory
from resode.blocks import DynamicBlock, dynamic_blocks
from resode.errors import InputError
from resode.fields import Field, Parabolic, fields
from resode.gradients import Checkpointed, gradients
from resode.grids import TimeGrid
from resode.integrators import RK4, Evaluation, FixedStep, Leapfrog, Momentum, integrators
from resode.stability import stable_step
from resode.stages import Stage
from resode.training.optim.averaging import estimate_statistics
from tests.integrators.problems import fixed, with_defaults

# ------------------------------------------------------------ a stage is a value


def test_names_mappings_and_objects_say_the_same():
    by_name = Stage(8, "parabolic", "rk4", 4)
    assert by_name == Stage(8, {"name": "parabolic"}, {"name": "rk4"}, [0, 1, 2, 3, 4], gradient="stored")
    assert by_name == Stage(8, Parabolic(), RK4, TimeGrid.uniform(4))
    assert hash(by_name) == hash(Stage(8, "parabolic", "rk4", {"steps": 4}))
    assert by_name != Stage(8, "parabolic", "heun", 4)


@pytest.mark.parametrize("name", with_defaults())
@pytest.mark.parametrize("field", fields.names())
def test_plain_data_give_the_same_stage(name, field):
    stage = Stage(4, field, name, {"steps": 6, "end": 3.0}, interpolation="shared")
    assert Stage(**json.loads(json.dumps(stage.to_data()))) == stage


def test_plain_data_hold_every_option():
    stage = Stage(
        6,
        Parabolic(norm={"name": "tv", "eps": 1e-4}, activation="tanh"),
        Momentum(0.5),
        [0, 0.5, 2],
        [0, 1, 3, 4],
        interpolation="constant",
        gradient=Checkpointed(2),
        keep_unused=True,
    )
    assert Stage(**json.loads(json.dumps(stage.to_data()))) == stage


GOOD = {"width": 4, "field": "parabolic", "integrator": "euler", "states": 2}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"width": 0}, "width 0: a positive integer"),
        ({"width": "16"}, "width '16': a positive integer"),
        ({"width": True}, "width True: a positive integer"),
        ({"width": 4.0}, "width 4.0: a positive integer"),
        ({"width": 5, "integrator": "stormer_verlet"}, "StormerVerlet splits the state in 2: the width 5"),
        ({"states": [0, 1, 1]}, "a time grid has to increase: 1 is followed by 1"),
        ({"states": [0]}, "needs at least two nodes"),
        ({"controls": [1, 0]}, "a time grid has to increase"),
        ({"states": [0, 1, 3], "integrator": "two_step_midpoint"}, "TwoStepMidpoint needs equal steps"),
        ({"field": "parabolik"}, "unknown field 'parabolik'; did you mean 'parabolic'"),
        ({"field": {"name": "parabolic", "nrom": "tv"}}, "no option 'nrom'; did you mean 'norm'"),
        ({"field": {"norm": "tv"}}, "a field needs a name"),
        ({"field": {"name": "parabolic", 3: 1}}, "no option '3'"),
        ({"field": None}, "the field of a stage is a name"),
        ({"field": Parabolic}, "write its name with brackets"),
        ({"integrator": "rk5"}, "unknown integrator 'rk5'; did you mean 'rk4'"),
        ({"integrator": Leapfrog}, "write its name with brackets"),
        ({"integrator": 4}, "the integrator of a stage is a name"),
        ({"integrator": "runge_kutta"}, "runge_kutta needs the option 'a'"),
        ({"interpolation": "linaer"}, "unknown interpolation 'linaer'; did you mean 'linear'"),
        ({"interpolation": None}, "unknown interpolation 'None'"),
        ({"gradient": "reversibel"}, "unknown gradient 'reversibel'; did you mean 'reversible'"),
        ({"gradient": None}, "the gradient of a stage is a name"),
        ({"gradient": "reversible"}, "Euler has no inverse"),
        ({"gradient": "adjoint", "integrator": "leapfrog"}, "is no Runge-Kutta scheme"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(change, told):
    with pytest.raises(InputError, match=told) as caught:
        Stage(**{**GOOD, **change})
    assert all("\n" not in message for message in caught.value.messages)


def test_all_mistakes_of_a_stage_are_told_at_once():
    with pytest.raises(InputError) as caught:
        Stage("4", "parabolik", "rk5", [0, 0], [1, 0], "linaer", "storedd")
    assert len(caught.value.messages) == 7


@pytest.mark.parametrize("method", ["adjoint", "adaptive"])
def test_running_statistics_are_refused_where_times_are_not_known(method):
    integrator = "adaptive" if method == "adaptive" else "rk4"
    gradient = "stored" if method == "adaptive" else "adjoint"
    with pytest.raises(InputError, match="no running statistics; take norm group, tv or none"):
        DynamicBlock(Stage(4, "preactivation", integrator, 2, gradient=gradient))
    DynamicBlock(Stage(4, {"name": "preactivation", "norm": "group"}, integrator, 2, gradient=gradient))


def test_a_field_that_does_not_fit_the_width_is_refused():
    with pytest.raises(InputError, match="ratio 4 does not divide 6 channels"):
        DynamicBlock(Stage(6, "bottleneck", "euler", 2))
    with pytest.raises(InputError, match="3 groups do not divide"):
        DynamicBlock(Stage(4, {"name": "parabolic", "groups": 3}, "euler", 2))


# ------------------------------------------------------------ what a block computes


def evaluated(name):
    """The block of a scheme, and how often its field was called in a forward pass."""
    block = DynamicBlock(Stage(4, "parabolic", name, TimeGrid.uniform(3, 0.3)))
    calls = []
    for node in block.controls.modules():
        if hasattr(node, "conv"):
            node.register_forward_hook(lambda *_: calls.append(1))
    block(torch.randn(1, 4, 3, 3))
    return block, len(calls)


@pytest.mark.parametrize("name", fixed())
def test_the_evaluations_that_are_known_are_those_that_are_made(name):
    block, calls = evaluated(name)
    assert len(block.evaluations) == calls


def test_a_scheme_that_does_not_state_its_growth_is_never_warned_of():
    @dataclass(frozen=True)
    class Plain(FixedStep):
        order = 1

        def evaluations(self, s):
            return (Evaluation(s.t),)

        def step(self, s, f, carry, coefficients):
            return (carry[0] + s.h * f(0, carry[0]),)

    block = DynamicBlock(Stage(4, Parabolic(norm=None), Plain(), TimeGrid((0, 100))))
    assert block.warnings(8, 8) == []


@pytest.mark.parametrize(
    ("controls", "interpolation", "beyond"),
    [
        ((0, 2, 4), "linear", None),
        ((-1, 1, 9), "linear", None),
        ((0, 4, 9), "linear", "9"),
        ((-2, -1, 3), "linear", "-2"),
        ((0, 2, 9), "constant", "9"),
        ((0, 2, 4), "constant", None),
    ],
)
def test_an_adaptive_solver_refuses_control_nodes_beyond_its_reach(controls, interpolation, beyond):
    def block():
        DynamicBlock(Stage(2, "parabolic", "adaptive", TimeGrid((0, 4)), TimeGrid(controls), interpolation))

    if beyond is None:
        block()
        return
    with pytest.raises(InputError, match=f"never touches the control nodes {beyond} of"):
        block()


def test_the_evaluations_of_an_adaptive_solver_are_counted():
    pytest.importorskip("torchdiffeq")
    block, calls = evaluated("adaptive")
    assert block.function_evaluations == calls > 0


@pytest.mark.parametrize("name", with_defaults())
def test_a_trajectory_begins_with_the_input_and_ends_with_the_output(name):
    if name == "adaptive":
        pytest.importorskip("torchdiffeq")
    torch.manual_seed(0)
    block = DynamicBlock(Stage(4, "parabolic", name, TimeGrid.uniform(3, 0.3))).double()
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    times, states = block.trajectory(x)
    assert times == (0.0, pytest.approx(0.1), pytest.approx(0.2), 0.3)
    assert torch.equal(states[0], x)
    assert torch.equal(states[-1], block(x))
    assert all(not torch.equal(a, b) for a, b in pairwise(states))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(fixed()),
    st.sampled_from(fields.names()),
    st.sampled_from([4, 8, 12]),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(1, 7),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(["batch", "group", "tv", None]),
)
def test_shape_and_dtype_stay(name, field, width, steps, height, columns, dtype, norm):
    described = {"name": field, "norm": norm, **({"ratio": 2} if field == "bottleneck" else {})}
    block = DynamicBlock(Stage(width, described, name, TimeGrid.uniform(steps, 0.1))).to(dtype)
    x = torch.randn(3, width, height, columns, dtype=dtype)
    y = block(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert y.isfinite().all()


@pytest.mark.parametrize("name", fixed())
def test_a_zero_field_leaves_the_state_alone(name):
    """K = 0: but for the damping of an implicit operator, which is zero here."""
    block = DynamicBlock(Stage(4, {"name": "parabolic", "norm": None}, name, 3))
    with torch.no_grad():
        for p in block.parameters():
            p.zero_()
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(block(x), x)


def test_euler_by_hand_on_decoupled_grids():
    """y <- y - h K(t)^T tanh(K(t) y), theta linear between 2 nodes, on unequal steps."""
    field = {"name": "parabolic", "norm": None, "bias": False, "activation": "tanh"}
    block = DynamicBlock(Stage(3, field, "euler", [0, 0.1, 0.4], [0, 0.4])).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    y = x
    for t, h in ((0.0, 0.1), (0.1, 0.3)):
        w = t / 0.4
        k = (1 - w) * block.controls[0].conv.weight + w * block.controls[1].conv.weight
        z = torch.tanh(torch.conv2d(y, k, padding=1))
        y = y - h * torch.conv_transpose2d(z, k, padding=1)
    torch.testing.assert_close(block(x), y, rtol=1e-13, atol=1e-13)


def test_a_copy_is_independent():
    block = DynamicBlock(Stage(4, "preactivation", "rk4", 2))
    twin = copy.deepcopy(block)
    before = {name: t.clone() for name, t in block.state_dict().items()}
    twin(torch.randn(4, 4, 5, 5))
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    assert all(torch.equal(before[name], t) for name, t in block.state_dict().items())
    assert len(dynamic_blocks(torch.nn.Sequential(block, twin))) == 2


# ------------------------------------------------------------ stability

PLAIN = {"name": "parabolic", "norm": None}


def bound_of(block, size=(8, 8)):
    return max(node.spectral_bound(*size) for node in block.controls)


def plain(integrator, states, field=PLAIN):
    torch.manual_seed(0)
    return DynamicBlock(Stage(4, field, integrator, states))


@pytest.mark.parametrize(
    ("name", "interval"), [("euler", 2), ("heun", 2), ("ssprk3", 2.5127), ("rk4", 2.7853)]
)
def test_a_runge_kutta_step_is_warned_of_beyond_its_real_interval(name, interval):
    limit = interval / bound_of(plain(name, 1))
    assert stable_step(integrators.of(name), bound_of(plain(name, 1))) == pytest.approx(limit, rel=1e-4)
    assert plain(name, [0, 0.999 * limit]).stability(8, 8) is None
    said = plain(name, [0, 1.001 * limit]).stability(8, 8)
    assert said is not None
    assert f"linearly stable up to h = {limit:.3g}" in said
    assert "a spectral radius of at most" in said
    assert "divide its steps by 2 (TimeGrid.refine(2)), or scale the kernels down" in said


def test_leapfrog_is_warned_of_beyond_h_squared_rho_4():
    limit = 2 / math.sqrt(bound_of(plain("leapfrog", 1)))
    assert plain("leapfrog", [0, 0.999 * limit]).stability(8, 8) is None
    said = plain("leapfrog", [0, 1.001 * limit]).stability(8, 8)
    assert f"up to h^2 = {limit**2:.3g}" in said


@pytest.mark.parametrize("end", [1e-3, 1.0, 10.0])
def test_two_step_midpoint_is_warned_of_at_every_step(end):
    said = plain("two_step_midpoint", TimeGrid.uniform(2, end)).stability(8, 8)
    assert "unstable for this field at every step" in said
    assert "take euler, heun, ssprk3 or rk4" in said


@pytest.mark.parametrize("norm", ["tv", "group", "batch"])
def test_nothing_is_claimed_with_a_norm(norm):
    assert plain("euler", [0, 1000.0], {"name": "parabolic", "norm": norm}).stability(8, 8) is None
    assert (
        plain("two_step_midpoint", [0, 1000.0], {"name": "parabolic", "norm": norm}).stability(8, 8) is None
    )


def test_nothing_is_claimed_of_a_field_or_activation_without_a_bound():
    assert (
        plain("euler", [0, 1000.0], {"name": "parabolic", "norm": None, "activation": "silu"}).stability(8, 8)
        is None
    )
    assert plain("coupling", [0, 1000.0], "preactivation").stability(8, 8) is None


def test_rotations_are_stable_where_the_scheme_has_an_imaginary_interval():
    """Antisymmetric: Euler never, two-step midpoint below 1, RK4 below 2 sqrt 2; gamma helps Euler."""
    norm = plain("rk4", 1, "antisymmetric").controls[0].spectrum(8, 8)[1]
    assert "unstable for this field at every step" in plain("euler", 1, "antisymmetric").stability(8, 8)
    for scheme, limit in (("two_step_midpoint", 1.0), ("rk4", 2 * math.sqrt(2))):
        inside, outside = (TimeGrid((0.0, x * limit / norm)) for x in (0.99, 1.01))
        assert plain(scheme, inside, "antisymmetric").stability(8, 8) is None
        assert "divide its steps by 2" in plain(scheme, outside, "antisymmetric").stability(8, 8)
    damped = {"name": "antisymmetric", "gamma": 1.0}
    gamma, norm = plain("euler", 1, damped).controls[0].spectrum(8, 8)
    limit = 2 * gamma / (gamma**2 + norm**2)  # |1 + h (-gamma + i norm)| = 1
    assert plain("euler", [0, 0.99 * limit], damped).stability(8, 8) is None
    assert plain("euler", [0, 1.01 * limit], damped).stability(8, 8) is not None


@pytest.mark.parametrize("scheme", ["symplectic_euler", "stormer_verlet"])
def test_a_pair_is_stable_below_its_period(scheme):
    """h^2 ||K1||^2 ||K2||^2 < 4."""
    pair = {"name": "hamiltonian", "norm": None}
    node = plain(scheme, 1, pair).controls[0]
    radius = math.sqrt(node["F"].spectrum(8, 8)[0] * node["G"].spectrum(8, 8)[0])
    assert plain(scheme, [0, 1.98 / radius], pair).stability(8, 8) is None
    assert "linearly stable up to h" in plain(scheme, [0, 2.02 / radius], pair).stability(8, 8)


def test_half_of_a_pair_alone_is_told():
    (line,) = plain("rk4", 1, {"name": "hamiltonian", "norm": None}).warnings(8, 8)
    assert "take symplectic_euler, or the parabolic field" in line


@pytest.mark.parametrize("name", fixed(where=lambda scheme: len(scheme.parts) == 1))
def test_following_the_remedy_silences_the_warning(name):
    """The factor that is told is enough, and one less is not."""
    h = 7.3 / bound_of(plain("euler", 1))
    h = math.sqrt(20 * h) if integrators.of(name).second_order else h
    states = TimeGrid((0.0, h))
    said = plain(name, states).stability(8, 8)
    if said is None:
        assert integrators.of(name).growth(complex(-7.3)) <= 1
        return
    found = re.search(r"TimeGrid.refine\((\d+)\)", said)
    if found is None:
        assert "at every step" in said
        return
    factor = int(found[1])
    shared = {"controls": [0.0], "interpolation": "constant"}

    def again(factor):
        torch.manual_seed(0)
        return DynamicBlock(Stage(4, PLAIN, name, states.refine(factor), **shared)).stability(8, 8)

    assert again(factor) is None
    if factor > 1:
        assert again(factor - 1) is not None


def test_a_warned_step_does_grow_and_the_remedied_one_does_not():
    """y' = -K y with K = I: Euler's factor is 1 - h."""
    block = plain("euler", TimeGrid.uniform(10, 25.0), {**PLAIN, "activation": "identity", "bias": False})
    with torch.no_grad():
        for node in block.controls:
            node.conv.weight.copy_(
                torch.eye(4)[:, :, None, None] * torch.eye(3)[1, :, None] * torch.eye(3)[1]
            )
    y = torch.randn(1, 4, 6, 6)
    assert block.stability(6, 6) is not None
    assert block(y).norm() > 10 * y.norm()
    calm = copy.deepcopy(block)
    calm.stage = Stage(**{**vars(block.stage), "states": TimeGrid.uniform(10, 20.0)})
    assert calm.stability(6, 6) is None


# ------------------------------------------------------------ what it says of itself


def test_a_block_explains_itself():
    block = DynamicBlock(Stage(6, "parabolic", "rk4", 4, controls=[0, 4], gradient="checkpointed"))
    rows = dict(block.explain(8, 10, batch=5))
    assert rows["field"].startswith("Parabolic: f = -(K^T relu(N(K y + b1)) + b2)")
    assert rows["scheme"] == f"RK4, order 4: {RK4.equation}"
    assert rows["states"] == "[0, 1, 2, 3, 4], each 6x8x10"
    assert rows["controls"] == "[0, 4] (linear)"
    assert rows["evaluations"] == "16"
    assert rows["parameters"] == f"{2 * (9 * 36 + 6 + 6 + 6 + 6):,}"
    assert rows["multiply-adds"] == f"{16 * 2 * 9 * 36 * 80 / 1e6:,.1f} M an image"
    kept = memory.profile(block, (6, 8, 10), 5).peak()
    assert rows["memory"] == f"{kept / 1e6:,.2f} MB of activations at batch 5, gradient checkpointed"
    assert "warning" not in rows


def test_unused_nodes_and_warnings_are_told():
    stage = Stage(4, PLAIN, "euler", [0, 50, 100], [0, 50, 100], keep_unused=True)
    rows = DynamicBlock(stage).explain(8, 8)
    assert dict(rows)["controls"] == "[0, 50, 100] (linear); unused, with zero gradient: 100"
    assert [label for label, text in rows if "linearly stable up to" in text] == ["warning"]
    double = DynamicBlock(Stage(4, "double", "euler", 2))
    assert "can only grow" in dict(double.explain(8, 8))["warning"]


def possible(name, method):
    try:
        return Stage(4, "parabolic", name, 2, gradient=method)
    except InputError:
        return None


@pytest.mark.parametrize(
    ("name", "method"), [(n, m) for n in with_defaults() for m in gradients.names() if possible(n, m)]
)
def test_every_scheme_and_method_explains_itself(name, method):
    block = DynamicBlock(possible(name, method))
    rows = dict(block.explain(4, 4))
    assert set(rows) >= {"field", "scheme", "states", "controls", "evaluations", "parameters", "memory"}
    scheme = integrators.of(name)
    assert scheme.equation in rows["scheme"]
    if isinstance(scheme, FixedStep):
        assert rows["evaluations"] == str(len(block.evaluations))
    assert all(text.strip() == text and "\n" not in text for text in rows.values())
    assert method in repr(block)


# ------------------------------------------------------------ a user's own field


@dataclass(frozen=True)
class Masked(Field):
    """A field with a constant, with BatchNorm, and with dropout where it is asked for."""

    dropout: float = 0.0

    def build(self, width):
        return MaskedLayer(width, self.dropout)


class MaskedLayer(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.register_buffer("mask", torch.arange(1.0, width + 1)[:, None, None])

    def forward(self, y):
        return self.drop(self.norm(y) * self.mask)


@dataclass(frozen=True)
class Dropping(Field):
    """A field of dropout alone."""

    def build(self, width):
        return nn.Dropout2d(0.5)


def test_constants_of_a_field_are_no_statistics():
    """They stay at their node, survive a new estimate of the statistics, and are there in a copy."""
    block = DynamicBlock(Stage(4, Masked(), "heun", 2))
    assert [name for name, _ in block.statistics[0].named_buffers()] == [
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    ]  # fmt: skip
    estimate_statistics(block, [torch.randn(8, 4, 3, 3)])
    assert torch.equal(block.controls[1].mask, torch.arange(1.0, 5.0)[:, None, None])
    other = DynamicBlock(Stage(4, Masked(), "heun", 2))
    other.load_state_dict({name: 2 * t for name, t in block.state_dict().items()})
    assert torch.equal(other.controls[0].mask, 2 * block.controls[0].mask)


@pytest.mark.parametrize("scheme", ["coupling", "stormer_verlet", "momentum", "leapfrog"])
def test_dropout_is_repeated_where_the_field_is_evaluated_again(scheme):
    """The inverse evaluates in another order; each evaluation drops what it dropped."""
    found = []
    for method in ("stored", "checkpointed", "reversible", {"name": "reversible", "anchor": 2}):
        torch.manual_seed(0)
        block = DynamicBlock(Stage(4, Masked(0.5), scheme, 5, gradient=method)).double()
        x = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
        block(x).square().sum().backward()
        found.append([x.grad, *(p.grad for p in block.parameters()), torch.rand(3)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_dropout_is_refused_where_the_field_is_evaluated_at_other_times():
    field = Dropping()
    with pytest.raises(InputError, match="remove dropout"):
        DynamicBlock(Stage(4, field, "heun", 2, gradient="adjoint"))
    DynamicBlock(Stage(4, field, "heun", 2, gradient="checkpointed"))


def test_a_rounding_limit_is_known_before_training():
    """g = 1/2 loses a bit a step: 15 steps exceed 1e-3 in float32, not 1e-10 in float64."""
    block = DynamicBlock(Stage(4, "parabolic", Momentum(0.5), 15, gradient="reversible"))
    block.check(torch.float64)
    with pytest.raises(InputError, match="amplifies the rounding of float32"):
        block.check(torch.float32)
