"""Analysis of a network as the discretisation of a differential equation.

    pde(model)            shares of reaction, advection, diffusion and mixed derivatives in every 3x3 kernel
    terms(model, shape)   table of the network's terms and the corresponding PDE terms
    depth(net, data)      whether a network of dynamic blocks is the equation that it discretises
    dynamics(net, images) norms of the state, of f and of theta over time
    vector_fields(model)  velocity of every twisted convolution: dilation, rotation, strain

`resode.analysis.figures` draws them and alone needs matplotlib. `resode.analysis.robustness` measures errors
on rotated, scaled, attacked and corrupted images; `resode.analysis.bench` measures speed.
"""

from resode.analysis.decomposition import KernelDecomposition, pde
from resode.analysis.depth import Depth, depth
from resode.analysis.dynamics import StageDynamics, dynamics
from resode.analysis.terms import Term, terms
from resode.analysis.velocities import Pattern, VectorField, vector_fields

__all__ = [
    "Depth",
    "KernelDecomposition",
    "Pattern",
    "StageDynamics",
    "Term",
    "VectorField",
    "depth",
    "dynamics",
    "pde",
    "terms",
    "vector_fields",
]
