"""Stability: the warning appears exactly where a step grows, and its fix silences it."""

import copy
import math
import re

import pytest
import torch

from resode.blocks import DynamicBlock
from resode.grids import TimeGrid
from resode.integrators import integrators
from resode.stability import stable_step
from resode.stages import Stage
from tests.integrators.problems import fixed

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


@pytest.mark.parametrize(
    ("name", "interval"),
    [("euler", 0), ("midpoint", 0), ("heun", 0), ("adams_bashforth2", 0), ("ssprk3", math.sqrt(3)),
     ("rk4", math.sqrt(8)), ("two_step_midpoint", 1)],
)  # fmt: skip
def test_the_imaginary_interval_is_that_of_the_textbook(name, interval):
    """Hairer & Wanner 1996, IV.2: |R(i v)| <= 1 up to sqrt(3), sqrt(8); nowhere if it is 1 + O(v^4)."""
    assert stable_step(integrators.of(name), 0.0, 5.0) == pytest.approx(interval / 5, rel=1e-4)


def test_a_little_damping_makes_a_small_step_of_heun_stable():
    h = stable_step(integrators.of("heun"), 0.01, 1.0)
    assert h > 0
    assert abs(1 + h * complex(-0.01, 1) + (h * complex(-0.01, 1)) ** 2 / 2) == pytest.approx(1, abs=1e-8)


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
    """The factor in the warning is enough, and one less is not."""
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
