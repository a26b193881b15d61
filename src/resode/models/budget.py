"""Memory budgets: gradient methods for a network that keep a training step within a number of bytes.

`set_gradient` sets methods, `fit_memory` the fastest that fit. From the fastest to the smallest: everything
stored; as few segments as possible recomputed once; reversible where the scheme allows it; segments within
segments, some of them recomputed twice.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from resode import cost, memory
from resode.abstract import dtype_of
from resode.blocks import DynamicBlock
from resode.errors import InputError
from resode.gradients import Adjoint, Checkpointed, Gradient, Reversible, Stored, gradients, schedules
from resode.gradients.schedules import Item
from resode.integrators import FixedStep
from resode.memory import Profile, Section, Shape, StepBytes
from resode.models.repeated import RepeatedUnits, Trace, find_units, managed_units
from resode.models.residual import ResidualNetwork
from resode.quantities import size

ChainOwner = ResidualNetwork | DynamicBlock | RepeatedUnits


def chain_owners(module: nn.Module) -> tuple[ChainOwner, ...]:
    """The parts of a network that have a gradient method for a chain of steps, in order.

    These are dynamic blocks with fixed steps, a classical ResNet as a whole, or in any other network the
    residual blocks of each stage.
    """
    own = tuple(
        child
        for child in module.modules()
        if isinstance(child, ResidualNetwork)
        or (isinstance(child, DynamicBlock) and isinstance(child.stage.integrator, FixedStep))
    )
    return own or managed_units(module) or find_units(module)


def gradient_of(owner: ChainOwner) -> Gradient:
    """The gradient method of a block, a ResNet or a row of units."""
    return owner.stage.gradient if isinstance(owner, DynamicBlock) else owner.gradient


def steps_of(owner: ChainOwner) -> int:
    """The number of steps or units of a chain."""
    if isinstance(owner, DynamicBlock):
        return owner.stage.states.steps
    return len(owner.units() if isinstance(owner, ResidualNetwork) else owner.units)


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
    _set(owners, methods)


def _set(owners: Sequence[ChainOwner], methods: Sequence[object]) -> None:
    """Set the method of each owner; if one is refused, all have their earlier ones."""
    before = [gradient_of(owner) for owner in owners]
    try:
        for owner, method in zip(owners, methods, strict=True):
            owner.set_gradient(method)
    except InputError:
        for owner, method in zip(owners, before, strict=True):
            owner.set_gradient(method)
        raise


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
        owners: of the chains (default: `chain_owners`).

    `problems` says of the units of a network that resode does not know why they are no chains; such units
    are stored.
    """

    def __init__(
        self,
        module: nn.Module,
        shape: Shape,
        batch: int,
        dtype: torch.dtype | None = None,
        owners: Sequence[ChainOwner] | None = None,
    ) -> None:
        self.module, self.step = module, (shape, batch, dtype)
        self.all = chain_owners(module) if owners is None else tuple(owners)
        self.all_own = tuple(map(gradient_of, self.all))
        self.problems = self._problems()
        self.owners = tuple(owner for owner in self.all if owner not in self.problems)
        self.own = tuple(map(gradient_of, self.owners))
        free = [method if isinstance(method, Adjoint) else Stored() for method in self.own]
        self.stored = self._profile(free)
        found = [id(getattr(section.chain, "owner", None)) for section in self.stored.chains]
        if sorted(found) != sorted(
            map(id, self.owners)
        ):  # a block is used twice or not at all: keep its method
            self.stored, self.reversible = self._profile(self.own), None
            self.owners = ()
            return
        inverted = [self._reversible(owner, method) for owner, method in zip(self.owners, free, strict=True)]
        self.reversible = self._profile(inverted) if inverted != free else None

    def _problems(self) -> Mapping[ChainOwner, str]:
        units = [owner for owner in self.all if isinstance(owner, RepeatedUnits)]
        if not units:
            return {}
        trace = Trace()
        with trace.following(units), _observed(units):
            memory.profile(self.module, *self.step)
        return {owner: trace.problems[owner] for owner in units if owner in trace.problems}

    def _profile(self, methods: Sequence[Gradient]) -> Profile:
        """The profile with these methods of `owners`; afterwards all have their own ones."""
        stored = [Stored() if owner in self.problems else gradient_of(owner) for owner in self.all]
        try:
            _set(self.all, stored)
            _set(self.owners, methods)
            with _observed(owner for owner in self.owners if isinstance(owner, RepeatedUnits)):
                return memory.profile(self.module, *self.step)
        finally:
            _set(self.all, self.all_own)

    @staticmethod
    def _reversible(owner: ChainOwner, method: Gradient) -> Gradient:
        """`Reversible` if the scheme can be inverted in float32, else the given method."""
        if not isinstance(owner, DynamicBlock) or isinstance(method, Adjoint):
            return method
        try:
            Reversible().check(owner.stage.integrator, owner.stage.states)
            Reversible().check_rounding(owner.stage.integrator, owner.stage.states, torch.float32)
        except InputError:
            return method
        return Reversible()

    def current_bytes(self) -> int:
        """The peak of the activations with the network's own gradient methods."""
        return self._profile(self.own).peak() if self.owners else self.stored.peak()

    def within(self, budget: int, fixed: int, images: int = 0) -> Choice:
        """The fastest choice that keeps a training step within a number of bytes.

        Args:
            budget: the bytes of a step.
            fixed: those of parameters, gradients and optimizer.
            images: those of the batch, where it counts beside the activations.

        Raises:
            InputError: there is none; names the smallest budget that one meets.
        """
        chosen = self.fastest(budget - fixed - images)
        if chosen is not None:
            return chosen
        least = min(choice.activation_bytes for choice in self.smallest_by_kind())
        enough = fixed + images + least
        enough += (
            10**5 if enough < 10**8 else 10**6 if enough < 10**9 else 10**7
        )  # survives rounding in print
        not_recomputed = "".join(f"; not recomputed: {problem}" for problem in self.problems.values())
        of_images = f"images {size(images)}, " if images else ""
        if not self.all:
            not_recomputed = "; the network has no residual blocks to recompute"
        raise InputError(
            f"memory budget {size(budget)}: no gradient method meets it; parameters, gradients and optimizer "
            f"take {size(fixed)}, {of_images}activations at least {size(least)} at batch {self.step[1]}: "
            f"give {size(enough)}, or a smaller batch{not_recomputed}"
        )

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
            kept = zip(self.all, self.all_own, strict=True)
            methods_of_all = tuple(Stored() if owner in self.problems else own for owner, own in kept)
            return Choice(name, methods_of_all, profile.peak(), 0.0)
        planned, recomputed, steps = iter(chosen), 0, 0
        methods: dict[object, Gradient] = {}
        for chain in profile.chains:
            owner = getattr(chain.chain, "owner", None)
            steps += len(chain.steps)
            if not isinstance(chain.method, Stored):
                assert isinstance(chain.method, Gradient)
                recomputed += len(chain.steps)
                methods[owner] = chain.method
                continue
            plan = next(planned)
            recomputed += schedules.recomputed_steps(plan)
            methods[owner] = Checkpointed(plan=plan) if len(plan) > 1 else Stored()
        peak = profile.peak(list(methods.values()))
        of_all = tuple(methods.get(owner, Stored()) for owner in self.all)
        return Choice(name, of_all, peak, recomputed / max(steps, 1))


@contextlib.contextmanager
def _observed(units: Iterable[RepeatedUnits]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for each in units:
            stack.enter_context(each.observed())
        yield


def _items(sections: Sequence[Section]) -> Iterator[Item]:
    """The steps that can be recomputed, and the sections that cannot."""
    for number, section in enumerate(sections):
        if isinstance(section.method, Stored):
            yield from (Item(step, number) for step in section.steps)
        else:
            own = section.footprint()
            yield Item(StepBytes(0, own.kept, flowing=max(0, own.peak - own.kept)), None)


# ---------------------------------------------------------------- for users


@dataclass(frozen=True)
class StageGradient:
    """The gradient method of one stage.

    Args:
        name: of the block or of the module that contains the units, in the network.
        steps: of the chain: units of a ResNet, steps of a block.
        method: the gradient method.
    """

    name: str
    steps: int
    method: Gradient

    @property
    def recomputed(self) -> int | None:
        """Steps that the backward pass computes again, each as often as it does; None for the adjoint."""
        if isinstance(self.method, Checkpointed):
            return schedules.recomputed_steps(self.method.schedule(self.steps))
        return {Stored: 0, Reversible: self.steps}.get(type(self.method))

    def __str__(self) -> str:
        method, steps = self.method, f"{self.steps} step{'s' * (self.steps != 1)}"
        if isinstance(method, Checkpointed):
            segments = len(method.schedule(self.steps)) - 1
            of = f"{self.recomputed} recomputed in {segments} segment{'s' * (segments != 1)}"
            return f"{self.name}: checkpointed, {steps}, {of}"
        return f"{self.name}: {method.name}, {steps}"


@dataclass(frozen=True, repr=False)
class NetworkGradient:
    """The gradient methods of a network, stage by stage: what `set_gradient` returns."""

    stages: tuple[StageGradient, ...]

    @property
    def recomputed(self) -> float:
        """What the backward pass computes again, in forward passes through all stages."""
        steps = sum(stage.steps for stage in self.stages)
        return sum(stage.recomputed or 0 for stage in self.stages) / max(steps, 1)

    def __repr__(self) -> str:
        head = f"gradient methods, {self.recomputed:.0%} of a forward pass recomputed:"
        return "\n  ".join([head, *map(str, self.stages or ["nothing to recompute: stored"])])


@dataclass(frozen=True, repr=False)
class MemoryFit:
    """How a network keeps a memory budget: what `fit_memory` returns. Bytes are those of one training step.

    Args:
        budget: the bytes that were allowed.
        parameter_bytes: of the parameters.
        gradient_bytes: of their gradients.
        optimizer_bytes: of the optimizer's state.
        image_bytes: of the batch of images, where the activations do not hold it (bf16).
        activation_bytes: the predicted peak of the activations.
        gradient: the gradient methods that were set.
    """

    budget: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    image_bytes: int
    activation_bytes: int
    gradient: NetworkGradient

    @property
    def predicted_bytes(self) -> int:
        """The predicted peak of a training step."""
        fixed = self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes
        return fixed + self.image_bytes + self.activation_bytes

    def __repr__(self) -> str:
        return (
            f"{size(self.predicted_bytes)} of {size(self.budget)} a training step: parameters "
            f"{size(self.parameter_bytes)}, gradients {size(self.gradient_bytes)}, optimizer "
            f"{size(self.optimizer_bytes)}, images and activations "
            f"{size(self.image_bytes + self.activation_bytes)}\n{self.gradient}"
        )


def set_gradient(network: nn.Module, method: Any, *, units: Sequence[str] | None = None) -> NetworkGradient:
    """Choose where the backward pass of a network gets its states from; nothing else changes.

        resode.set_gradient(network, "checkpointed")
        resode.set_gradient(network, {"name": "checkpointed", "every": 3}, units=["encoder.blocks.*"])

    The network is changed in place: tensors, their names, outputs and gradients stay what they are, and an
    optimizer may hold its parameters already. In a network that resode does not know, the units are its
    residual blocks: children of an `nn.Sequential` or `nn.ModuleList` whose `forward` adds. A unit with
    forward hooks inside is stored. Evaluation and `no_grad` compute what they did; "stored" undoes it all.

    Args:
        network: a ResNet, a network of dynamic blocks, or any other one.
        method: a name, a mapping or an object (`resode.gradients`), or a list of them, one for each stage.
        units: names or patterns of names of the units, in a network that resode does not know; those with
            the same parent are a stage.

    Returns:
        The method of each stage, and what the backward pass computes again.

    Raises:
        InputError: a method that a stage does not support, no units, or forward hooks inside the units of a
            network of resode, which would be called twice.
    """
    with _owners(network, units) as owners:
        several = isinstance(method, list | tuple)
        each = list(method) if several else [method] * max(len(owners), 1)
        methods = [gradients.of(one) for one in each]
        if not owners and not all(isinstance(one, Stored) for one in methods):
            raise InputError(
                "the network has no residual blocks to recompute (children of an nn.Sequential or "
                "nn.ModuleList whose forward adds, without forward hooks inside): name its units, as "
                "units=['layer1.*']"
            )
        if several and len(each) != len(owners):
            names = ", ".join(_names(network, owners)) or "none"
            raise InputError(
                f"gradient: {len(each)} methods for {len(owners)} stages ({names}): give one for each, or one"
            )
        _refuse_hooks(network, owners, methods[: len(owners)])
        _set(owners, each[: len(owners)])
        return _described(network, owners)


def fit_memory(
    network: nn.Module,
    budget: int | str,
    shape: Shape,
    batch: int,
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
    moments: int = 1,
    units: Sequence[str] | None = None,
) -> MemoryFit:
    """Set the fastest gradient methods that keep a training step of a network within a number of bytes.

        resode.fit_memory(network, "600MB", (3, 32, 32), 128, precision="bf16")

    What counts is the peak of parameters, their gradients, the optimizer's state and activations, as for
    `resode train --memory-budget`, and the batch of images. Labels, workspaces of libraries and what Python
    and torch take do not count. A measured peak is within a tenth of the predicted one. The network is
    changed in place, as by `set_gradient`; its weights do not change.

    Args:
        network: as for `set_gradient`.
        budget: bytes, or a text such as "600MB" or "1.5GiB".
        shape: (C, H, W) of one image.
        batch: images in a step.
        precision: fp32, the precision of the parameters themselves, or bf16 by autocast.
        moments: tensors of the size of a parameter that the optimizer keeps for each: 1 for SGD with
            momentum, 2 for AdamW, 0 to leave the optimizer out.
        units: as for `set_gradient`.

    Returns:
        The predicted bytes, the method of each stage, and what the backward pass computes again.

    Raises:
        InputError: a budget that nothing meets, with the smallest that something does; units that are named
            and are no chain; a shape that the network does not take.
    """
    with _owners(network, units) as owners:
        allowed = _bytes(budget)
        _check_step(network, shape, batch, precision, moments)
        choices = _choices(network, shape, batch, precision, owners)
        if units is not None and choices.problems:
            raise InputError(*(f"units: {problem}; name others" for problem in choices.problems.values()))
        own, trainable = cost.parameter_bytes(network)
        # In fp32 the first layer keeps the images, under autocast a copy of them in bf16.
        images = 0 if precision == "fp32" else batch * math.prod(shape) * dtype_of(network).itemsize
        chosen = choices.within(allowed, own + (1 + moments) * trainable, images)
        _refuse_hooks(network, owners, chosen.methods)
        _set(owners, chosen.methods)
        described = _described(network, owners)
    fixed = own, trainable, moments * trainable
    return MemoryFit(allowed, *fixed, images, chosen.activation_bytes, described)


_DTYPES = {"fp32": None, "bf16": torch.bfloat16}


@contextlib.contextmanager
def _owners(network: nn.Module, units: Sequence[str] | None) -> Iterator[tuple[ChainOwner, ...]]:
    """The chains of a network; named units replace earlier ones, which come back after a mistake."""
    if not isinstance(network, nn.Module):
        hint = "; resode.create builds one by its name" if isinstance(network, str) else ""
        raise InputError(f"a network (nn.Module) is needed, not {network!r}{hint}")
    owners = chain_owners(network)
    if units is None:
        yield owners
        return
    if any(not isinstance(owner, RepeatedUnits) for owner in owners):
        raise InputError("units: this network has stages of its own; omit units")
    named = find_units(network, units)
    if not named:
        raise InputError(
            f"units {list(units)}: each has forward hooks inside, which recomputation would call twice"
        )
    before = [gradient_of(owner) for owner in owners]
    _set(owners, [Stored()] * len(owners))
    try:
        yield named
    except InputError:
        _set(owners, before)
        raise


def _choices(
    network: nn.Module, shape: Shape, batch: int, precision: str, owners: Sequence[ChainOwner]
) -> Budget:
    try:
        return Budget(network, shape, batch, _DTYPES[precision], owners)
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise InputError(
            f"shape {tuple(shape)}, batch {batch}: a training step of the network fails: {first}"
        ) from error


def _refuse_hooks(network: nn.Module, owners: Sequence[ChainOwner], methods: Sequence[object]) -> None:
    """Raise `InputError` for forward hooks in a ResNet of resode or a dynamic block that recomputes."""
    names = {module: name for name, module in network.named_modules()}
    for owner, method in zip(owners, methods, strict=True):
        if isinstance(owner, RepeatedUnits) or isinstance(method, Stored):
            continue
        units = owner.units() if isinstance(owner, ResidualNetwork) else owner.controls
        for module in (module for unit in units for module in unit.modules()):
            if module._forward_hooks or module._forward_pre_hooks:
                raise InputError(
                    f"{names[module]}: has forward hooks, which recomputation would call twice: remove them, "
                    "or take gradient stored"
                )


def _names(network: nn.Module, owners: Sequence[ChainOwner]) -> Iterator[str]:
    names = {module: name for name, module in network.named_modules()}
    for owner in owners:
        yield (owner.name if isinstance(owner, RepeatedUnits) else names[owner]) or "units"


def _described(network: nn.Module, owners: Sequence[ChainOwner]) -> NetworkGradient:
    return NetworkGradient(
        tuple(
            StageGradient(name, steps_of(owner), gradient_of(owner))
            for name, owner in zip(_names(network, owners), owners, strict=True)
        )
    )


def _bytes(budget: Any) -> int:
    """Bytes from a number or a text, read as an experiment reads its memory_budget."""
    from pydantic import ByteSize, TypeAdapter, ValidationError  # here: the command line imports models early

    try:
        value = float(budget)
    except (TypeError, ValueError):
        value = budget
    try:
        found = None if isinstance(budget, bool) else int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError:
        found = None
    if found is None or found <= 0:
        raise InputError(f"budget {budget!r}: bytes are needed, as 600_000_000, '600MB' or '1.5GiB'")
    return found


def _check_step(network: nn.Module, shape: Any, batch: Any, precision: Any, moments: Any) -> None:
    mistakes = []
    if not (isinstance(shape, Sequence) and len(shape) == 3 and all(_whole(n, 1) for n in shape)):
        mistakes.append(f"shape {shape!r}: (channels, height, width) of one image is needed, as (3, 32, 32)")
    if not _whole(batch, 1):
        mistakes.append(f"batch {batch!r}: a positive number of images is needed")
    if precision not in _DTYPES:
        mistakes.append(f"precision {precision!r}: fp32 or bf16 is needed")
    if not _whole(moments, 0):
        mistakes.append(f"moments {moments!r}: 0, 1 (SGD with momentum), 2 (AdamW) ... is needed")
    devices = sorted({str(tensor.device) for tensor in (*network.parameters(), *network.buffers())})
    if len(devices) > 1:
        mistakes.append(f"the network is on the devices {' and '.join(devices)}: a budget is for one device")
    if mistakes:
        raise InputError(*mistakes)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
