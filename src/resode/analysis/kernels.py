"""Kernels: every 3x3 kernel of a network, and where it stands.

A convolution holds one, a twisted one also those of X, Y, ...; a dynamic block one at each of its control
nodes, and a semi-implicit scheme one for each step. What acts is read: of the antisymmetric field the kernel
of K - K^T - gamma I (twisted, it has none, and those of K are read). A dilation of d puts the entries d
pixels apart.
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
from resode.models.twisting import stages_of
from resode.operators import stencils
from resode.operators.twist import TwistConv2d


@dataclass(frozen=True)
class Kernel:
    """The 3x3 kernels (C', C / groups, 3, 3) of one term of one layer.

    Args:
        name: of the layer in the network.
        stage: counted from 1; None where the name tells none.
        time: of the control node or the step that it belongs to; None elsewhere.
        term: "W" of W * u; "X", "Y", "X^2", ... of X (Wx * u), Y (Wy * u), X^2 (W_20 * u), ...
        weight: the kernels, in float64.
        dilation: how many pixels lie from one entry to the next, along rows' and columns' axis.
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
    """Every 3x3 kernel of a network, layer by layer in the order of its modules.

    Raises:
        InputError: a kernel that is not finite.
    """
    stages, times = stages_of(_places(model)), _times(model)
    found = []
    for name, term, weight, dilation, time in _weights(model):
        if not weight.isfinite().all():
            raise InputError(f"{name}: its kernel is not finite, so it cannot be read")
        known = next((t for prefix, t in times.items() if name.startswith(prefix)), None)
        weight = weight.detach().to("cpu", torch.float64)
        found.append(Kernel(name, stages.get(name), known if time is None else time, term, weight, dilation))
    return found


def monomial(p: int, q: int) -> str:
    """X^p Y^q as a text: "X", "X Y", "X^2"."""
    powers = [f"{letter}^{n}" if n > 1 else letter for letter, n in (("X", p), ("Y", q)) if n]
    return " ".join(powers)


Found = tuple[str, str, Tensor, tuple[int, int], float | None]  # name, term, kernels, dilation, time


def _weights(model: nn.Module) -> Iterator[Found]:
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
            yield from _of_scheme(name, module)


def _of_scheme(name: str, block: DynamicBlock) -> Iterator[Found]:
    """The learned 3x3 kernels of a scheme, such as B of the semi-implicit step: one a step and channel."""
    for key, value in block.scheme.items():
        if value.ndim == 4 and value.shape[-2:] == (3, 3):
            for k, (time, weight) in enumerate(zip(block.stage.states.nodes, value, strict=False)):
                yield f"{name}.scheme.{key}.{k}".lstrip("."), "W", weight[:, None], (1, 1), time


def _places(model: nn.Module) -> list[str]:
    """All names that may tell a stage: of convolutions, and of what a dynamic block holds."""
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | Convolution)]
    return names + [found[0] for found in _weights(model)]


def _times(model: nn.Module) -> dict[str, float]:
    """The time of each control node, by the beginning of the names that it holds."""
    return {
        f"{name}.{j}.".lstrip("."): time
        for name, controls in model.named_modules()
        if isinstance(controls, Controls)
        for j, time in enumerate(controls.grid.nodes)
    }
