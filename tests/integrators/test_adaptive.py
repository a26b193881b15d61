"""Adaptive solvers: tolerances, both gradients, and the bounds that are always set."""

import sys

import pytest
import torch

from resode.errors import DivergenceError, InputError
from resode.grids import TimeGrid
from resode.integrators import Adaptive
from resode.integrators.adaptive import METHODS
from tests.integrators.problems import FIRST, first_order, uniform

GRID = TimeGrid((0.0, 0.4, 1.0, 1.1))


def start(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.ones(1, 2, 2, 2, dtype=dtype)


@pytest.mark.parametrize("method", METHODS)
def test_the_error_follows_the_tolerance(method):
    errors = []
    for tolerance in (1e-3, 1e-5):
        states = Adaptive(method, rtol=tolerance, atol=tolerance).integrate(first_order, start(), uniform(4))
        assert states.shape == (5, 1, 2, 2, 2)
        assert torch.equal(states[0], start())
        errors.append(float((states[-1] - FIRST[0]).abs().max()))
    assert errors[0] < 1e-1
    assert errors[1] < 2e-3
    if method != "dopri8":  # far better than it was asked to be
        assert errors[1] < errors[0] / 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_f_receives_floats_and_the_state_keeps_its_dtype(dtype):
    times = []

    def f(t, y):
        times.append(t)
        assert y.dtype == dtype
        return -y.double()

    states = Adaptive(rtol=1e-3, atol=1e-3).integrate(f, start(dtype), GRID)
    assert states.dtype == dtype
    exact = torch.exp(-torch.tensor(GRID.nodes, dtype=torch.float64))
    torch.testing.assert_close(
        states[:, 0, 0, 0, 0].double(), exact, rtol=0, atol=1e-3 + torch.finfo(dtype).eps
    )
    assert all(type(t) is float for t in times)
    assert min(times) == GRID.start
    assert GRID.end * (1 - 1e-2) <= max(times) <= GRID.end


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Conv2d(2, 2, 3, padding=1).double()
        self.unused = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, t, y):
        return torch.tanh(self.inner(y)) * (1 + t)


def gradients(rtol: float, adjoint: bool) -> list[torch.Tensor]:
    layer, y = Layer(), start().requires_grad_()
    parameters = tuple(layer.parameters()) if adjoint else None
    states = Adaptive(rtol=rtol, atol=rtol).integrate(layer, y, GRID, adjoint_parameters=parameters)
    (states[-1].square().sum() + states[1].sum()).backward()
    return [y.grad, *(p.grad for p in layer.inner.parameters())]


def test_the_two_gradients_agree_as_the_tolerance_falls():
    """Discretise then optimise, and the continuous adjoint; at every node that the loss looks at."""
    gaps = []
    for rtol in (1e-3, 1e-8):
        pairs = zip(gradients(rtol, adjoint=False), gradients(rtol, adjoint=True), strict=True)
        gaps.append(max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs))
    assert gaps[0] < 1e-3
    assert gaps[1] < 1e-7


def test_backpropagation_through_the_solver_is_exact():
    solver = Adaptive(rtol=1e-9, atol=1e-9)
    y = torch.tensor([0.3, 0.8], dtype=torch.float64).reshape(1, 1, 1, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: solver.integrate(first_order, y, GRID)[-1], y)


@pytest.mark.parametrize("nodes", [(0.0, 2.0), (0.0, 1.0, 2.0)])
def test_too_many_steps_are_an_error(nodes):
    """The bound is on the whole solution, wherever its nodes are."""
    grid, stiff = TimeGrid(nodes), lambda t, y: -50 * (y - t)
    with pytest.raises(DivergenceError, match=r"after max_steps = 20 steps; .*max_steps"):
        Adaptive(max_steps=20).integrate(stiff, start(), grid)
    assert Adaptive(max_steps=200).integrate(stiff, start(), grid).isfinite().all()


def test_the_bound_counts_each_solution_anew():
    needed = 0
    while True:
        needed += 1
        try:
            Adaptive(max_steps=needed).integrate(first_order, start(), uniform(3))
        except DivergenceError:
            continue
        break
    assert 3 < needed < 50
    solver = Adaptive(max_steps=needed)
    for _ in range(3):
        solver.integrate(first_order, start(), uniform(3))


def test_too_many_steps_backwards_are_the_same_error():
    """A weak flow whose adjoint is stiff: the parameter's derivative oscillates."""
    w = torch.ones((), dtype=torch.float64, requires_grad=True)

    def f(t, y):
        return (w - 1) * torch.sin(torch.tensor(5000.0 * t)) * y - 0.1 * y

    states = Adaptive(max_steps=30).integrate(f, start(), GRID, adjoint_parameters=(w,))
    with pytest.raises(DivergenceError, match=r"after max_steps = 30 steps"):
        states[-1].sum().backward()


def test_a_graph_may_be_run_backwards_again_and_again():
    layer = Layer()
    solver = Adaptive(max_steps=12)
    end = solver.integrate(layer, start(), GRID, adjoint_parameters=tuple(layer.parameters()))[-1]
    for _ in range(5):
        end.sum().backward(retain_graph=True)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda t, y: y * float("nan"), "no step at t = 0 is short enough"),
        (lambda t, y: y**2, r"Adaptive dopri5: .* at t = (0.99|1)"),
    ],
)
def test_a_field_that_diverges_is_an_error(f, message):
    """NaN, and a solution that is infinite at t = 1."""
    with pytest.raises(DivergenceError, match=message):
        Adaptive().integrate(f, start(), uniform(1))


def test_a_start_that_is_not_finite_is_an_error():
    with pytest.raises(DivergenceError, match="the state at t = 0 is not finite"):
        Adaptive().integrate(lambda t, y: -y, start() * float("inf"), uniform(1))


def test_without_torchdiffeq_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(InputError, match=r"pip install 'resode\[ode\]'"):
        Adaptive().integrate(first_order, start(), GRID)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "bosh"}, "unknown method 'bosh'; did you mean 'bosh3'"),
        ({"method": "rk4"}, "unknown method 'rk4'"),
        ({"rtol": 0}, "rtol 0; a positive number"),
        ({"atol": -1e-3}, "atol -0.001; a positive number"),
        ({"atol": float("nan")}, "atol nan; a positive number"),
        ({"rtol": "1e-3"}, "rtol '1e-3'; a positive number"),
        ({"max_steps": 0}, "max_steps 0; a positive integer"),
        ({"max_steps": 1e3}, r"max_steps 1000.0; a positive integer"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Adaptive(**options)
