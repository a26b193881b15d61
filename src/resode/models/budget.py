"""Memory budgets: gradient methods for a network, so that a training step stays within a number of bytes.

In order of the time that they take: everything stored; as few segments as can be done again once; reversible
where the scheme allows it; segments in segments, of which some are done again twice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from resode import memory
from resode.blocks import DynamicBlock
from resode.errors import InputError
from resode.gradients import Adjoint, Checkpointed, Gradient, Reversible, Stored, schedules
from resode.gradients.schedules import Item
from resode.integrators import FixedStep
from resode.memory import Profile, Section, Shape, StepBytes
from resode.models.residual import ResidualNetwork

Differentiated = ResidualNetwork | DynamicBlock


def differentiated(module: nn.Module) -> tuple[Differentiated, ...]:
    """The parts of a network that have a gradient method, in order; an adaptive solver is none."""
    return tuple(
        part
        for part in module.modules()
        if isinstance(part, ResidualNetwork)
        or (isinstance(part, DynamicBlock) and isinstance(part.stage.integrator, FixedStep))
    )


def method_of(part: Differentiated) -> Gradient:
    """The gradient method of a part."""
    return part.gradient if isinstance(part, ResidualNetwork) else part.stage.gradient


def set_gradients(module: nn.Module, methods: Sequence[object]) -> None:
    """Give every part of a network that has a gradient method another one (objects, names or mappings).

    Raises:
        InputError: another number of parts, or what a part cannot run.
    """
    parts = differentiated(module)
    if len(parts) != len(methods):
        raise InputError(
            f"gradients: {len(methods)} methods for a network of {len(parts)} parts (blocks, or one ResNet): "
            "leave gradients out, or give one a part"
        )
    for part, method in zip(parts, methods, strict=True):
        part.set_gradient(method)


@dataclass(frozen=True)
class Choice:
    """Gradient methods of all parts, and what they cost.

    Args:
        name: of the method.
        methods: one a part, in order.
        activation_bytes: the peak of activations in a training step.
        again: evaluations of steps beyond those of one forward pass, in such passes.
    """

    name: str
    methods: tuple[Gradient, ...]
    activation_bytes: int
    again: float


class Budget:
    """The choices that there are for one network, image and batch size.

    Args:
        module: any network; its numbers are not touched, and its methods are as before in the end.
        shape: (C, H, W) of one image.
        batch: the batch size.
        dtype: bfloat16 or float16 for a forward pass under autocast; left out, the module's own.
    """

    def __init__(self, module: nn.Module, shape: Shape, batch: int, dtype: torch.dtype | None = None) -> None:
        self.module, self.parts, self.step = module, differentiated(module), (shape, batch, dtype)
        self.own = tuple(map(method_of, self.parts))

        def profiled(methods: Sequence[Gradient]) -> Profile:
            set_gradients(module, methods)
            try:
                return memory.profile(module, shape, batch, dtype)
            finally:
                set_gradients(module, self.own)

        free = [method if isinstance(method, Adjoint) else Stored() for method in self.own]
        self.stored = profiled(free)
        owners = [id(getattr(part.chain, "owner", None)) for part in self.stored.chains]
        if owners != list(map(id, self.parts)):  # a block that is used twice, or out of order: left as it is
            self.stored, self.reversible = profiled(self.own), None
            self.parts = ()
            return
        undone = [self._undone(part, method) for part, method in zip(self.parts, free, strict=True)]
        self.reversible = profiled(undone) if undone != free else None

    @staticmethod
    def _undone(part: Differentiated, method: Gradient) -> Gradient:
        """Reversible where the scheme is, in float32; as it was elsewhere."""
        if isinstance(part, ResidualNetwork) or isinstance(method, Adjoint):
            return method
        try:
            Reversible().check(part.stage.integrator, part.stage.states)
            Reversible().check_rounding(part.stage.integrator, part.stage.states, torch.float32)
        except InputError:
            return method
        return Reversible()

    def present(self) -> int:
        """The peak of activations with the methods that the network has."""
        return memory.profile(self.module, *self.step).peak()

    def fit(self, room: int, undo: bool = True) -> Choice | None:
        """The fastest choice whose activations take at most so many bytes.

        Args:
            room: the bytes.
            undo: whether reversible schemes may be undone.
        """
        for name, profile, levels in self._kinds(undo):
            items = list(_items(profile.sections))
            for bytes_ in (room, schedules.minimum_bytes(items, levels)):
                found = schedules.fit(items, bytes_, levels)
                choice = None if found is None else self._choice(name, profile, found)
                if choice is not None and choice.activation_bytes <= room:
                    return choice
        return None

    def smallest(self, undo: bool = True) -> list[Choice]:
        """The choice of the fewest bytes of each kind."""
        choices = []
        for name, profile, levels in self._kinds(undo):
            items = list(_items(profile.sections))
            found = schedules.fit(items, schedules.minimum_bytes(items, levels), levels)
            assert found is not None
            choices.append(self._choice(name, profile, found))
        return choices

    def _kinds(self, undo: bool) -> Iterator[tuple[str, Profile, int]]:
        """Name, profile and levels of what can be chosen, the fastest first."""
        reversible = self.reversible if undo else None
        yield ("stored" if self.parts or not self.own else "as it is"), self.stored, 0
        if self.parts:
            yield "checkpointed", self.stored, 1
        if reversible is not None:
            yield "reversible", reversible, 1
        if self.parts:
            yield "checkpointed, two levels", self.stored, 2
        if reversible is not None and any(isinstance(p.method, Stored) for p in reversible.chains):
            yield "reversible, two levels", reversible, 2

    def _choice(self, name: str, profile: Profile, found: Sequence[schedules.Schedule]) -> Choice:
        if not self.parts:
            return Choice(name, self.own, profile.peak(), 0.0)
        planned, again, steps = iter(found), 0, 0
        methods: list[Gradient] = []
        for part in profile.chains:
            steps += len(part.steps)
            if not isinstance(part.method, Stored):
                assert isinstance(part.method, Gradient)
                again += len(part.steps)
                methods.append(part.method)
                continue
            plan = next(planned)
            again += schedules.recomputed_steps(plan)
            methods.append(Checkpointed(plan=plan) if len(plan) > 1 else Stored())
        return Choice(name, tuple(methods), profile.peak(methods), again / max(steps, 1))


def _items(sections: Sequence[Section]) -> Iterator[Item]:
    """The steps that can be recomputed, and what cannot."""
    for number, section in enumerate(sections):
        if isinstance(section.method, Stored):
            yield from (Item(step, number) for step in section.steps)
        else:
            own = section.footprint()
            yield Item(StepBytes(0, own.kept, flowing=max(0, own.peak - own.kept)), None)
