"""Dynamic blocks: a section of a network of fixed width as a discretised differential equation.

    y' = f(theta(t), y),  y(t_0) given  ->  y(t_n)

A block is made from a `Stage`: a field f, an integrator, a grid of states, controls theta(t) on a grid of
their own, and a gradient method. It owns the parameters at the control nodes (`controls`), the learned
coefficients of the scheme (`scheme`) and the running statistics of each evaluation (`statistics`).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrizations import _SpectralNorm

from resode import cost, memory
from resode.controls import Controls, Theta, default_controls
from resode.errors import InputError
from resode.fields import Hamiltonian
from resode.fields.contract import check_nodes, check_shape, written_buffers
from resode.gradients import Adjoint, Flow, Reversible, Stored, drift
from resode.gradients.reversible import current_autocast
from resode.gradients.watch import Watch
from resode.integrators import Adaptive, FixedStep
from resode.integrators.base import NORM, Evaluation
from resode.registry import instance
from resode.stability import stability_warning
from resode.stages import Stage
from resode.statistics import Statistics, running_statistics


class DynamicBlock(nn.Module):
    """y(t_0) -> y(t_n) by the scheme of a stage, shapes (N, width, H, W).

    Args:
        stage: the field, the scheme, the grids and the gradient method.

    Raises:
        InputError: a control node that no evaluation touches, a field that does not fit the width, a field
            that the gradient method or the solver cannot evaluate.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        instance(stage, Stage, "stage", "a Stage")
        self.stage = stage
        parts = stage.integrator.parts
        width = stage.width // len(parts)
        self.controls = Controls(
            lambda: stage.field.build(width), parts, stage.control_grid, stage.interpolation
        )
        self._check_field(width)
        self.evaluations = stage.evaluations
        self.unused = self._unused()
        self._refuse_randomness()
        self.scheme = nn.ParameterDict(self._coefficients())
        self.statistics = nn.ModuleList(self._own_statistics())
        self.function_evaluations = 0  # of an adaptive solver, counted as they happen
        self._watch = Watch()
        integrator = stage.integrator
        self._offsets = integrator.offsets(stage.states) if isinstance(integrator, FixedStep) else ()
        # Evaluations at equal times share one theta.
        every = self.evaluations + self._backward_evaluations()
        self._times = tuple(dict.fromkeys(every))
        self._theta_of = tuple(self._times.index(e) for e in every)
        self._weights = tuple(self.controls.weights(time) for time, _ in self._times)
        self._padded = dict(self._paddings())
        self._direct = tuple(map(self._is_direct, self._theta_of))

    # ------------------------------------------------------------ construction

    def _check_field(self, width: int) -> None:
        """Refuse a field that changes the shape of the state, or writes buffers other than statistics."""
        name = self.stage.field.name
        for part in self.controls.parts:
            check_nodes(name, [self.controls.node(j, part) for j in range(len(self.controls))])
        node = self.controls.node(0, self.controls.parts[0])
        check_shape(name, node, width)
        normed = any(part == NORM for _, part in self.stage.evaluations)
        if normed and isinstance(getattr(node, "norm", None), nn.Identity | None):
            raise InputError(
                f"{self.stage.integrator.name}: normed applies the norm N of the field, but {name} has none, "
                "or several; take hamiltonian, parabolic or antisymmetric with a norm, or remove normed"
            )
        self._written = written_buffers(node, width)
        for path in self._written:
            if not isinstance(node.get_submodule(path.rpartition(".")[0]), _SpectralNorm):
                raise InputError(
                    f"field {name}: its forward writes the buffer {path}, which all evaluations would share; "
                    "only running statistics of torch's norms are kept for each: take nn.BatchNorm2d, or "
                    "compute it afresh"
                )
        self._refuse_recomputation(self.stage)

    def _refuse_recomputation(self, stage: Stage) -> None:
        """Refuse to evaluate a field again that has a spectral norm: each evaluation estimates it anew."""
        if self._written and not isinstance(stage.gradient, Stored):
            raise InputError(
                f"gradient {stage.gradient.name}: evaluates the field {stage.field.name} again, whose "
                f"spectral_norm then has another estimate ({self._written[0]}); take gradient stored"
            )

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
                f"control nodes {nodes} of {self.controls.grid}: remove them, or omit controls "
                f"(default: {needed})"
            )
        if unused and isinstance(self.stage.gradient, Adjoint):
            raise InputError("keep_unused: the adjoint equation touches other nodes; take gradient stored")
        return unused

    def _refuse_nodes_out_of_reach(self) -> None:
        """Refuse nodes beyond the state grid: an adaptive solver evaluates only within it."""
        states, nodes = self.stage.states, self.controls.grid.nodes
        inner = [t for t in nodes if states.start < t < states.end]
        reached = {max((t for t in nodes if t <= states.start), default=nodes[0]), *inner}
        after = [t for t in nodes if t >= states.end]
        if after and (after[0] == states.end or self.stage.interpolation != "constant"):
            reached.add(after[0])
        if beyond := [t for t in nodes if t not in reached]:
            raise InputError(
                f"{self.stage.integrator.name} on states {states} never touches the control nodes "
                f"{', '.join(f'{t:g}' for t in beyond)} of {self.controls.grid}: remove them"
            )

    def _refuse_randomness(self) -> None:
        """Refuse dropout with the adjoint equation, which evaluates the field at times of its own."""
        random = any(isinstance(module, _DropoutNd) for module in self.controls.modules())
        if random and isinstance(self.stage.gradient, Adjoint):
            raise InputError(
                "gradient adjoint evaluates the field at other times, where dropout drops other channels: "
                "remove dropout, or take gradient stored, checkpointed or reversible"
            )

    def _coefficients(self) -> dict[str, nn.Parameter]:
        integrator = self.stage.integrator
        if not isinstance(integrator, FixedStep):
            return {}
        found = integrator.coefficients(self.stage.states, self.stage.width)
        return {name: nn.Parameter(value) for name, value in found.items()}

    def _own_statistics(self) -> Iterator[Statistics]:
        """One set for each evaluation; those of the nodes become scratch buffers outside the state_dict."""
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
        of_norm = {name: t for name, t in example.get("f", {}).items() if name.startswith("norm.")}
        for evaluation in self.evaluations:
            yield Statistics(of_norm if evaluation.part == NORM else example[evaluation.part])

    def _backward_evaluations(self) -> tuple[Evaluation, ...]:
        integrator = self.stage.integrator
        if not isinstance(integrator, FixedStep):
            return ()
        return self.stage.gradient.backward_evaluations(integrator, self.stage.states)

    def _paddings(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The last theta of each part, and the untouched nodes that get a zero gradient through it."""
        for part in self.controls.parts if self.unused else ():
            if untouched := self.controls.untouched(self.evaluations, part):
                used = self._theta_of[: len(self.evaluations)]
                yield max(i for i in used if self._times[i].part == part), untouched

    def _is_direct(self, i: int) -> bool:
        """Whether theta number i is exactly a node's parameters, and the node's own buffers are used."""
        return len(self._weights[i]) == 1 and i not in self._padded and not self.statistics

    # ------------------------------------------------------------ integration

    def forward(self, y: Tensor, difference: Tensor | None = None) -> Tensor:
        """The last state, from the first one and, for a moving scheme, y_0 - y_{-1} (default: 0)."""
        if isinstance(self.stage.integrator, Adaptive):
            return self._solve_adaptively(y)[-1]
        return self.stage.gradient.integrate(self.flow(difference), y)

    def set_gradient(self, gradient: Any) -> None:
        """Take another gradient method, as an object, a name or a mapping; parameters are unchanged.

        Raises:
            InputError: a method that the scheme does not support, or a change to or from adjoint, which needs
                a new block.
        """
        stage = replace(self.stage, gradient=gradient)
        if isinstance(stage.gradient, Adjoint) != isinstance(self.stage.gradient, Adjoint):
            raise InputError("gradient adjoint evaluates at other times: make a block with it")
        self._refuse_recomputation(stage)
        self.stage = stage

    def check(self, dtype: torch.dtype) -> None:
        """Raise `InputError` if a reversible gradient would lose the states to rounding in this dtype."""
        if isinstance(self.stage.gradient, Reversible):
            self.stage.gradient.check_rounding(self.stage.integrator, self.stage.states, dtype)

    def drift(self, y: Tensor) -> Tensor | None:
        """The error of the states that a reversible gradient recovers, for a forward pass from y.

        The largest relative error as a scalar on the device of y; None for other gradients. Running
        statistics are not updated.
        """
        method = self.stage.gradient
        return drift(method, self.flow(), y) if isinstance(method, Reversible) else None

    def trajectory(
        self, y: Tensor, difference: Tensor | None = None
    ) -> tuple[tuple[float, ...], list[Tensor]]:
        """The state nodes and the states there, y first; arguments as for `forward`.

        In training mode normalisation layers update their running statistics, as in `forward`.
        """
        if isinstance(self.stage.integrator, Adaptive):
            return self.stage.states.nodes, list(self._solve_adaptively(y))
        flow = self.flow(difference)
        return self.stage.states.nodes, [flow.state(carry) for carry in flow.carries(y)]

    def flow(self, difference: Tensor | None = None) -> Flow:
        """The discretised equation with the parameters of now; of schemes with fixed steps."""
        thetas = [self.controls.combined(w, e.part) for w, e in zip(self._weights, self._times, strict=True)]
        for i, untouched in self._padded.items():
            thetas[i] = self.controls.with_zero(thetas[i], untouched, self._times[i].part)
        integrator = self.stage.integrator
        assert isinstance(integrator, FixedStep)
        return Flow(
            integrator,
            self.stage.states,
            self._field,
            tuple(thetas[i] for i in self._theta_of),
            self._direct,
            self._offsets,
            dict(self.scheme.items()),
            lambda: tuple(module.training for module in self.controls.modules()),
            self,
            difference,
            self._watch,
        )

    def _field(self, e: int, theta: Theta | None, y: Tensor, record: bool) -> Tensor:
        """The right-hand side at evaluation e, with the node's own parameters if theta is None."""
        i = self._theta_of[e]
        node = self.controls.node(self._weights[i][0][0], self._times[i].part)
        only_norm = self._times[i].part == NORM
        module = node.get_submodule("norm") if only_norm else node
        if theta is None:
            own_value: Tensor = module(y)
            return own_value
        own = self.statistics[e] if self.statistics else None
        statistics = own.tensors(copies=not record) if isinstance(own, Statistics) else {}
        tensors = {**theta, **statistics}
        if only_norm:
            tensors = {n.removeprefix("norm."): t for n, t in tensors.items() if n.startswith("norm.")}
        result: Tensor = functional_call(module, tensors, (y,))
        return result

    def _solve_adaptively(self, y: Tensor) -> Tensor:
        """The states (n + 1, N, C, H, W) by an adaptive solver.

        Fake tensors have no data to choose steps by: there one evaluation stands for all.
        """
        integrator = self.stage.integrator
        assert isinstance(integrator, Adaptive)
        autocast = current_autocast(y)

        def f(time: float, state: Tensor) -> Tensor:
            self.function_evaluations += 1
            node = self.controls.node(self.controls.weights(time)[0][0])
            with autocast():  # also in the backward pass
                value: Tensor = functional_call(node, self.controls.at(time), (state,))
            return value

        if y.is_meta or isinstance(y, FakeTensor):
            return torch.stack((y, y + f(self.stage.states.start, y)))
        adjoint = isinstance(self.stage.gradient, Adjoint)
        parameters = tuple(p for p in self.controls.parameters() if p.requires_grad) if adjoint else None
        return integrator.integrate(f, y, self.stage.states, adjoint_parameters=parameters)

    @property
    def field_evaluations(self) -> int:
        """Evaluations of the field in a forward pass by fixed steps; those of its norm alone do not count."""
        return sum(part != NORM for _, part in self.evaluations)

    # ------------------------------------------------------------ description

    def stability(self, height: int, width: int) -> str | None:
        """A warning if a step exceeds the linear stability bound of the scheme, else None."""
        return stability_warning(self.stage, self.controls, height, width)

    def warnings(self, height: int, width: int) -> list[str]:
        """What to know before training on states of this size."""
        lines = [self.stability(height, width), self.stage.field.remark()]
        normed = self.field_evaluations < len(self.evaluations)  # a norm bounds the state
        if isinstance(self.stage.field, Hamiltonian) and len(self.stage.integrator.parts) == 1 and not normed:
            lines.append(
                f"the Hamiltonian field is half of a pair; alone, by {self.stage.integrator.name}, "
                "y' = +K^T s(K y) grows: take symplectic_euler, or the parabolic field"
            )
        if never := self._never_trained():
            times = ", ".join(f"{self.controls.grid.nodes[j]:g}" for j in never)
            lines.append(
                f"theta at t = {times} is never trained: the backward steps of gradient adjoint by "
                f"{self.stage.integrator.name} do not evaluate f there; take heun or rk4, or gradient stored"
            )
        return [line for line in lines if line is not None]

    def _never_trained(self) -> list[int]:
        """The control nodes that the forward steps touch, but no backward step of an adjoint."""
        integrator, method = self.stage.integrator, self.stage.gradient
        if not isinstance(method, Adjoint) or not isinstance(integrator, FixedStep):
            return []
        backward = method.backward_evaluations(integrator, self.stage.states)
        return sorted(set(self.controls.unused(backward)) - set(self.controls.unused(self.evaluations)))

    def explain(self, height: int, width: int, batch: int = 1) -> list[tuple[str, str]]:
        """Describe the block in rows (label, text).

        Args:
            height: the height of the state.
            width: the width of the state.
            batch: the batch size for the memory of a training step.
        """
        stage = self.stage
        shape = (stage.width, height, width)
        per, counted = "", ""
        if isinstance(stage.integrator, Adaptive):
            per, counted = ", each evaluation", "; one evaluation counted"
        work, kept = cost.multiply_adds(self, shape), memory.profile(self, shape, batch).peak()
        rows = [
            *self.equation(height, width),
            ("parameters", f"{cost.parameters(self):,}"),
            ("multiply-adds", f"{work / 1e6:,.1f} M an image{per}"),
            (
                "memory",
                f"{kept / 1e6:,.2f} MB of activations at batch {batch}, gradient {stage.gradient.name}"
                f"{counted}",
            ),
        ]
        return rows + [("warning", line) for line in self.warnings(height, width)]

    def equation(self, height: int, width: int) -> list[tuple[str, str]]:
        """The equation, the scheme and the grids in rows (label, text), for states of this size."""
        stage, integrator = self.stage, self.stage.integrator
        order = "" if integrator.order is None else f", order {integrator.order}"
        controls = f"{self.controls.grid} ({self.controls.interpolation})"
        if self.unused:
            nodes = ", ".join(f"{self.controls.grid.nodes[j]:g}" for j in self.unused)
            controls += f"; unused, with zero gradient: {nodes}"
        calls = f"{self.field_evaluations}"
        if isinstance(integrator, Adaptive):
            calls = f"as many as {integrator.tolerances} need for the images"
        return [
            ("field", f"{stage.field.name}: f = {stage.field.equation}"),
            ("scheme", f"{integrator.name}{order}: {integrator.equation}"),
            ("states", f"{stage.states}, each {stage.width}x{height}x{width}"),
            ("controls", controls),
            ("evaluations", calls),
        ]

    def extra_repr(self) -> str:
        s = self.stage
        return (
            f"{s.width}, {s.field.name}, {s.integrator.name}, states={s.states}, gradient={s.gradient.name}"
        )


def _without_scratch_counter(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Drop the counter that BatchNorm adds for files without version numbers: a node has none."""
    state.pop(f"{prefix}num_batches_tracked", None)


def adaptive_solvers(module: nn.Module) -> str:
    """The adaptive solvers of a network, `Adaptive dopri5 (rtol 0.001, atol 0.0001)`; empty: it has none.

    What they take depends on the images: costs that are counted hold one evaluation of each such block.
    """
    found = (block.stage.integrator for block in dynamic_blocks(module))
    names = [f"{each.name} ({each.tolerances})" for each in found if isinstance(each, Adaptive)]
    return " and ".join(dict.fromkeys(names))


def dynamic_blocks(module: nn.Module) -> tuple[DynamicBlock, ...]:
    """All dynamic blocks of a network."""
    return tuple(child for child in module.modules() if isinstance(child, DynamicBlock))
