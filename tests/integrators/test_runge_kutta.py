"""Tableaux: Euler is a ResNet bit for bit, and what is refused."""

import pytest
import torch

from resode.errors import InputError
from resode.grids import TimeGrid
from resode.integrators import RK4, SSPRK3, Euler, ExplicitRungeKutta, Heun, integrators, solve


def layer(seed: int, dtype: torch.dtype):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ReLU()).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_euler_with_h_1_is_a_residual_network_bit_for_bit(dtype):
    """y + f(y), values and all gradients (theorem 4, for any layers)."""
    layers = [layer(seed, dtype) for seed in range(3)]
    results = []
    for residual in (True, False):
        y = torch.linspace(-1, 1, 2 * 4 * 5 * 5).reshape(2, 4, 5, 5).to(dtype).requires_grad_()
        parameters = [p for f in layers for p in f.parameters()]
        if residual:
            end = y
            for f in layers:
                end = end + f(end)
        else:
            end = solve(Euler(), TimeGrid.uniform(3), lambda t, y: layers[int(t)](y), y)[-1]
        results.append([end, *torch.autograd.grad(end.square().sum(), [y, *parameters])])
    for plain, ours in zip(*results, strict=True):
        assert torch.equal(plain, ours)


def test_coefficients_that_are_zero_cost_nothing():
    """One addition for each coefficient that is not zero: RK4 has 3 of a and 4 of b."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            self.names.append(str(function))
            return function(*arguments, **(options or {}))

    y = torch.ones(1, 1)
    for scheme, additions in ((Euler(), 1), (Heun(), 3), (SSPRK3(), 6), (RK4(), 7)):
        with Count() as count:
            solve(scheme, TimeGrid((0.0, 0.3)), lambda t, y: y, y)
        kinds = [name.replace("add_", "add") for name in count.names]  # some in place
        assert kinds == ["aten.add.Tensor"] * additions


def test_the_named_ones_are_values():
    assert integrators.of("rk4") == RK4()
    assert [scheme.order for scheme in (Euler(), Heun(), SSPRK3(), RK4())] == [1, 2, 3, 4]
    assert RK4().name == "RK4"


def test_an_order_left_out_is_the_highest_that_the_conditions_reach():
    for scheme in (Euler(), Heun(), SSPRK3(), RK4()):
        assert ExplicitRungeKutta(scheme.a, scheme.b, scheme.c).order == scheme.order


def test_less_than_the_order_may_be_stated():
    assert ExplicitRungeKutta(RK4().a, RK4().b, RK4().c, order=2).order == 2


HEUNS = {"a": [[0, 0], [1, 0]], "b": ["1/2", "1/2"], "c": [0, 1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": [[0, 0], [1, 1]], "c": [0, 2]}, "row 2 of a reaches its diagonal"),
        ({"a": [[0, 1], [1, 0]], "c": [1, 1]}, "row 1 of a reaches its diagonal"),
        ({"b": ["1/2", "1/3"]}, "order 1 needs sum b_i = 1, but it is 0.8333"),
        ({"b": ["1/2", "1/3"], "order": 2}, "order 2 needs sum b_i = 1, but it is 0.8333"),
        ({"b": [1, 0], "order": 2}, "order 2 needs sum b_i c_i = 1/2, but it is 0 "),
        ({"order": 3}, r"order 3 needs sum b_i c_i\^2 = 1/3"),
        ({"c": [0, "1/2"]}, "c_2 = 0.5 has to be the sum of row 2 of a, which is 1"),
        ({"c": [0]}, "b has 2 weights, so c needs 2 nodes"),
        ({"b": []}, "b has 0 weights"),
        ({"a": [[0], [1]]}, "a 2 rows of 2 coefficients"),
        ({"a": [0, 1]}, "lists of numbers, or of fractions"),
        ({"b": "12"}, "lists of numbers, or of fractions"),
        ({"b": ["1/0", 1]}, "lists of numbers, or of fractions"),
        ({"b": [float("nan"), 1]}, "needs sum b_i = 1"),
        ({"order": 0}, "an order of 0; a positive integer"),
        ({"order": "two"}, "an order of 'two'; a positive integer"),
    ],
)
def test_an_inconsistent_tableau_is_refused(change, message):
    with pytest.raises(InputError, match=message) as caught:
        integrators.of({"name": "runge_kutta", **HEUNS, **change})
    assert len(str(caught.value).splitlines()) == 1


THIRD = 1 / 3
UNMET = [  # (a condition, a tableau (a, b) that keeps all conditions before it)
    ("sum b_i a_ij c_j = 1/6", [[], [THIRD], [THIRD, THIRD]], [0.25, 0, 0.75]),
    (r"sum b_i c_i\^3 = 1/4", [[], [THIRD], [0, 2 / 3]], [0.25, 0, 0.75]),
    ("sum b_i c_i a_ij c_j = 1/8", [[], [1], [0.25, 0.25]], [1 / 6, 1 / 6, 2 / 3]),
    (
        r"sum b_i a_ij c_j\^2 = 1/12",
        [[], [THIRD], [-THIRD, 1], [0.5, 0, 0.5]],
        [0.125, 0.375, 0.375, 0.125],
    ),
    (
        "sum b_i a_ij a_jk c_k = 1/24",
        [[], [THIRD], [1 / 6, 0.5], [-5 / 6, 1.5], [1, -1, 1, 0]],
        [0.125, 0.375, 0.1875, 0.1875, 0.125],
    ),
]


@pytest.mark.parametrize(("condition", "lower", "b"), UNMET)
def test_every_order_condition_is_looked_at(condition, lower, b):
    a = [[*row, *[0] * (len(b) - len(row))] for row in lower]
    with pytest.raises(InputError, match=f"needs {condition}"):
        ExplicitRungeKutta(a=a, b=b, c=[sum(row) for row in a], order=4)


def test_five_stages_have_no_order_5():
    """A fifth stage of weight 0 keeps RK4's conditions; Butcher: order 5 takes six stages."""
    a = [[*row, 0] for row in RK4().a] + [[0] * 5]
    with pytest.raises(InputError, match="no explicit scheme of 5 stages has order 5; it takes at least 6"):
        ExplicitRungeKutta(a=a, b=[*RK4().b, 0], c=[*RK4().c, 0], order=5)
