"""Gradients: where the backward pass gets the states of a chain of steps from.

    stored         every operation keeps what it needs: backpropagation, memory proportional to the steps
    checkpointed   some states are kept, the steps between them are recomputed
    reversible     only the last state is kept, the scheme's inverse recovers the others
    adjoint        optimise then discretise: a' = -(df/dy)^T a is solved backwards by the same scheme

The first three give the same gradient (discretise then optimise), up to the rounding of a recovered state.
The adjoint is the gradient of the differential equation, not of its discretisation: the two differ by the
scheme's error (Gholami, Keutzer & Biros 2019, arXiv:1902.10298).
"""

from resode.gradients.adjoint import Adjoint
from resode.gradients.base import Gradient, Stored, gradients
from resode.gradients.chain import Chain, Flow
from resode.gradients.checkpointed import Checkpointed
from resode.gradients.drift import drift
from resode.gradients.reversible import Reversible
from resode.gradients.watch import unwatched

__all__ = [
    "Adjoint",
    "Chain",
    "Checkpointed",
    "Flow",
    "Gradient",
    "Reversible",
    "Stored",
    "drift",
    "gradients",
    "unwatched",
]
