"""Problems with known solutions, and what an integrator makes of them."""

import inspect
import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from resode.grids import TimeGrid
from resode.integrators import FixedStep, Integrator, integrators, solve
from resode.integrators.base import Carry, carries, right_hand_side

END = 2.0
Grids = Callable[[int], TimeGrid]


def with_defaults() -> list[str]:
    """Every registered integrator that needs no option: a new one enters the theorems by itself."""
    return [
        name
        for name in integrators.names()
        if all(p.default is not inspect.Parameter.empty for p in integrators.entry(name).options().values())
    ]


def fixed(*, where: Callable[[FixedStep], bool] = lambda scheme: True) -> list[str]:
    """The names of those with fixed steps for which `where` holds."""
    made = {name: integrators.of(name) for name in with_defaults()}
    return [name for name, scheme in made.items() if isinstance(scheme, FixedStep) and where(scheme)]


def uniform(n: int) -> TimeGrid:
    return TimeGrid.uniform(n, END)


def warped(n: int) -> TimeGrid:
    """Steps that differ by a factor of 4, smoothly."""
    return TimeGrid((*(END * (k / n + 0.09 * math.sin(2 * math.pi * k / n)) for k in range(n)), END))


def usable(scheme: Integrator, grid: TimeGrid) -> bool:
    try:
        scheme.check(grid)
    except ValueError:
        return False
    return True


def runge_kutta_in_floats(f: Callable[[float, list[float]], list[float]], y: list[float]) -> list[float]:
    """y(END) by the classical scheme in 8192 steps of plain Python: an error of about 1e-15."""
    n = 8192
    h = END / n

    def moved(y: list[float], k: list[float], s: float) -> list[float]:
        return [a + s * b for a, b in zip(y, k, strict=True)]

    for i in range(n):
        t = END * i / n
        k1 = f(t, y)
        k2 = f(t + h / 2, moved(y, k1, h / 2))
        k3 = f(t + h / 2, moved(y, k2, h / 2))
        k4 = f(t + h, moved(y, k3, h))
        y = [a + h / 6 * (p + 2 * q + 2 * r + s) for a, p, q, r, s in zip(y, k1, k2, k3, k4, strict=True)]
    return y


def first_order(t: float, y: Tensor) -> Tensor:
    """y' = -y^3 + sin 3t."""
    return -(y**3) + math.sin(3 * t)


def second_order(t: float, y: Tensor) -> Tensor:
    """y'' = -sin y + sin(3t) / 2."""
    return -torch.sin(y) + math.sin(3 * t) / 2


def split(t: float, y: Tensor, part: str) -> Tensor:
    """A driven pendulum: Y' = F(t, Z), Z' = -G(t, Y)."""
    if part == "F":
        return y * (1 + 0.3 * math.sin(t))
    return torch.sin(y) * (1 + 0.5 * math.cos(2 * t))


FIRST = runge_kutta_in_floats(lambda t, y: [-(y[0] ** 3) + math.sin(3 * t)], [1.0])[:1]
SECOND = runge_kutta_in_floats(lambda t, y: [y[1], -math.sin(y[0]) + math.sin(3 * t) / 2], [1.0, 0.0])[:1]
SPLIT = runge_kutta_in_floats(
    lambda t, y: [y[1] * (1 + 0.3 * math.sin(t)), -math.sin(y[0]) * (1 + 0.5 * math.cos(2 * t))], [1.0, 0.5]
)


def error(scheme: FixedStep, grid: TimeGrid) -> float:
    """The error at END on the smooth problem of the scheme's kind; learned coefficients are zero."""
    if len(scheme.parts) > 1:
        f, start, exact = split, [1.0, 0.5], SPLIT
    elif scheme.second_order:
        f, start, exact = second_order, [1.0], SECOND
    else:
        f, start, exact = first_order, [1.0], FIRST
    y = torch.tensor(start, dtype=torch.float64).reshape(1, -1, 1, 1)
    coefficients = {name: torch.zeros_like(v) for name, v in scheme.coefficients(grid, y.shape[1]).items()}
    end = solve(scheme, grid, f, y, coefficients)[-1]
    return float((end.flatten() - torch.tensor(exact, dtype=torch.float64)).norm())


def orders(errors: list[float]) -> list[float]:
    """The observed orders, where n doubles from one error to the next."""
    return [math.log2(a / b) for a, b in pairwise(errors)]


def observed_orders(scheme: FixedStep, grids: Grids = uniform, steps: tuple[int, ...] = (64, 128, 256, 512)):
    return orders([error(scheme, grids(n)) for n in steps])


def inverted(scheme: FixedStep, grid: TimeGrid, k: int, f: Callable[..., Tensor], carry: Carry) -> Carry:
    """The carry before step k, for `f(t, y)` or `f(t, y, part)`."""
    s = grid.step(k)
    return scheme.inverse(s, right_hand_side(scheme, s, f), carry, {})


def there_and_back(scheme: FixedStep, grid: TimeGrid, f: Callable[..., Tensor], y: Tensor) -> Tensor:
    """What the inverses recover of y from the end of the grid."""
    *_, carry = carries(scheme, grid, f, y, {})
    for k in reversed(range(grid.steps)):
        carry = inverted(scheme, grid, k, f, carry)
    return scheme.state(carry)
