"""Fields f(y): the right-hand sides of dy/dt = f(theta(t), y), each a frozen value built for a width."""

from resode.fields.activations import Activation, activations
from resode.fields.base import Field
from resode.fields.catalogue import fields
from resode.fields.convolutions import Convolution, ConvolutionalField, TwistedConvolution
from resode.fields.custom import Custom
from resode.fields.norms import BatchNorm, GroupNorm, Norm, TvNorm, norms
from resode.fields.twists import Twist

# In the order of `resode list fields`.
# isort: off
from resode.fields.residual import Activated, Bottleneck, Double, PreactDouble, Preactivation, Single, Triple
from resode.fields.parabolic import Parabolic
from resode.fields.antisymmetric import Antisymmetric
from resode.fields.hamiltonian import Hamiltonian
# isort: on

__all__ = [
    "Activated",
    "Activation",
    "Antisymmetric",
    "BatchNorm",
    "Bottleneck",
    "Convolution",
    "ConvolutionalField",
    "Custom",
    "Double",
    "Field",
    "GroupNorm",
    "Hamiltonian",
    "Norm",
    "Parabolic",
    "PreactDouble",
    "Preactivation",
    "Single",
    "Triple",
    "TvNorm",
    "Twist",
    "TwistedConvolution",
    "activations",
    "fields",
    "norms",
]
