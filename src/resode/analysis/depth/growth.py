"""Growth: by how much a stage stretches small differences of its input, and what is known of it beforehand.

The largest singular value of J = dy(t_n)/dy(t_0) at an image, by power iteration with J^T J. J^T u is a
vector-Jacobian product; J v is the derivative of the linear map u -> J^T u, so that only backward formulas
are needed. The iteration approaches the value from below.

    parabolic f with |K|^2 <= L, Runge-Kutta     |R| <= 1 if h L <= 2 (Euler, Heun, SSPRK3, RK4),
                                                 else sum_k |r_k| (h L)^k
    Hamiltonian pair with |K|^2 <= L             each shear stretches by at most (a + sqrt(a^2 + 4)) / 2,
                                                 a = h L

with the coefficients r_k of the stability polynomial. Other blocks have no bound.
"""

import math

import torch
from torch import Tensor

from resode.blocks import DynamicBlock
from resode.fields import Hamiltonian, Parabolic
from resode.integrators import RK4, SSPRK3, Euler, ExplicitRungeKutta, Heun, StormerVerlet, SymplecticEuler
from resode.stability import radii

IMAGES = 8  # at which J is taken
ITERATIONS = 20
CONTRACTIVE = (Euler(), Heun(), SSPRK3(), RK4())  # not expanding while h L <= 2
SEED = 0


def growth(block: DynamicBlock, y: Tensor) -> list[float]:
    """The largest singular value of the block's Jacobian at each state (N, C, H, W).

    Args:
        block: in evaluation mode, its parameters without gradients.
        y: the states at its start.
    """
    with torch.enable_grad():
        start = y.detach().requires_grad_()
        end = block.trajectory(start)[1][-1]
        u = torch.zeros_like(end, requires_grad=True)
        (pulled,) = torch.autograd.grad(end, start, u, create_graph=True)  # J^T u, linear in u
    random = torch.Generator().manual_seed(SEED)
    v = torch.randn(y.shape, generator=random, dtype=torch.float64).to(y)
    size = torch.ones(len(y), dtype=y.dtype, device=y.device)
    for _ in range(ITERATIONS):
        v = v / _norms(v).clamp_min(torch.finfo(v.dtype).tiny)
        (image,) = torch.autograd.grad(pulled, u, v, retain_graph=True)  # J v
        size = _norms(image).flatten()
        (v,) = torch.autograd.grad(end, start, image, retain_graph=True)
    return [float(value) for value in size]


def _norms(y: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(y.flatten(1), dim=1)
    return norms[:, None, None, None]


def growth_bound(block: DynamicBlock, height: int, width: int) -> float | None:
    """A bound of the growth on states of this size; None where none is known."""
    stage, integrator = block.stage, block.stage.integrator
    known = radii(block.controls, height, width)
    if any(radius is None for of_node in known for radius in of_node):
        return None
    lipschitz = max(radius for of_node in known for radius in of_node if radius is not None)
    steps = [h * lipschitz for h in stage.states.intervals]
    if isinstance(stage.field, Parabolic) and isinstance(integrator, ExplicitRungeKutta):
        return math.prod(_runge_kutta(integrator, z) for z in steps)
    if isinstance(stage.field, Hamiltonian) and isinstance(integrator, SymplecticEuler):
        return math.prod(_shear(z) ** 2 for z in steps)
    if isinstance(stage.field, Hamiltonian) and isinstance(integrator, StormerVerlet):
        return math.prod(_shear(z / 2) ** 2 * _shear(z) for z in steps)
    return None


def _runge_kutta(scheme: ExplicitRungeKutta, z: float) -> float:
    if scheme in CONTRACTIVE and z <= 2:
        return 1.0
    return 1.0 + sum(abs(r) * z**k for k, r in enumerate(scheme.polynomial_coefficients(), start=1))


def _shear(a: float) -> float:
    return (a + math.sqrt(a * a + 4)) / 2
