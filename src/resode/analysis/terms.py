"""Table of a network's terms and the corresponding PDE terms, with counts and shares.

    du/dt = F(theta(t), u)    a residual network is its discretisation in time (E 2017; Haber & Ruthotto 2017,
                              arXiv:1705.03341), a convolution one of a differential operator in space
                              (Ruthotto & Haber 2018, arXiv:1804.04272)

Terms that the network does not have get no row.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resode.analysis.decomposition import KernelDecomposition, pde
from resode.analysis.operations import ACTIVATIONS, GLOBAL, MAXIMUM, MEAN, SUM, count_operations
from resode.analysis.velocities import vector_fields
from resode.blocks import DynamicBlock, dynamic_blocks
from resode.fields.convolutions import Convolution
from resode.fields.hamiltonian import HamiltonianLayer
from resode.fields.norms import TvNorm2d
from resode.fields.parabolic import ParabolicLayer
from resode.integrators import IMEX, FixedStep, Integrator
from resode.memory import Shape
from resode.models.units import Subsample
from resode.operators.twist import TwistConv2d

AnyConvolution = nn.Conv2d | nn.ConvTranspose2d | Convolution
BOUNDARIES = {
    "none": "the image loses its edge pixels",
    "zeros": "boundary condition: u = 0 outside the image",
    "circular": "boundary condition: periodic",
    "reflect": "boundary condition: u mirrored at its edge pixels",
    "replicate": "boundary condition: u constant beyond the edge",
}


@dataclass(frozen=True)
class Term:
    """A row of the table.

    Args:
        network: the term in the network.
        pde: the corresponding term of the differential equation.
        count: number of such modules, or of such operations in a forward pass.
        here: details for this network (shares, names), or empty.
    """

    network: str
    pde: str
    count: int
    here: str = ""


def terms(model: nn.Module, shape: Shape) -> tuple[Term, ...]:
    """Make the table of a network; sums, activations and poolings are counted in a forward pass of one image.

    Args:
        model: any convolutional network.
        shape: (C, H, W) of an image.

    Raises:
        InputError: a kernel with NaN or infinite entries.
    """
    operations = count_operations(model, shape)
    rows = [
        *_time(model, operations),
        *_kernels(pde(model)),
        *_twists(model),
        *_other_convolutions(model),
        *_sources_and_norms(model),
        *_pointwise(operations),
        *_grids(model, operations),
        Term(
            "linear layer", "read-out of the last state, not part of the evolution", _count(model, nn.Linear)
        ),
    ]
    return tuple(row for row in rows if row.count)


def _time(model: nn.Module, operations: Counter[str]) -> Iterator[Term]:
    sums = operations[SUM]
    yield Term("residual units, one after another", "time t = 0, 1, 2, ..., each with its theta(t)", sums)
    yield Term(
        "skip connection u + F(u)",
        "explicit Euler step of du/dt = F(theta(t), u), h = 1, if the shortcut is the identity",
        sums,
    )
    yield Term("shortcut that pads channels", "more unknowns, initially 0", _count(model, Subsample))
    for block, number in _kinds(dynamic_blocks(model)):
        stage = block.stage
        nodes = f"t = {stage.states}, theta at {len(block.controls)} nodes"
        yield Term(
            f"dynamic block, {stage.integrator.name}: {stage.integrator.equation}",
            _evolution(stage.integrator),
            number,
            f"f = {stage.field.equation}; {nodes}",
        )


def _kinds(blocks: Sequence[DynamicBlock]) -> Iterator[tuple[DynamicBlock, int]]:
    """One block of each kind and the number of such blocks; widths and weights may differ."""
    kinds: dict[tuple[object, ...], list[DynamicBlock]] = {}
    for block in blocks:
        stage = block.stage
        key = (stage.integrator, stage.field.equation, stage.states, len(block.controls))
        kinds.setdefault(key, []).append(block)
    for same in kinds.values():
        yield same[0], len(same)


def _evolution(integrator: Integrator) -> str:
    """The equation in time that a scheme discretises."""
    if len(integrator.parts) > 1:
        return "two halves of the channels, each driven by f(theta(t), u) of the other"
    if integrator.second_order:
        return "d2u/dt2 = f(theta(t), u)"
    if isinstance(integrator, IMEX) and integrator.normed:
        return "a recurrence: a step of f(theta(t), u), the norm of f, then an implicit smoothing"
    if isinstance(integrator, IMEX) and integrator.variant == "damped":
        return "du/dt = f(theta(t), u) - B^T B u, the last term implicit"
    if isinstance(integrator, FixedStep) and integrator.order is None:
        return "a recurrence driven by f(theta(t), u)"
    return "du/dt = f(theta(t), u)"


def _kernels(rows: Sequence[KernelDecomposition]) -> Iterator[Term]:
    plain = [row for row in rows if row.term == "W"]
    yield Term(
        "3x3 kernel W * u",
        "c u + b . grad u + a1 u_xx + a2 u_yy + mixed (u_xy and orders 3, 4)",
        len(plain),
        mean_shares([row.shares for row in plain]),
    )


def mean_shares(shares: Sequence[dict[str, float]]) -> str:
    """Mean shares as text, "12 % reaction, ..."; rows that are all 0 are ignored."""
    nonzero = [row for row in shares if sum(row.values())]
    if not nonzero:
        return "all 0" if shares else ""
    means = {name: sum(row[name] for row in nonzero) / len(nonzero) for name in nonzero[0]}
    return ", ".join(f"{100 * value:.0f} % {name}" for name, value in means.items())


def _twists(model: nn.Module) -> Iterator[Term]:
    fields = vector_fields(model)
    here = mean_shares([field.shares for field in fields])
    yield Term(
        "twist X (Wx * u) + Y (Wy * u)",
        "v . grad u, v linear in X and Y: dilation, rotation, strain; and higher orders",
        _count(model, TwistConv2d),
        here,
    )
    adjoint = _count(model, ParabolicLayer) + _count(model, HamiltonianLayer)
    yield Term(
        "transposed convolution K^T of the same kernel",
        "the adjoint operator, its channels exchanged; for K with constant coefficients, even orders as "
        "those of K, odd ones with the opposite sign",
        adjoint,
    )


def _other_convolutions(model: nn.Module) -> Iterator[Term]:
    names_by_kind: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, AnyConvolution):
            size = "x".join(map(str, module.weight.shape[-2:]))
            transposed = isinstance(module, nn.ConvTranspose2d)
            if transposed or size != "3x3":
                names_by_kind.setdefault(f"{size} {'transposed ' * transposed}convolution", []).append(name)
    for kind, names in names_by_kind.items():
        if kind == "1x1 convolution":
            yield Term(kind, "linear reaction: couples the channels of a pixel", len(names), _few(names))
        else:
            yield Term(kind, "differential operator of higher order (not analysed)", len(names), _few(names))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _sources_and_norms(model: nn.Module) -> Iterator[Term]:
    convolutions = [module for module in model.modules() if isinstance(module, AnyConvolution)]
    biased = sum(module.bias is not None for module in convolutions)
    yield Term("bias of a convolution", "source term, constant in space", biased)
    yield Term(
        "BatchNorm",
        "in evaluation: a factor and a source for each channel, constant in space (the factor scales W)",
        _count(model, _BatchNorm),
    )
    yield Term(
        "GroupNorm", "a factor that depends on the whole image: a nonlocal term", _count(model, nn.GroupNorm)
    )
    yield Term(
        "TvNorm",
        "nonlinear reaction: divides a pixel by the norm of its vector of channels",
        _count(model, TvNorm2d),
    )


def _pointwise(operations: Counter[str]) -> Iterator[Term]:
    for name in ACTIVATIONS.values():
        yield Term(name, "nonlinear reaction: acts on each pixel by itself, no derivative", operations[name])


def _grids(model: nn.Module, operations: Counter[str]) -> Iterator[Term]:
    convolutions = [module for module in model.modules() if isinstance(module, AnyConvolution)]
    boundaries = Counter(
        _boundary(module)
        for module in convolutions
        if max(module.weight.shape[-2:]) > 1 and not isinstance(module, nn.ConvTranspose2d)
    )
    for name, number in boundaries.items():
        yield Term(f"padding: {name}", BOUNDARIES[name], number)
    strides = Counter(
        max(module.stride)
        for module in convolutions
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1
    )
    for stride, number in sorted(strides.items()):
        yield Term(f"stride {stride}", f"coarser grid, h -> {stride} h", number)
    yield Term("average pooling", "local mean, then a coarser grid", operations[MEAN])
    yield Term("max pooling", "local maximum (nonlinear), then a coarser grid", operations[MAXIMUM])
    yield Term("global average", "mean over the domain", operations[GLOBAL])


def _boundary(module: AnyConvolution) -> str:
    if isinstance(module, Convolution):
        return "circular" if module.boundary == "periodic" else "zeros"
    padded = module.padding != "valid" and any(module.padding)
    return module.padding_mode if padded else "none"


def _count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())
