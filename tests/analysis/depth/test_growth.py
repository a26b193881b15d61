"""The growth is the largest singular value of the Jacobian, and never above a bound that is claimed."""

import pytest
import torch
from torch import nn

from resode import Stage, TimeGrid
from resode.analysis.depth.growth import growth, growth_bound
from resode.blocks import DynamicBlock
from resode.fields import fields
from resode.integrators import RK4, Euler, Heun, Midpoint


def block(width, field, scheme, states, **more):
    return DynamicBlock(Stage(width, field, scheme, states, **more)).double().eval().requires_grad_(False)


def state(width, side=5, n=3):
    return torch.randn(n, width, side, side, dtype=torch.float64, generator=torch.manual_seed(1))


def test_of_a_linear_field_it_is_the_norm_of_a_matrix():
    def linear(width):
        return nn.Conv2d(width, width, 1, bias=False)

    made = block(2, linear, "euler", TimeGrid.uniform(3, 1.5), interpolation="shared")
    with torch.no_grad():
        made.controls[0].weight[:, :, 0, 0] = torch.tensor([[0.8, 0.9], [-0.2, -0.5]])
    step = torch.eye(2, dtype=torch.float64) + 0.5 * made.controls[0].weight[:, :, 0, 0]
    expected = torch.linalg.matrix_norm(torch.linalg.matrix_power(step, 3), 2)
    assert growth(made, state(2)) == pytest.approx([float(expected)] * 3, rel=1e-3)


def test_it_is_that_of_each_image():
    made, y = block(4, "preactivation", "euler", 2), state(4, side=3)
    jacobians = [torch.autograd.functional.jacobian(made, y[k : k + 1]).reshape(36, 36) for k in range(3)]
    expected = [float(torch.linalg.matrix_norm(j, 2)) for j in jacobians]
    found = growth(made, y)
    assert found == pytest.approx(expected, rel=0.05)
    assert all(a <= b * (1 + 1e-9) for a, b in zip(found, expected, strict=True))  # from below


@pytest.mark.parametrize("name", fields.names())
@pytest.mark.parametrize("norm", ["batch", "tv", "group"])
def test_it_is_found_for_every_field_and_norm(name, norm):
    made = block(8, {"name": name, "norm": norm}, "euler", 2)
    assert all(value > 0 for value in growth(made, state(8)))


@pytest.mark.parametrize("boundary", ["zero", "periodic"])
@pytest.mark.parametrize("scheme", [Euler(), Heun(), RK4(), Midpoint()], ids=lambda s: s.name)
@pytest.mark.parametrize("end", [0.5, 6.0])
def test_a_parabolic_block_stays_below_its_bound(scheme, end, boundary):
    field = {"name": "parabolic", "norm": None, "boundary": boundary}
    made = block(4, field, scheme, TimeGrid.uniform(2, end))
    bound = growth_bound(made, 5, 5)
    assert max(growth(made, state(4))) <= bound * (1 + 1e-9)
    if end == 0.5 and scheme != Midpoint():
        assert bound == 1  # h |K|^2 <= 2


@pytest.mark.parametrize("scheme", ["symplectic_euler", "stormer_verlet"])
def test_a_hamiltonian_pair_stays_below_its_bound(scheme):
    made = block(8, {"name": "hamiltonian", "norm": None}, scheme, TimeGrid.uniform(2, 2.0))
    bound = growth_bound(made, 5, 5)
    assert 1 < max(growth(made, state(8))) <= bound


@pytest.mark.parametrize(
    ("field", "scheme"),
    [
        ({"name": "parabolic", "norm": "tv"}, "euler"),
        ({"name": "parabolic", "norm": None, "activation": "silu"}, "euler"),
        ({"name": "parabolic", "norm": None}, "leapfrog"),
        ("preactivation", "euler"),
        ("antisymmetric", "rk4"),
    ],
)
def test_where_nothing_is_known_no_bound_is_claimed(field, scheme):
    assert growth_bound(block(4, field, scheme, 2), 5, 5) is None
