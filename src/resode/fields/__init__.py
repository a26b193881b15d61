"""Fields f(y): the right-hand sides of dy/dt = f(theta(t), y), each a frozen value built for a width."""

from resode.fields.antisymmetric import Antisymmetric
from resode.fields.base import Field
from resode.fields.convolutions import Convolution, ConvolutionalField, TwistedConvolution
from resode.fields.hamiltonian import Hamiltonian
from resode.fields.norms import BatchNorm, GroupNorm, Norm, TvNorm, norms
from resode.fields.parabolic import Parabolic
from resode.fields.residual import Bottleneck, Double, Preactivation
from resode.fields.twists import Twist
from resode.registry import Registry

fields: Registry[Field] = Registry("field", "fields")
fields.register("preactivation", summary="K2 s(N2 K1 s(N1 y)): the branch of ResNet-v2")(Preactivation)
fields.register("double", summary="s(N2 K2 s(N1 K1 y)): the basic residual block without its sum")(Double)
fields.register("bottleneck", summary="K3 s(N3 K2 s(N2 K1 s(N1 y))): K1 and K3 of size 1x1")(Bottleneck)
fields.register("parabolic", summary="-(K^T s(N(K y + b1)) + b2): a nonlinear heat equation")(Parabolic)
fields.register("antisymmetric", summary="s((K - K^T - gamma I) y + b): no growth, no decay")(Antisymmetric)
fields.register("hamiltonian", summary="K^T s(N(K z + b)): half of a pair that conserves energy")(Hamiltonian)

__all__ = [
    "Antisymmetric",
    "BatchNorm",
    "Bottleneck",
    "Convolution",
    "ConvolutionalField",
    "Double",
    "Field",
    "GroupNorm",
    "Hamiltonian",
    "Norm",
    "Parabolic",
    "Preactivation",
    "TvNorm",
    "Twist",
    "TwistedConvolution",
    "fields",
    "norms",
]
