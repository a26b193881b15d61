"""Collects every 3x3 kernel of a network, with its layer, stage and time.

A convolution has one kernel, a twisted convolution also those of X, Y, ...; a dynamic block has one at each
control node, a semi-implicit scheme one for each step. The kernel is the effective one: for the antisymmetric
field that of K - K^T - gamma I (a twisted one has none, so those of K are taken). With dilation d the entries
are d pixels apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resode.blocks import DynamicBlock
from resode.controls import Controls
from resode.errors import InputError
from resode.fields.antisymmetric import AntisymmetricLayer
from resode.fields.convolutions import Convolution
from resode.integrators import IMEX
from resode.models.twisting import stages_of
from resode.operators import stencils
from resode.operators.twist import TwistConv2d


@dataclass(frozen=True)
class Kernel:
    """The 3x3 kernels (C', C / groups, 3, 3) of one term of one layer.

    Args:
        name: name of the layer in the network.
        stage: stage of the network, from 1; None if the layer's name has none.
        time: time of its control node or step; None elsewhere.
        term: "W" for W * u; "X", "Y", "X^2", ... for X (Wx * u), Y (Wy * u), X^2 (W_20 * u), ...
        weight: the kernels, float64.
        dilation: distance between entries in pixels, along y and x.
    """

    name: str
    stage: int | None
    time: float | None
    term: str
    weight: Tensor
    dilation: tuple[int, int] = (1, 1)

    @property
    def coefficients(self) -> Tensor:
        """c_ij of d^(i+j)/dy^i dx^j in pixels (C', C / groups, 3, 3); see `resode.operators.stencils`."""
        dy, dx = (torch.tensor([1.0, d, d**2], dtype=torch.float64) for d in self.dilation)
        return stencils.coefficients(self.weight) * dy[:, None] * dx


def kernels_of(model: nn.Module) -> list[Kernel]:
    """Every 3x3 kernel of a network, in the order of its modules.

    Raises:
        InputError: a kernel with NaN or infinite entries.
    """
    stages, times = stages_of(_names(model)), _times(model)
    kernels = []
    for name, term, weight, dilation, time in _weights(model):
        if not weight.isfinite().all():
            raise InputError(
                f"{name}: the kernel has NaN or infinite entries; analyse weights that are finite"
            )
        node_time = next((t for prefix, t in times.items() if name.startswith(prefix)), None)
        weight = weight.detach().to("cpu", torch.float64)
        time = node_time if time is None else time
        kernels.append(Kernel(name, stages.get(name), time, term, weight, dilation))
    return kernels


def monomial(p: int, q: int) -> str:
    """X^p Y^q as text: "X", "X Y", "X^2"."""
    powers = [f"{letter}^{n}" if n > 1 else letter for letter, n in (("X", p), ("Y", q)) if n]
    return " ".join(powers)


Entry = tuple[str, str, Tensor, tuple[int, int], float | None]  # name, term, kernels, dilation, time


def _weights(model: nn.Module) -> Iterator[Entry]:
    layers = [m for m in model.modules() if isinstance(m, AntisymmetricLayer)]
    antisymmetric = {id(layer.conv) for layer in layers if isinstance(layer.conv, Convolution)}
    for name, module in model.named_modules():
        if isinstance(module, AntisymmetricLayer) and id(module.conv) in antisymmetric:
            yield f"{name}.conv".lstrip("."), "W", module.kernel(), (1, 1), None
        elif isinstance(module, Convolution) and module.weight.shape[-2:] == (3, 3):
            if id(module) not in antisymmetric:
                yield name, "W", module.weight, (1, 1), None
        elif isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            down, across = module.dilation
            yield name, "W", module.weight, (down, across), None
            if isinstance(module, TwistConv2d):
                for powers, weight in zip(module.terms, module.kernels(), strict=True):
                    yield name, monomial(*powers), weight, (down, across), None
        elif isinstance(module, DynamicBlock):
            yield from _scheme_weights(name, module)


def _scheme_weights(name: str, block: DynamicBlock) -> Iterator[Entry]:
    """Learned 3x3 kernels of a scheme, such as B of the semi-implicit step: one for each step and channel."""
    integrator = block.stage.integrator
    for key, value in block.scheme.items():
        if isinstance(integrator, IMEX):
            value = integrator.kernel(value)
        if value.ndim == 4 and value.shape[-2:] == (3, 3):
            for k, (time, weight) in enumerate(zip(block.stage.states.nodes, value, strict=False)):
                yield f"{name}.scheme.{key}.{k}".lstrip("."), "W", weight[:, None], (1, 1), time


def _names(model: nn.Module) -> list[str]:
    """Names from which stages are derived: of all convolutions and all 3x3 kernels."""
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | Convolution)]
    return names + [entry[0] for entry in _weights(model)]


def _times(model: nn.Module) -> dict[str, float]:
    """Time of each control node, by the prefix of its parameters' names."""
    return {
        f"{name}.{j}.".lstrip("."): time
        for name, controls in model.named_modules()
        if isinstance(controls, Controls)
        for j, time in enumerate(controls.grid.nodes)
    }
