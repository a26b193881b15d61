"""Initial weights that a network draws in place of those of its layers.

    clamped_xavier   W ~ N(0, s^2) clamped to [-2 s, 2 s], s^2 = 2 / (fan_in + fan_out); biases are 0

Glorot & Bengio 2010 (AISTATS 9) without the clamp, which is that of the DynamicBlocks toolbox.
"""

import math

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from resode.fields import Convolution


@torch.no_grad()
def clamped_xavier(network: nn.Module) -> None:
    """Draw the weights of all convolutions and linear layers anew, and set their biases to 0.

    The fans follow from the shape of a weight, as in `torch.nn.init`. Norms, twists and other parameters stay
    as they are.

    Args:
        network: any module; changed in place.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> clamped_xavier(layer)
        >>> bool(layer.weight.abs() <= 2), layer.bias.item()
        (True, 0.0)
    """
    for module in network.modules():
        if not isinstance(module, _ConvNd | Convolution | nn.Linear):
            continue
        positions = module.weight[0, 0].numel()  # of a kernel
        fan_in, fan_out = (n * positions for n in (module.weight.shape[1], module.weight.shape[0]))
        s = math.sqrt(2 / (fan_in + fan_out))
        module.weight.normal_(0, s).clamp_(-2 * s, 2 * s)
        if module.bias is not None:
            module.bias.zero_()
