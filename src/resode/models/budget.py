"""Memory budgets: gradient methods for a network that keep a training step within a number of bytes.

From the fastest to the smallest: everything stored; as few segments as possible recomputed once; reversible
where the scheme allows it; segments within segments, some of them recomputed twice.
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

ChainOwner = ResidualNetwork | DynamicBlock


def chain_owners(module: nn.Module) -> tuple[ChainOwner, ...]:
    """The modules of a network that have a gradient method for a chain of steps, in order.

    These are dynamic blocks with fixed steps, or a classical ResNet as a whole.
    """
    return tuple(
        child
        for child in module.modules()
        if isinstance(child, ResidualNetwork)
        or (isinstance(child, DynamicBlock) and isinstance(child.stage.integrator, FixedStep))
    )


def gradient_of(owner: ChainOwner) -> Gradient:
    """The gradient method of a block or a ResNet."""
    return owner.gradient if isinstance(owner, ResidualNetwork) else owner.stage.gradient


def set_gradients(module: nn.Module, methods: Sequence[object]) -> None:
    """Set the gradient methods of a network, one for each of `chain_owners` (objects, names or mappings).

    Raises:
        InputError: the wrong number of methods, or one that a block does not support.
    """
    owners = chain_owners(module)
    if len(owners) != len(methods):
        raise InputError(
            f"gradients: {len(methods)} methods given, the network takes {len(owners)} (one for each dynamic "
            "block, one for a ResNet): give as many, or omit gradients"
        )
    for owner, method in zip(owners, methods, strict=True):
        owner.set_gradient(method)


@dataclass(frozen=True)
class Choice:
    """Gradient methods for all chains of a network, and their cost.

    Args:
        name: kind of the choice, such as "checkpointed, two levels".
        methods: one for each of `chain_owners`.
        activation_bytes: peak of the activations in a training step.
        recomputed: steps that the backward pass recomputes, in forward passes.
    """

    name: str
    methods: tuple[Gradient, ...]
    activation_bytes: int
    recomputed: float


class Budget:
    """The choices of gradient methods for one network, image shape and batch size.

    Args:
        module: any network; its weights and gradient methods are unchanged.
        shape: (C, H, W) of one image.
        batch: the batch size.
        dtype: bfloat16 or float16 for a forward pass under autocast (default: the module's own).
    """

    def __init__(self, module: nn.Module, shape: Shape, batch: int, dtype: torch.dtype | None = None) -> None:
        self.module, self.owners, self.step = module, chain_owners(module), (shape, batch, dtype)
        self.own = tuple(map(gradient_of, self.owners))

        def profiled(methods: Sequence[Gradient]) -> Profile:
            set_gradients(module, methods)
            try:
                return memory.profile(module, shape, batch, dtype)
            finally:
                set_gradients(module, self.own)

        free = [method if isinstance(method, Adjoint) else Stored() for method in self.own]
        self.stored = profiled(free)
        owners = [id(getattr(section.chain, "owner", None)) for section in self.stored.chains]
        if owners != list(map(id, self.owners)):  # a block is used twice or out of order: keep its method
            self.stored, self.reversible = profiled(self.own), None
            self.owners = ()
            return
        inverted = [self._reversible(owner, method) for owner, method in zip(self.owners, free, strict=True)]
        self.reversible = profiled(inverted) if inverted != free else None

    @staticmethod
    def _reversible(owner: ChainOwner, method: Gradient) -> Gradient:
        """`Reversible` if the scheme can be inverted in float32, else the given method."""
        if isinstance(owner, ResidualNetwork) or isinstance(method, Adjoint):
            return method
        try:
            Reversible().check(owner.stage.integrator, owner.stage.states)
            Reversible().check_rounding(owner.stage.integrator, owner.stage.states, torch.float32)
        except InputError:
            return method
        return Reversible()

    def current_bytes(self) -> int:
        """The peak of the activations with the network's own gradient methods."""
        return memory.profile(self.module, *self.step).peak()

    def fastest(self, room: int, *, allow_reversible: bool = True) -> Choice | None:
        """The fastest choice whose activations take at most `room` bytes; None if there is none.

        Args:
            room: the bytes.
            allow_reversible: whether reversible gradients may be chosen.
        """
        for name, profile, levels in self._kinds(allow_reversible):
            items = list(_items(profile.sections))
            for bytes_ in (room, schedules.minimum_bytes(items, levels)):
                chosen = schedules.fit(items, bytes_, levels)
                choice = None if chosen is None else self._choice(name, profile, chosen)
                if choice is not None and choice.activation_bytes <= room:
                    return choice
        return None

    def smallest_by_kind(self, *, allow_reversible: bool = True) -> list[Choice]:
        """For each kind (stored, checkpointed, ...) the choice with the fewest bytes, fastest kind first."""
        choices = []
        for name, profile, levels in self._kinds(allow_reversible):
            items = list(_items(profile.sections))
            chosen = schedules.fit(items, schedules.minimum_bytes(items, levels), levels)
            assert chosen is not None
            choices.append(self._choice(name, profile, chosen))
        return choices

    def _kinds(self, allow_reversible: bool) -> Iterator[tuple[str, Profile, int]]:
        """Name, profile and levels of recomputation of each kind, the fastest first."""
        reversible = self.reversible if allow_reversible else None
        yield ("stored" if self.owners or not self.own else "as it is"), self.stored, 0
        if self.owners:
            yield "checkpointed", self.stored, 1
        if reversible is not None:
            yield "reversible", reversible, 1
        if self.owners:
            yield "checkpointed, two levels", self.stored, 2
        if reversible is not None and any(isinstance(p.method, Stored) for p in reversible.chains):
            yield "reversible, two levels", reversible, 2

    def _choice(self, name: str, profile: Profile, chosen: Sequence[schedules.Schedule]) -> Choice:
        if not self.owners:
            return Choice(name, self.own, profile.peak(), 0.0)
        planned, recomputed, steps = iter(chosen), 0, 0
        methods: list[Gradient] = []
        for chain in profile.chains:
            steps += len(chain.steps)
            if not isinstance(chain.method, Stored):
                assert isinstance(chain.method, Gradient)
                recomputed += len(chain.steps)
                methods.append(chain.method)
                continue
            plan = next(planned)
            recomputed += schedules.recomputed_steps(plan)
            methods.append(Checkpointed(plan=plan) if len(plan) > 1 else Stored())
        return Choice(name, tuple(methods), profile.peak(methods), recomputed / max(steps, 1))


def _items(sections: Sequence[Section]) -> Iterator[Item]:
    """The steps that can be recomputed, and the sections that cannot."""
    for number, section in enumerate(sections):
        if isinstance(section.method, Stored):
            yield from (Item(step, number) for step in section.steps)
        else:
            own = section.footprint()
            yield Item(StepBytes(0, own.kept, flowing=max(0, own.peak - own.kept)), None)
