"""Dynamic blocks: a network part of fixed width as a differential equation, discretised.

    y' = f(theta(t), y),  y(t_0) given  ->  y(t_n)

A block is a field f, an integrator, a grid of states, controls theta(t) on a grid of their own, and a
gradient method. It owns the parameters at the control nodes (`controls`), the learned numbers of the scheme
(`scheme`) and the running statistics of each evaluation (`statistics`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from resode import cost, memory
from resode.controls import Controls, Theta, check_interpolation, default_controls
from resode.errors import InputError
from resode.fields import Field, Hamiltonian, fields
from resode.gradients import Adjoint, Flow, Gradient, Reversible, Stored, drift, gradients
from resode.gradients.reversible import present_autocast
from resode.grids import TimeGrid
from resode.integrators import (
    Adaptive,
    FixedStep,
    Integrator,
    StormerVerlet,
    SymplecticEuler,
    integrators,
)
from resode.integrators.base import Evaluation, carries
from resode.statistics import Statistics, running_statistics


@dataclass(frozen=True)
class Stage:
    """What a block integrates, and how: a value, from objects or from plain data.

    Args:
        width: the channels of the state.
        field: a `Field`, its name, or `{"name": ..., option: ...}`.
        integrator: an `Integrator`, its name, or a mapping.
        states: the state nodes: a `TimeGrid`, a list of nodes, a number of unit steps, or a mapping.
        controls: the control nodes; left out, the state nodes that some evaluation touches.
        interpolation: of the controls: linear, constant or shared.
        gradient: stored, checkpointed, reversible or adjoint.
        keep_unused: accept control nodes that no evaluation touches; their gradient is zero.

    Raises:
        InputError: unknown names, grids that do not increase, and what does not fit together.
    """

    width: int
    field: Field
    integrator: Integrator
    states: TimeGrid
    controls: TimeGrid | None = None
    interpolation: str = "linear"
    gradient: Gradient = Stored()  # noqa: RUF009
    keep_unused: bool = False

    def __post_init__(self) -> None:
        mistakes: list[str] = []
        if not isinstance(self.width, int) or isinstance(self.width, bool) or self.width < 1:
            mistakes.append(f"a stage of width {self.width!r}: a positive integer is needed")
        if not isinstance(self.keep_unused, bool):
            mistakes.append(f"keep_unused {self.keep_unused!r}: true or false is needed")
        made: dict[str, Callable[[Any], Any]] = {
            "field": lambda value: _instance(fields.of(value), Field, "field"),
            "integrator": lambda value: _instance(integrators.of(value), Integrator, "integrator"),
            "states": TimeGrid.of,
            "controls": lambda value: None if value is None else TimeGrid.of(value),
            "interpolation": check_interpolation,
            "gradient": lambda value: _instance(gradients.of(value), Gradient, "gradient"),
        }
        for name, make in made.items():
            try:
                object.__setattr__(self, name, make(getattr(self, name)))
            except InputError as error:
                mistakes += error.messages
        if mistakes:
            raise InputError(*mistakes)
        self._check_together()

    def _check_together(self) -> None:
        integrator, parts = self.integrator, len(self.integrator.parts)
        if self.width % parts:
            raise InputError(
                f"{integrator.name} splits the state in {parts}: the width {self.width} has to be a multiple "
                f"of {parts}"
            )
        integrator.check(self.states)
        self.gradient.check(integrator, self.states)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The evaluations of a forward pass; none are known of an adaptive solver."""
        return self.integrator.evaluations(self.states) if isinstance(self.integrator, FixedStep) else ()

    @property
    def control_grid(self) -> TimeGrid:
        """The control nodes."""
        if self.controls is not None:
            return self.controls
        known = self.evaluations or tuple(Evaluation(t) for t in self.states.nodes)
        return default_controls(self.states, known, self.interpolation)

    def to_data(self) -> dict[str, Any]:
        """Plain data from which the same value is made."""
        data: dict[str, Any] = {
            "width": self.width,
            "field": fields.describe(self.field),
            "integrator": integrators.describe(self.integrator),
            "states": self.states.to_data(),
        }
        if self.controls is not None:
            data["controls"] = self.controls.to_data()
        if self.interpolation != "linear":
            data["interpolation"] = self.interpolation
        if self.gradient != Stored():
            data["gradient"] = gradients.describe(self.gradient)
        if self.keep_unused:
            data["keep_unused"] = True
        return data


def _instance(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        hint = "; write its name with brackets" if isinstance(value, type) else ""
        raise InputError(
            f"the {what} of a stage is a name, a mapping with a name, or an object of a class of "
            f"{kind.__name__}, not {value!r}{hint}"
        )
    return value


class DynamicBlock(nn.Module):
    """y(t_0) -> y(t_n), shapes (N, width, H, W).

    Args:
        stage: what is integrated, and how.

    Raises:
        InputError: a control node that nothing evaluates, a field that does not fit the width, ...
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        parts = stage.integrator.parts
        width = stage.width // len(parts)
        self.controls = Controls(
            lambda: stage.field.build(width), parts, stage.control_grid, stage.interpolation
        )
        self.evaluations = stage.evaluations
        self.unused = self._unused()
        self._refuse_randomness()
        self.scheme = nn.ParameterDict(self._coefficients())
        self.statistics = nn.ModuleList(self._own_statistics())
        self.function_evaluations = 0  # of adaptive solvers: counted as they happen
        backward = self._backward_evaluations()
        self._times = tuple(dict.fromkeys(self.evaluations + backward))
        self._theta_of = tuple(self._times.index(e) for e in self.evaluations + backward)
        self._weights = tuple(self.controls.weights(time) for time, _ in self._times)

    # ------------------------------------------------------------ construction

    def _unused(self) -> tuple[int, ...]:
        if not isinstance(self.stage.integrator, FixedStep):
            self._refuse_nodes_out_of_reach()
            return ()
        unused = self.controls.unused(self.evaluations)
        if unused and not self.stage.keep_unused:
            nodes = ", ".join(f"{self.controls.grid.nodes[j]:g}" for j in unused)
            needed = default_controls(self.stage.states, self.evaluations, self.stage.interpolation)
            raise InputError(
                f"no evaluation of {self.stage.integrator.name} on states {self.stage.states} touches the "
                f"control nodes {nodes} of {self.controls.grid}: leave them out, or leave controls out "
                f"({needed})"
            )
        if unused and isinstance(self.stage.gradient, Adjoint):
            raise InputError("keep_unused: the adjoint equation touches other nodes; take gradient stored")
        return unused

    def _refuse_nodes_out_of_reach(self) -> None:
        """An adaptive solver may evaluate anywhere from the first state node to the last, and only there."""
        states, nodes = self.stage.states, self.controls.grid.nodes
        inner = [t for t in nodes if states.start < t < states.end]
        reached = {max((t for t in nodes if t <= states.start), default=nodes[0]), *inner}
        after = [t for t in nodes if t >= states.end]
        if after and (after[0] == states.end or self.stage.interpolation == "linear"):
            reached.add(after[0])
        if beyond := [t for t in nodes if t not in reached]:
            raise InputError(
                f"{self.stage.integrator.name} on states {states} never touches the control nodes "
                f"{', '.join(f'{t:g}' for t in beyond)} of {self.controls.grid}: leave them out"
            )

    def _refuse_randomness(self) -> None:
        """The adjoint equation evaluates the field at other times, for which nothing was drawn."""
        random = any(isinstance(module, _DropoutNd) for module in self.controls.modules())
        if random and isinstance(self.stage.gradient, Adjoint):
            raise InputError(
                "gradient adjoint evaluates the field at other times, where dropout drops others: leave "
                "dropout out, or take gradient stored, checkpointed or reversible"
            )

    def _coefficients(self) -> dict[str, nn.Parameter]:
        integrator = self.stage.integrator
        if not isinstance(integrator, FixedStep):
            return {}
        found = integrator.coefficients(self.stage.states, self.stage.width)
        return {name: nn.Parameter(value) for name, value in found.items()}

    def _own_statistics(self) -> Iterator[Statistics]:
        """One set for each evaluation; the nodes keep theirs as scratch, outside the state_dict."""
        example = {part: running_statistics(self.controls.node(0, part)) for part in self.controls.parts}
        if not any(example.values()):
            return
        if not self.evaluations or isinstance(self.stage.gradient, Adjoint):
            method = "gradient adjoint" if self.evaluations else self.stage.integrator.name
            raise InputError(
                f"{method} evaluates {self.stage.field.name} at times of its own, for which there are no "
                "running statistics; take norm group, tv or none"
            )
        for node in self.controls:
            for path in running_statistics(node):
                parent, _, name = path.rpartition(".")
                module = node.get_submodule(parent)
                module.register_buffer(name, module.get_buffer(name), persistent=False)
                if name == "num_batches_tracked":
                    module.register_load_state_dict_pre_hook(_without_scratch_counter)
        for evaluation in self.evaluations:
            yield Statistics(example[evaluation.part])

    def _backward_evaluations(self) -> tuple[Evaluation, ...]:
        integrator = self.stage.integrator
        if not isinstance(integrator, FixedStep):
            return ()
        return self.stage.gradient.evaluations(integrator, self.stage.states)

    # ------------------------------------------------------------ integration

    def forward(self, y: Tensor) -> Tensor:
        if isinstance(self.stage.integrator, Adaptive):
            return self._solved(y)[-1]
        return self.stage.gradient.integrate(self._flow(), y)

    def set_gradient(self, gradient: Any) -> None:
        """Take another gradient method, as an object, a name or a mapping; parameters stay as they are.

        Raises:
            InputError: what the scheme cannot run, or (to and from adjoint) needs another block.
        """
        stage = replace(self.stage, gradient=gradient)
        if isinstance(stage.gradient, Adjoint) != isinstance(self.stage.gradient, Adjoint):
            raise InputError("gradient adjoint evaluates at other times: make a block with it")
        self.stage = stage

    def check(self, dtype: torch.dtype) -> None:
        """Refuse (`InputError`) what cannot be trained in this dtype: a reversal that drowns in rounding."""
        if isinstance(self.stage.gradient, Reversible):
            self.stage.gradient.check_rounding(self.stage.integrator, self.stage.states, dtype)

    def drift(self, y: Tensor) -> Tensor | None:
        """How far the recovered states of a reversible gradient are from those of a forward pass from y.

        The largest relative error, a number on the device of y; None for other gradients. Running statistics
        are not touched.
        """
        method = self.stage.gradient
        return drift(method, self._flow(), y) if isinstance(method, Reversible) else None

    def trajectory(self, y: Tensor) -> tuple[tuple[float, ...], list[Tensor]]:
        """The state nodes and the states there, the first being y.

        In training mode a normalisation takes these states into its running statistics, as `forward` does.
        """
        integrator, states = self.stage.integrator, self.stage.states
        if isinstance(integrator, Adaptive):
            return states.nodes, list(self._solved(y))
        assert isinstance(integrator, FixedStep)
        flow = self._flow()
        every = carries(integrator, states, flow.rhs(), y, flow.numbers)
        return states.nodes, [integrator.state(carry) for carry in every]

    def _flow(self) -> Flow:
        """The equation with the parameters as they are; equal times share one theta."""
        parts = (part for _, part in self._times)
        thetas = [self.controls.combined(*each) for each in zip(self._weights, parts, strict=True)]
        for part in self.controls.parts if self.unused else ():
            last = max(i for i in self._theta_of[: len(self.evaluations)] if self._times[i].part == part)
            untouched = self.controls.untouched(self.evaluations, part)
            thetas[last] = self.controls.with_zero(thetas[last], untouched, part)
        integrator = self.stage.integrator
        assert isinstance(integrator, FixedStep)
        return Flow(
            integrator,
            self.stage.states,
            self._field,
            tuple(thetas[i] for i in self._theta_of),
            dict(self.scheme.items()),
            lambda: tuple(module.training for module in self.controls.modules()),
            self,
        )

    def _field(self, number: int, theta: Theta, y: Tensor, record: bool) -> Tensor:
        """The right-hand side at evaluation `number`."""
        i = self._theta_of[number]
        node = self.controls.node(self._weights[i][0][0], self._times[i].part)
        own = self.statistics[number] if self.statistics else None
        statistics = own.tensors(copies=not record) if isinstance(own, Statistics) else {}
        value: Tensor = functional_call(node, {**theta, **statistics}, (y,))
        return value

    def _solved(self, y: Tensor) -> Tensor:
        """The states (n + 1, N, C, H, W) by an adaptive solver.

        Of tensors without numbers, on which costs are counted, no step can be chosen: there one evaluation
        stands for all.
        """
        integrator = self.stage.integrator
        assert isinstance(integrator, Adaptive)
        autocast = present_autocast(y)

        def f(time: float, state: Tensor) -> Tensor:
            self.function_evaluations += 1
            node = self.controls.node(self.controls.weights(time)[0][0])
            with autocast():  # backwards too
                value: Tensor = functional_call(node, self.controls.at(time), (state,))
            return value

        if y.is_meta or isinstance(y, FakeTensor):
            return torch.stack((y, y + f(self.stage.states.start, y)))
        adjoint = isinstance(self.stage.gradient, Adjoint)
        parameters = tuple(p for p in self.controls.parameters() if p.requires_grad) if adjoint else None
        return integrator.integrate(f, y, self.stage.states, adjoint_parameters=parameters)

    # ------------------------------------------------------------ what it says of itself

    def stability(self, height: int, width: int) -> str | None:
        """A warning where a step is beyond the linear stability bound of the scheme; None elsewhere.

        Known only where the field bounds the spectrum of its Jacobian: `spectrum(height, width)` of a node
        gives (r, w), by which all eigenvalues are some d (-r + i v) with 0 <= d <= 1 and |v| <= w. Of a
        Hamiltonian pair with Jacobians of norms r1 and r2 they are i v with |v| <= sqrt(r1 r2).
        """
        integrator, longest = self.stage.integrator, max(self.stage.states.intervals)
        spectra = [self._spectrum(j, height, width) for j in range(len(self.controls))]
        known = [spectrum for spectrum in spectra if spectrum is not None]
        if not isinstance(integrator, FixedStep) or not integrator.states_growth or not known:
            return None
        limit = min(stable_step(integrator, *spectrum) for spectrum in known)
        if longest <= limit:
            return None
        radius = max(math.hypot(*spectrum) for spectrum in known)
        where = f"a spectral radius of at most {radius:.3g}, the step {longest:.3g}"
        if limit == 0:
            real = any(r > 0 for r, _ in known)
            mend = "euler, heun, ssprk3 or rk4" if real else "rk4, ssprk3 or a gamma above 0"
            return f"{integrator.name} is unstable for this field at every step ({where}): take {mend}"
        factor = math.ceil(longest / limit)
        bound = f"h^2 = {limit**2:.3g}" if integrator.second_order else f"h = {limit:.3g}"
        mend = f"divide its steps by {factor} (TimeGrid.refine({factor})), or scale the kernels down"
        return f"{integrator.name} is linearly stable up to {bound} ({where}): {mend}"

    def _spectrum(self, j: int, height: int, width: int) -> tuple[float, float] | None:
        """The spectrum of the field at node j, as far as it is known."""
        known = [_spectrum_of(self.controls.node(j, part), height, width) for part in self.controls.parts]
        if len(known) == 1:
            return None if isinstance(self.stage.field, Hamiltonian) else known[0]
        if not isinstance(self.stage.integrator, SymplecticEuler | StormerVerlet):
            return None
        radii = [spectrum[0] for spectrum in known if spectrum is not None and spectrum[1] == 0]
        return (0.0, math.sqrt(math.prod(radii))) if len(radii) == len(known) else None

    def warnings(self, height: int, width: int) -> list[str]:
        """What a user should know before training on states of this size."""
        lines = [self.stability(height, width), self.stage.field.remark()]
        if isinstance(self.stage.field, Hamiltonian) and len(self.stage.integrator.parts) == 1:
            lines.append(
                f"the Hamiltonian field is half of a pair; alone, by {self.stage.integrator.name}, "
                "y' = +K^T s(K y) grows: take symplectic_euler, or the parabolic field"
            )
        return [line for line in lines if line is not None]

    def explain(self, height: int, width: int, batch: int = 1) -> list[tuple[str, str]]:
        """Label and text of each thing that is to be known of the block.

        Args:
            height: of the state.
            width: of the state.
            batch: the batch size that the memory of a training step is for.
        """
        stage, integrator = self.stage, self.stage.integrator
        order = "" if integrator.order is None else f", order {integrator.order}"
        shape = (stage.width, height, width)
        controls = f"{self.controls.grid} ({self.controls.interpolation})"
        if self.unused:
            nodes = ", ".join(f"{self.controls.grid.nodes[j]:g}" for j in self.unused)
            controls += f"; unused, with zero gradient: {nodes}"
        adaptive = not self.evaluations
        calls = "as many as the tolerances need" if adaptive else f"{len(self.evaluations)}"
        per = ", each evaluation" if adaptive else ""
        work, kept = cost.multiply_adds(self, shape), memory.profile(self, shape, batch).peak()
        rows = [
            ("field", f"{stage.field.name}: f = {stage.field.equation}"),
            ("scheme", f"{integrator.name}{order}: {integrator.equation}"),
            ("states", f"{stage.states}, each {stage.width}x{height}x{width}"),
            ("controls", controls),
            ("evaluations", calls),
            ("parameters", f"{cost.parameters(self):,}"),
            ("multiply-adds", f"{work / 1e6:,.1f} M an image{per}"),
            (
                "memory",
                f"{kept / 1e6:,.2f} MB of activations at batch {batch}, gradient {stage.gradient.name}",
            ),
        ]
        return rows + [("warning", line) for line in self.warnings(height, width)]

    def extra_repr(self) -> str:
        s = self.stage
        return (
            f"{s.width}, {s.field.name}, {s.integrator.name}, states={s.states}, gradient={s.gradient.name}"
        )


def _without_scratch_counter(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """BatchNorm adds the counter that files without version numbers lack, but a node's is no part of them."""
    state.pop(f"{prefix}num_batches_tracked", None)


def dynamic_blocks(module: nn.Module) -> tuple[DynamicBlock, ...]:
    """All dynamic blocks of a network."""
    return tuple(part for part in module.modules() if isinstance(part, DynamicBlock))


def stable_step(integrator: FixedStep, decay: float, rotation: float = 0.0) -> float:
    """The largest step h at which `integrator` is linearly stable.

    Of y' = lambda y (or y'' = lambda y) for all lambda = d (-decay + i v), 0 <= d <= 1, |v| <= rotation.
    """
    rays = [complex(-decay, rotation * x / 4) for x in range(5)]

    def stable(h: float) -> bool:
        z = h**2 if integrator.second_order else h
        return all(integrator.growth(z * ray * d / 16) <= 1 + 1e-9 for ray in rays for d in range(1, 17))

    scale = max(map(abs, rays))
    if scale == 0:
        return math.inf
    low, high = 0.0, 1.0 / scale
    if not stable(high / 1024):
        return 0.0
    while stable(high) and high < 1e6 / scale:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low


def _spectrum_of(node: nn.Module, height: int, width: int) -> tuple[float, float] | None:
    known: Callable[[int, int], tuple[float, float] | None] | None = getattr(node, "spectrum", None)
    return known(height, width) if known is not None else None
