"""Analysis: a network read as the differential equation that it discretises.

    pde(model)            reaction, advection, diffusion and mixed parts of every 3x3 kernel
    terms(model, shape)   the table "network term, PDE term", filled in for one network
    vector_fields(model)  the velocity of every twisted convolution: dilation, rotation, strain

`resode.analysis.figures` draws them; it alone needs matplotlib. `resode.analysis.robustness` measures errors
on rotated, scaled, attacked and corrupted images.
"""

from resode.analysis.parts import KernelStrength, pde
from resode.analysis.terms import Term, terms
from resode.analysis.velocities import Pattern, VectorField, vector_fields

__all__ = ["KernelStrength", "Pattern", "Term", "VectorField", "pde", "terms", "vector_fields"]
