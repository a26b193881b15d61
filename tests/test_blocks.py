"""Dynamic blocks: what is refused before training, what is computed and how, and what a block says."""

import copy
import os
import sys
import traceback
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

import resode
from resode import blocks, memory
from resode.blocks import DynamicBlock, dynamic_blocks
from resode.errors import InputError
from resode.fields import Field, Parabolic, fields
from resode.gradients import gradients
from resode.grids import TimeGrid
from resode.integrators import RK4, Evaluation, FixedStep, Momentum, integrators
from resode.stages import Stage
from resode.statistics import estimate_statistics
from tests.integrators.problems import fixed, with_defaults

PLAIN = {"name": "parabolic", "norm": None}

# ------------------------------------------------------------ what is refused before training


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
    """K = 0; the implicit operator of IMEX is zero as well. A projected scheme has states y >= 0."""
    block = DynamicBlock(Stage(4, {"name": "parabolic", "norm": None}, name, 3))
    with torch.no_grad():
        for p in block.parameters():
            p.zero_()
    x = torch.randn(2, 4, 3, 3)
    x = x.abs() if block.stage.integrator.projects else x
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


# ------------------------------------------------------------ the way to a step


class Frames(TorchFunctionMode):
    """Counts our stack frames, from `DynamicBlock.forward` on, at each sum that a scheme computes."""

    ours = f"{Path(resode.__file__).parent}{os.sep}"

    def __init__(self):
        super().__init__()
        self.counts = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        files = [frame.f_code.co_filename for frame, _ in traceback.walk_stack(sys._getframe())]
        files = [file for file in files if file.startswith(self.ours)]
        is_sum = any(word in function.__name__ for word in ("add", "sub"))
        if is_sum and files[0].startswith(self.ours + "integrators"):
            self.counts.append(len(files))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", fixed())
def test_forward_reaches_the_update_in_five_frames(name):
    """DynamicBlock.forward, Gradient.integrate, Flow.step, the scheme's step and a function of it."""
    block = DynamicBlock(Stage(4, "parabolic", name, TimeGrid.uniform(3, 0.3)))
    with Frames() as frames:
        block(torch.randn(1, 4, 3, 3))
    assert len(frames.counts) >= 3
    assert max(frames.counts) <= 5


def refuse(*_):
    raise AssertionError("functional_call")


@pytest.mark.parametrize("name", fixed())
@pytest.mark.parametrize("gradient", ["stored", "checkpointed"])
def test_a_node_that_is_used_as_it_is_is_called_directly_and_gives_the_same_bits(name, gradient, monkeypatch):
    def results(direct):
        torch.manual_seed(0)
        states = TimeGrid.uniform(3, 0.3)
        block = DynamicBlock(Stage(4, "parabolic", name, states, interpolation="constant", gradient=gradient))
        assert all(block._direct)
        if not direct:
            block._direct = (False,) * len(block._direct)
        x = torch.randn(2, 4, 5, 3, requires_grad=True)
        with monkeypatch.context() as patch:
            if direct:
                patch.setattr(blocks, "functional_call", refuse)
            y = block(x)
        y.square().sum().backward()
        return [y, x.grad, *(p.grad for p in block.parameters())]

    for a, b in zip(results(direct=True), results(direct=False), strict=True):
        assert a is b is None or torch.equal(a, b)


def test_a_hook_on_a_node_sees_the_node_itself():
    block = DynamicBlock(Stage(4, "parabolic", "heun", 2))
    seen = []
    for node in block.controls:
        node.register_forward_hook(lambda module, *_: seen.append(module))
    block(torch.randn(1, 4, 3, 3))
    assert seen == [block.controls[0], block.controls[1], block.controls[1], block.controls[2]]


@pytest.mark.parametrize(
    ("options", "direct"),
    [
        ({"integrator": "euler"}, [True, True]),
        ({"integrator": "midpoint"}, [True, False, True, False]),  # interpolated between two nodes
        (
            {"integrator": "euler", "controls": [0, 1, 2], "keep_unused": True},
            [True, False],
        ),  # a zero gradient
        ({"integrator": "euler", "field": "preactivation"}, [False, False]),  # statistics per evaluation
        ({"integrator": "heun", "interpolation": "shared"}, [True] * 4),
    ],
)
def test_what_needs_other_tensors_is_not_called_directly(options, direct):
    block = DynamicBlock(Stage(**{"width": 4, "field": "parabolic", "states": 2, **options}))
    assert list(block._direct) == direct
    block(torch.randn(2, 4, 3, 3)).sum().backward()


def test_a_recomputed_step_takes_the_parameters_of_the_forward_pass():
    """They may be other tensors than the module holds by then: those of a functional call."""
    block = DynamicBlock(Stage(4, "parabolic", "euler", 3, gradient="checkpointed"))
    plain = copy.deepcopy(block)
    plain.set_gradient("stored")
    others = {name: (2 * p).detach().requires_grad_() for name, p in block.named_parameters()}
    x = torch.randn(2, 4, 3, 3)
    found = []
    for made in (block, plain):
        y = functional_call(made, others, (x,))
        found.append(torch.autograd.grad(y.square().sum(), list(others.values())))
    assert all(map(torch.equal, *found))


# ------------------------------------------------------------ description


def test_a_block_explains_itself():
    block = DynamicBlock(Stage(6, "parabolic", "rk4", 4, controls=[0, 4], gradient="checkpointed"))
    rows = dict(block.explain(8, 10, batch=5))
    assert rows["field"].startswith("Parabolic: f = -(K^T relu(N(K y + b1)) + b2)")
    assert rows["scheme"] == f"RK4, order 4: {RK4().equation}"
    assert rows["states"] == "[0, 1, 2, 3, 4], each 6x8x10"
    assert rows["controls"] == "[0, 4] (linear)"
    assert rows["evaluations"] == "16"
    assert rows["parameters"] == f"{2 * (9 * 36 + 6 + 6 + 6 + 6):,}"
    assert rows["multiply-adds"] == f"{16 * 2 * 9 * 36 * 80 / 1e6:,.1f} M an image"
    kept = memory.profile(block, (6, 8, 10), 5).peak()
    assert rows["memory"] == f"{kept / 1e6:,.2f} MB of activations at batch 5, gradient checkpointed"
    assert "warning" not in rows


def test_unused_nodes_and_warnings_are_shown():
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


@pytest.mark.parametrize(("integrator", "nodes"), [("euler", "0"), ("heun", None), ("rk4", None)])
def test_controls_that_an_adjoint_never_trains_are_named(integrator, nodes):
    """Backward Euler steps evaluate f at the ends t_1, ..., t_n: the gradient of theta(0) is zero."""
    block = DynamicBlock(Stage(4, "parabolic", integrator, 3, gradient="adjoint", keep_unused=True))
    block(torch.randn(2, 4, 6, 6)).square().sum().backward()
    trained = [any(p.grad.abs().max() > 0 for p in node.parameters()) for node in block.controls]
    said = [line for line in block.warnings(6, 6) if "never trained" in line]
    assert trained == [nodes is None, *[True] * (len(trained) - 1)]
    assert (f"theta at t = {nodes} is never trained" in said[0]) if nodes else said == []
