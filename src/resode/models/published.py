"""Published networks of dynamic blocks; where a paper leaves something open, the docstring states our choice.

Each is a few lines over `DynamicNet`: a field, an integrator, grids. For other combinations use the model
`dynamic` with its stages written out.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from resode.errors import InputError, nearest
from resode.fields import Single, TvNorm, Twist
from resode.grids import TimeGrid
from resode.integrators import Euler, Leapfrog, LearnedTwoStep
from resode.models.catalogue import CIFAR, models
from resode.models.dynamic import DynamicNet
from resode.models.he import units_per_stage
from resode.models.initial import clamped_xavier
from resode.models.layouts import size_mistakes
from resode.models.transitions import (
    ActivationConnector,
    Connector,
    Head,
    Identity,
    Stem,
    Transition,
    UnitConnector,
)
from resode.stages import Stage

BN_1E4 = {"name": "batch", "eps": 1e-4}
# Meganet.m updates its running statistics in the forward and again in the backward pass: 1 - 0.9^2 in all.
BN_MEGANET = BN_1E4 | {"momentum": 0.19}


def _stage(width: int, field: Any, integrator: Any, states: Any, controls: Any = None, **more: Any) -> Stage:
    """A stage from names, mappings or objects."""
    return Stage(width, field, integrator, states, controls, **more)


def _check_widths(widths: Any, at_least: int = 1) -> None:
    """Raise `InputError` unless `widths` is a list of positive integers of at least this length."""
    count = len(widths) if isinstance(widths, Sequence) else 0
    mistakes = size_mistakes(widths, max(count, at_least))
    if mistakes:
        raise InputError(*mistakes)


def _check_name(what: str, name: Any, names: Iterable[str]) -> None:
    """Raise `InputError` unless an option is one of the names."""
    names = tuple(names)
    if name not in names:
        raise InputError(f"unknown {what} '{name}'{nearest(str(name), names)} ({', '.join(names)})")


def _equal_steps(steps: Any, h: Any) -> TimeGrid:
    if not isinstance(h, int | float) or isinstance(h, bool):
        raise InputError(f"h {h!r}; a positive number is needed")
    return TimeGrid.uniform(steps, steps * h)


@models.register(
    "dynamicblocks", summary="the DynamicBlocks toolbox: parabolic or double, any scheme", shape=CIFAR
)
def dynamicblocks(
    *,
    scheme: Any = "rk4",
    layer: str = "parabolic",
    states: Any = (0, 1, 2, 3, 4),
    controls: Any = None,
    widths: Sequence[int] = (16, 32, 64, 64),
    norm: Any = None,
    gradient: Any = "stored",
    keep_unused: bool = False,
    initial: str = "default",
    classes: int = 10,
    in_channels: int = 3,
) -> DynamicNet:
    """The networks of the DynamicBlocks toolbox: blocks at all widths but the last, biases in every layer.

    Args:
        scheme: any integrator (the toolbox has rk4 and euler, which it calls rk1).
        layer: parabolic, double or preact_double (DoubleSymLayer, DoubleLayer, PreactDoubleLayer in the
            toolbox).
        states: the state nodes of every block.
        controls: the control nodes of every block (default: the state nodes that are evaluated).
        widths: the width of each block, then the width after the last connector.
        norm: of the layers, or none (default: TvNorm with eps 1e-4 and its scale frozen at 1); the toolbox's
            "Batch" is batch.
        gradient: stored, checkpointed, reversible or adjoint.
        keep_unused: accept control nodes that no evaluation touches.
        initial: weights at first: default (each layer's own) or clamped_xavier (the toolbox's: normal with
            variance 2 / (fan_in + fan_out), clamped at two standard deviations, biases 0).
        classes: the number of logits.
        in_channels: the channels of an image.
    """
    _check_name("layer", layer, ("parabolic", "double", "preact_double"))
    _check_name("initial", initial, ("default", "clamped_xavier"))
    _check_widths(widths, at_least=2)
    norm = TvNorm(eps=1e-4, scale=False) if norm is None else None if norm == "none" else norm
    field = {"name": layer, "norm": norm, "bias": True}
    stages = [
        _stage(w, field, scheme, states, controls, gradient=gradient, keep_unused=keep_unused)
        for w in widths[:-1]
    ]
    network = DynamicNet(
        stages,
        stem=Stem(in_channels, norm=BN_1E4, bias=True),
        connector=Connector(norm=BN_1E4, bias=True),
        last=widths[-1],
        classes=classes,
    )
    if initial == "clamped_xavier":
        clamped_xavier(network)
    return network


RUTHOTTO_HABER: Mapping[str, tuple[Any, str]] = {
    "parabolic": ("euler", "parabolic"),
    "hamiltonian": ("symplectic_euler", "hamiltonian"),
    "second_order": (Leapfrog(first="published"), "parabolic"),
}


@models.register(
    "ruthotto_haber", summary="Ruthotto & Haber 2018: parabolic, Hamiltonian, second order", shape=CIFAR
)
def ruthotto_haber(
    *,
    kind: str = "parabolic",
    widths: Sequence[int] = (32, 64, 112),
    last: int | None = None,
    steps: int = 3,
    end: float | None = None,
    gradient: Any = "stored",
    version: str = "paper",
    classes: int = 10,
    in_channels: int = 3,
) -> DynamicNet:
    """PDE-motivated networks (Ruthotto & Haber 2018, arXiv:1804.04272): symmetric layers, TvNorm, no biases.

    Our choice: stem and connectors have BatchNorm with eps 1e-4, as in the DynamicBlocks toolbox (TvNorm has
    as many parameters).

        parabolic      y' = -K^T s(N(K y)),  Euler
        hamiltonian    Y' = K1^T s(N(K1 Z)), Z' = -K2^T s(N(K2 Y)),  symplectic Euler (called Verlet there)
        second_order   y'' = -K^T s(N(K y)),  leapfrog

    The authors' code (Meganet.m, 1b3b0de) has eps 1e-4 in TvNorm, the other sign of both halves of
    `hamiltonian` (Y' = -K1^T ..., Z' = +K2^T ...), and other initial weights: the same theta at all steps;
    kernels of n entries normal with variance 2 / n, clamped at two standard deviations; the classifier normal
    with deviation 0.1, clamped at 0.2.

    Args:
        kind: parabolic, hamiltonian or second_order.
        widths: the width of each block (default: the paper's for CIFAR-10; CIFAR-100 32-64-128, STL-10
            16-32-64-128).
        last: the width after the last connector (default: the last width; CIFAR-100: 256).
        steps: of each block.
        end: the final time (default: steps of h = 1).
        gradient: stored, checkpointed, reversible or adjoint.
        version: paper, or meganet for the network of the authors' code.
        classes: the number of logits.
        in_channels: the channels of an image.
    """
    _check_name("kind", kind, RUTHOTTO_HABER)
    _check_widths(widths)
    versions = ("paper", "meganet")
    if version not in versions:
        raise InputError(f"unknown version '{version}'{nearest(str(version), versions)} (paper, meganet)")
    meganet = version == "meganet"
    integrator, field = RUTHOTTO_HABER[kind]
    described = {
        "name": "parabolic" if meganet else field,  # -F: the sign of both halves
        "norm": TvNorm(eps=1e-4 if meganet else 1e-3),
        "bias": False,
    }
    norm = BN_MEGANET if meganet else BN_1E4
    states = TimeGrid.uniform(steps, end)
    network = DynamicNet(
        [_stage(w, described, integrator, states, gradient=gradient) for w in widths],
        stem=Stem(in_channels, norm=norm),
        connector=Connector(norm=norm),
        last=widths[-1] if last is None else last,
        classes=classes,
    )
    if meganet:
        _as_meganet_begins(network)
    return network


@torch.no_grad()
def _as_meganet_begins(network: DynamicNet) -> None:
    """Draw the initial weights of Meganet.m; those of the norms stay 1 and 0."""
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 4 and not weight.is_meta:
            deviation = (2 / weight.numel()) ** 0.5
            weight.normal_(std=deviation).clamp_(-2 * deviation, 2 * deviation)
    for parameter in network.head.linear.parameters():  # type: ignore[union-attr]  # every head has one
        if not parameter.is_meta:
            parameter.normal_(std=0.1).clamp_(-0.2, 0.2)
    for block in network.blocks():
        for node in block.controls:
            node.load_state_dict(block.controls[0].state_dict())


CHANG: Mapping[str, tuple[str, str]] = {
    "hamiltonian": ("symplectic_euler", "hamiltonian"),
    "midpoint": ("two_step_midpoint", "antisymmetric"),
    "leapfrog": ("leapfrog", "parabolic"),
}


@models.register("chang", summary="Chang et al. 2018: Hamiltonian, midpoint, leapfrog", shape=CIFAR)
def chang(
    *,
    kind: str = "hamiltonian",
    widths: Sequence[int] = (32, 64, 112),
    steps: int = 3,
    h: float = 1.0,
    norm: Any = "batch",
    gradient: Any = "reversible",
    classes: int = 10,
    in_channels: int = 3,
) -> DynamicNet:
    """Reversible networks (Chang et al. 2018, arXiv:1709.03698), memory independent of the depth.

        hamiltonian    Y' = K1^T s(N(K1 Z + b1)), Z' = -K2^T s(N(K2 Y + b2)),  symplectic Euler
        midpoint       y' = s(N((K - K^T) y + b)),  y_{n+1} = y_{n-1} + 2h f(y_n)
        leapfrog       y'' = -K^T s(N(K y + b)),  leapfrog

    Args:
        kind: hamiltonian, midpoint or leapfrog.
        widths: the width of each block.
        steps: of each block.
        h: the step size.
        norm: of the layers.
        gradient: stored, checkpointed, reversible.
        classes: the number of logits.
        in_channels: the channels of an image.
    """
    _check_name("kind", kind, CHANG)
    _check_widths(widths)
    integrator, name = CHANG[kind]
    field = {"name": name, "norm": norm}
    states = _equal_steps(steps, h)
    return DynamicNet(
        [_stage(w, field, integrator, states, gradient=gradient) for w in widths],
        stem=Stem(in_channels),
        connector=Connector(),
        classes=classes,
        head=Head(norm="batch", activation="relu"),
    )


def preactivation_net(
    depth: int,
    *,
    integrator: Any = "euler",
    shortcut: Any = "A",
    widths: Sequence[int] = (16, 32, 64),
    norm: Any = "batch",
    interpolation: str = "linear",
    gradient: Any = "stored",
    classes: int = 10,
    in_channels: int = 3,
) -> DynamicNet:
    """A pre-activation ResNet of depth 6n + 2 whose units are steps of an integrator, h = 1.

    Stage 1 takes n steps; stages 2 and 3 begin with an ordinary unit of stride 2 and take n - 1. With Euler
    this is `he_preact_resnet`; with momentum the momentum ResNet (Sander et al. 2021, arXiv:2102.07870).

    Args:
        depth: 6n + 2, at least 14.
        integrator: any integrator, or a list of one for each stage.
        shortcut: of the units that begin stages 2 and 3: A, B or preactivated.
        widths: the channels of the three stages.
        norm: of the layers.
        interpolation: of the controls.
        gradient: stored, checkpointed, reversible or adjoint.
        classes: the number of logits.
        in_channels: the channels of an image.
    """
    n = units_per_stage(depth)
    mistakes = size_mistakes(widths, 3)
    if n < 2:
        mistakes.append(
            f"depth {depth}: the second and third stage need a step each; the smallest depth is 14"
        )
    if mistakes:
        raise InputError(*mistakes)
    field = {"name": "preactivation", "norm": norm}
    schemes = integrator if isinstance(integrator, list) else [integrator] * 3
    stages = [
        _stage(w, field, scheme, TimeGrid.uniform(count), interpolation=interpolation, gradient=gradient)
        for w, scheme, count in zip(widths, schemes, (n, n - 1, n - 1), strict=True)
    ]
    return DynamicNet(
        stages,
        stem=Stem(in_channels, norm=None, activation=None),
        connector=UnitConnector(shortcut),
        head=Head(norm="batch", activation="relu"),
        classes=classes,
    )


TRANSITIONS: Mapping[str, str] = {"continued": "moving", "restarted": "euler"}


def lm_resnet(
    depth: int,
    *,
    transition: str = "continued",
    shortcut: str = "preactivated",
    k: str = "step",
    widths: Sequence[int] = (16, 32, 64),
    norm: Any = "batch",
    interpolation: str = "linear",
    gradient: Any = "stored",
    classes: int = 10,
    in_channels: int = 3,
) -> DynamicNet:
    """LM-ResNet (Lu et al. 2018, arXiv:1710.10121): a pre-activation ResNet in learned two-step steps.

        y_{n+1} = (1 - k_n) y_n + k_n y_{n-1} + f_n(y_n),        f = K2 relu(N2 K1 relu(N1 y))

    The first step and the units of stride 2, y_1 = S y_0 + f(y_0), are Euler's. By default this is the
    network of the authors' code (2prime/LM-ResNet, commit ff49654), whose k is our 1 - k. (Its option
    `pretrain`, on by default, trains the network with Euler's steps alone, k = 0.)

    Args:
        depth: 6n + 2, at least 14.
        transition: the first step after a unit of stride 2; "continued": two-step, from y_{-1} = S y_0;
            "restarted": Euler's.
        shortcut: S; "preactivated" is K0 relu(N0 y) with K0 of size 1x1, "A" and "B" are He's.
        k: "step", one number for each step, or "channel", one for each step and channel.
        widths: the channels of the three stages.
        norm: of the layers.
        interpolation: of the controls.
        gradient: stored or checkpointed.
        classes: the number of logits.
        in_channels: the channels of an image.
    """
    _check_name("transition", transition, TRANSITIONS)
    after = LearnedTwoStep(TRANSITIONS[transition], k)
    return preactivation_net(
        depth, integrator=[LearnedTwoStep(k=k), after, after], shortcut=shortcut, widths=widths, norm=norm,
        interpolation=interpolation, gradient=gradient, classes=classes, in_channels=in_channels,
    )  # fmt: skip


REVNETS: Mapping[int, tuple[int, tuple[int, int, int]]] = {38: (3, (32, 64, 112)), 110: (9, (32, 64, 128))}


def revnet(
    depth: int,
    *,
    widths: Sequence[int] | None = None,
    gradient: Any = "reversible",
    classes: int = 10,
    in_channels: int = 3,
) -> DynamicNet:
    """RevNet-38 and RevNet-110 (Gomez et al. 2017, arXiv:1707.04585): coupled pre-activation layers.

    The first unit of stage 1 has no first norm (the stem has just applied one); the first units of stages 2
    and 3 are ordinary ones with a 1x1 shortcut and its norm; the head normalises before the average.

    Args:
        depth: 38 (3 units per stage, widths 32-64-112) or 110 (9 units, 32-64-128).
        widths: the channels of the three stages, even numbers (default: those of the depth).
        gradient: stored, checkpointed or reversible.
        classes: the number of logits.
        in_channels: the channels of an image.
    """
    if depth not in REVNETS:
        raise InputError(f"no RevNet of depth {depth}: choose {' or '.join(map(str, REVNETS))}")
    units, usual = REVNETS[depth]
    widths = usual if widths is None else widths
    mistakes = size_mistakes(widths, 3)
    if mistakes:
        raise InputError(*mistakes)
    plain = {"name": "preactivation", "norm": "batch"}

    def stage(width: int, steps: int, field: Any) -> Stage:
        return _stage(width, field, "coupling", TimeGrid.uniform(steps), gradient=gradient)

    stages = [stage(widths[0], 1, {**plain, "first_norm": False})]
    stages += [stage(w, units - 1, plain) for w in widths]
    return DynamicNet(
        stages,
        stem=Stem(in_channels),
        connector=[Identity(), UnitConnector("B"), UnitConnector("B")],
        head=Head(norm="batch", activation="relu"),
        classes=classes,
    )


IMEX_LAYERS: Mapping[str, Mapping[str, Any]] = {
    "preactivation": {"name": "preactivation"},
    "symmetric": {"name": "hamiltonian", "bias": False},
}


@models.register("imex_net", summary="Haber et al. 2019: semi-implicit", shape=CIFAR)
def imex_net(
    *,
    widths: Sequence[int] = (32, 64, 112),
    steps: int = 3,
    h: float = 1.0,
    norm: Any = "batch",
    layer: str = "preactivation",
    zero_mean: bool = False,
    normed: bool = False,
    gradient: Any = "stored",
    classes: int = 10,
    in_channels: int = 3,
) -> DynamicNet:
    """A semi-implicit network (Haber et al. 2019, arXiv:1903.02639): one step couples all pixels.

    The steps of the authors' code are those of `layer="symmetric", zero_mean=True, normed=True`.

    Args:
        widths: the width of each block.
        steps: of each block.
        h: the step size.
        norm: of the layers.
        layer: preactivation, or symmetric for f = K^T s(N(K y)).
        zero_mean: take each kernel of B minus its mean.
        normed: normalise before each solve, by N of the symmetric layer.
        gradient: stored or checkpointed.
        classes: the number of logits.
        in_channels: the channels of an image.
    """
    _check_widths(widths)
    if layer not in tuple(IMEX_LAYERS):
        names = tuple(IMEX_LAYERS)
        raise InputError(f"unknown layer '{layer}'{nearest(str(layer), names)} ({', '.join(names)})")
    field = {**IMEX_LAYERS[layer], "norm": norm}
    scheme = {"name": "imex", "zero_mean": zero_mean, "normed": normed}
    states = _equal_steps(steps, h)
    return DynamicNet(
        [_stage(w, field, scheme, states, gradient=gradient) for w in widths],
        stem=Stem(in_channels),
        connector=Connector(),
        head=Head(norm="batch", activation="relu"),
        classes=classes,
    )


@models.register(
    "pde_resnet",
    summary="liuyao12: linear twisted groups, two Euler steps with equal weights",
    shape=CIFAR,
)
def pde_resnet(
    *,
    widths: Sequence[int] = (32, 64, 128, 128),
    blocks: Sequence[int] = (3, 4, 6, 3),
    groups: int = 4,
    steps: int = 2,
    tie: str | None = "saddle",
    where: Sequence[int] = (1, 2, 3),
    degree: int = 1,
    coordinates: str = "published",
    border: int = 1,
    norm: Any = "batch",
    gradient: Any = "stored",
    classes: int = 10,
    in_channels: int = 3,
) -> DynamicNet:
    """A network of PDE blocks (liuyao12, ResNets with a twist; pytorch-cifar at commit aa33035).

        y <- y + T_j(y) / steps, `steps` times;        y <- relu(N_j y)

    Each block solves the linear equation y' = T_j(y) over one unit of time by Euler's method, with one
    twisted convolution in groups, a system of few equations. The first block of a stage, but for the first
    stage, begins with y <- N K y, K of size 1x1 and stride 2.

    Args:
        widths: the width of each stage.
        blocks: the number of blocks in each stage.
        groups: of the 3x3 convolutions; must divide the widths.
        steps: of each block.
        tie: of the twist: saddle, conformal, free, odd or mixed; none for plain convolutions.
        where: the stages that are twisted, counted from 1.
        degree: of the twist.
        coordinates: of the twist: published, centred or per-axis.
        border: pixels of zeros around the image before the 1x1 convolutions.
        norm: N.
        gradient: stored, checkpointed or adjoint.
        classes: the number of logits.
        in_channels: the channels of an image.
    """
    _check_widths(widths)
    mistakes = size_mistakes(blocks, len(widths), "blocks", steps=steps)
    mistakes += [
        f"where {number!r}: a stage from 1 to {len(widths)} is needed"
        for number in where
        if number not in range(1, len(widths) + 1)
    ]
    if mistakes:
        raise InputError(*mistakes)
    twist = None if tie in (None, "none") else Twist(tie, degree, coordinates)
    stages: list[Stage] = []
    connectors: list[Transition] = []
    for number, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
        field = Single(groups=groups, twist=twist if number in where else None)
        unit, start = TimeGrid.uniform(steps, 1.0), TimeGrid((0.0,))
        one_block = Stage(width, field, Euler(), unit, start, gradient=gradient)
        stages += [one_block] * count
        connectors += [ActivationConnector(norm)] * (count - 1)
        connectors.append(ActivationConnector(norm, stride=2, border=border))
    return DynamicNet(
        stages,
        stem=Stem(in_channels, norm=norm),
        connector=connectors[:-1],
        head=Head(norm=norm, activation="relu"),
        classes=classes,
    )


@models.register("neural_ode", summary="Chen et al. 2018: an adaptive solver", shape=CIFAR)
def neural_ode(
    *,
    widths: Sequence[int] = (32, 64, 64),
    rtol: float = 1e-2,
    atol: float = 1e-2,
    method: str = "dopri5",
    end: float = 1.0,
    norm: Any = "group",
    gradient: Any = "adjoint",
    classes: int = 10,
    in_channels: int = 3,
) -> DynamicNet:
    """A neural ODE (Chen et al. 2018, arXiv:1806.07366): residual steps down to 1/4, then an adaptive solver.

    Args:
        widths: of the two residual (Euler) steps, at full and half resolution, and of the ODE, at 1/4.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: a method of torchdiffeq: dopri5, ...
        end: the final time.
        norm: of the layers, without running statistics, which an adaptive solver cannot use.
        gradient: adjoint, or stored (discretise then optimise).
        classes: the number of logits.
        in_channels: the channels of an image.
    """
    mistakes = size_mistakes(widths, 3)
    if mistakes:
        raise InputError(*mistakes)
    field = {"name": "preactivation", "norm": norm}
    solver = {"name": "adaptive", "method": method, "rtol": rtol, "atol": atol}
    return DynamicNet(
        [
            *(_stage(width, field, "euler", TimeGrid.uniform(1)) for width in widths[:2]),
            _stage(widths[2], field, solver, TimeGrid((0.0, end)), interpolation="shared", gradient=gradient),
        ],
        stem=Stem(in_channels, norm=norm),
        connector=Connector(norm=norm, pool="stride", kernel=3),
        head=Head(norm=norm, activation="relu"),
        classes=classes,
    )
