"""Repeated units: the residual blocks of any network as chains, whose gradient method can be chosen.

    y_{k+1} = y_k + F_k(y_k),  k = 0 ... n - 1,      in a loop that someone else wrote

A unit keeps its place in the network, its name and its tensors. While its chain recomputes, its class is a
subclass of its own whose `forward` goes through `RepeatedUnits.call`; torch's `parametrize` and FSDP exchange
classes in the same way. A wrapper would change the names in the `state_dict`, a pair of hooks would stay open
after Ctrl-C, and `torch.utils.checkpoint` would need another loop.
"""

import contextlib
import dis
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from fnmatch import fnmatchcase
from itertools import accumulate, groupby
from types import CodeType
from typing import Any, cast

import torch
from torch import Tensor, nn

from resode import memory
from resode.blocks import DynamicBlock
from resode.errors import InputError
from resode.gradients import Checkpointed, Gradient, Stored, schedules
from resode.gradients.schedules import Schedule
from resode.gradients.segments import Segment
from resode.models.residual import ResidualNetwork, UnitChain, stored_or_checkpointed
from resode.statistics import has_running_statistics


class RepeatedUnits:
    """Units of a network in a row, and their gradient method: stored or checkpointed.

    Whatever the network's own loop does with them, the gradient is that of plain backpropagation: a unit that
    does not take the result of the one before it begins a segment. One that has forward hooks inside is
    stored, so that they are called once.

    Args:
        name: of the module that contains them.
        names: of the units, in the network.
        units: the units.
        all_chains: of the network, to which this one is added.
    """

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        units: Sequence[nn.Module],
        all_chains: "list[RepeatedUnits]",
    ) -> None:
        self.name, self.names, self.units = name, tuple(names), tuple(units)
        self.all_chains = all_chains
        all_chains.append(self)
        self.gradient: Gradient = Stored()
        self._open: weakref.ref[_PartOfUnits] | None = None
        self._recording: memory.Recording | None = None
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Everything except the forward pass that runs now, and compiled code."""
        return self.__dict__ | {"_open": None, "_recording": None, "_compiled": {}}

    def set_gradient(self, gradient: Any) -> None:
        """Set the gradient method: stored or checkpointed, as an object, a name or a mapping.

        Raises:
            InputError: another method, a plan for another number of units, a unit on several devices or whose
                `forward` was replaced.
        """
        method = stored_or_checkpointed(gradient, len(self.units))
        if isinstance(method, Stored):
            self._release()
        else:
            self._check_units()
            self._manage()
        self.gradient = method

    def _check_units(self) -> None:
        for name, unit in zip(self.names, self.units, strict=True):
            devices = sorted({str(tensor.device) for tensor in (*unit.parameters(), *unit.buffers())})
            if len(devices) > 1:
                raise InputError(
                    f"{name}: is on the devices {' and '.join(devices)}, a recomputed unit has to be on one: "
                    "name smaller units, or take gradient stored"
                )
            if "forward" in vars(unit):
                raise InputError(
                    f"{name}: its forward was replaced (by accelerate, say), which hides its calls: undo it, "
                    "name other units, or take gradient stored"
                )

    def compile(self, **options: Any) -> None:
        """Compile the units in place, with the options of `torch.compile`."""
        if isinstance(self.gradient, Stored):
            for unit in self.units:
                unit.compile(**options)
            return
        own = {unit.own_class().forward for unit in self.units if isinstance(unit, _Managed)}
        self._compiled = {forward: torch.compile(forward, **options) for forward in own}

    def _manage(self) -> None:
        for k, unit in enumerate(self.units):
            own: Any = type(unit)
            if not issubclass(own, _Managed):
                unit.__class__ = _managed(own)
            cast(_Managed, unit)._place_in_chain = self, k

    def _release(self) -> None:
        for unit in self.units:
            if isinstance(unit, _Managed):
                unit.__class__ = unit.own_class()
                del unit._place_in_chain

    @contextlib.contextmanager
    def observed(self) -> Iterator[None]:
        """Context in which a profile or a `Trace` sees the units."""
        self._manage()
        try:
            yield
        finally:
            if isinstance(self.gradient, Stored):
                self._release()

    # ------------------------------------------------------------ a forward pass

    def call(
        self, k: int, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call the own forward of unit k as the gradient method does."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or _plain.get():
            return forward(*args, **kwargs)
        if (trace := _trace.get()) is not None:
            return trace.call(self, k, forward, args, kwargs)
        if (profiler := memory.active_profiler()) is not None:
            return self._counted(profiler, k, forward, args)
        if (compiled := self._compiled.get(getattr(forward, "__func__", forward))) is not None:
            forward = functools.partial(compiled, self.units[k])
        segment = self._segment(k, args, kwargs)
        if segment is None:
            return forward(*args, **kwargs)
        chain, buffers = UnitChain((self.units[k],)), _versions(self.units[k])
        result = segment.run(forward, args, kwargs, functools.partial(_again, chain, chain.snapshot()))
        self._check(k, buffers, segment.first_is_intact())
        self._open = weakref.ref(segment)  # autograd's graph holds it
        return result

    def _segment(self, k: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "_PartOfUnits | None":
        """The open segment if unit k continues it, else a new one; None if the unit is stored."""
        opened, self._open = self._open() if self._open is not None else None, None
        if has_forward_hooks(self.units[k]):
            return None
        if opened is not None and opened.next == k and not opened.begins_anew(args, kwargs):
            opened.next += 1
            return opened
        assert isinstance(self.gradient, Checkpointed)
        *segments, _ = self.gradient.schedule(len(self.units))
        for schedule, end in zip(segments, accumulate(map(schedules.length, segments)), strict=True):
            if k < end:
                whole = end - k == schedules.length(schedule)
                return _PartOfUnits(k, schedule if whole else end - k)
        return None

    def _check(self, k: int, buffers: Mapping[str, Any], intact: bool) -> None:
        """Raise `InputError` if unit k did what recomputation cannot repeat."""
        if problem := _problem(self.names[k], self.units[k], buffers, intact):
            raise InputError(
                f"{problem}, so it cannot be recomputed: name other units, or take gradient stored"
            )

    def _counted(
        self, profiler: memory.Profiler, k: int, forward: Callable[..., Any], args: Sequence[Any]
    ) -> Any:
        """The call within a profile, which needs the units in order, as `Trace` found them."""
        if k == 0:
            self._recording = profiler.begin(self.gradient, UnitChain(self.units, self))
        assert self._recording is not None
        result = forward(*args)
        token = _plain.set(True)
        try:
            self._recording.step((args[0],), (result,))
        finally:
            _plain.reset(token)
        if k == len(self.units) - 1:
            self._recording.end()
            self._recording = None
        return result


class _PartOfUnits(Segment):
    """Consecutive units of a chain in one segment."""

    def __init__(self, first: int, schedule: "int | Schedule") -> None:
        super().__init__(schedule)
        self.next = first + 1


@contextlib.contextmanager
def _again(unit: UnitChain, snapshot: Any) -> Iterator[None]:
    """Context in which a unit is recomputed: unchanged since its call, its statistics stay as they are."""
    unit.check_unchanged(snapshot, second_derivative=True)
    with unit.statistics_kept():
        yield


_plain: ContextVar[bool] = ContextVar("units run as they are", default=False)


# ---------------------------------------------------------------- managed modules


class _Managed(nn.Module):
    """The class of a unit whose chain recomputes, in front of its own class."""

    _place_in_chain: tuple[RepeatedUnits, int]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        units, k = self._place_in_chain
        return units.call(k, super().forward, args, kwargs)

    def own_class(self) -> type[Any]:
        """The class as its author wrote it."""
        return type(self).__mro__[2]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, (self.own_class(),), self.__dict__


@functools.cache
def _managed(own: Any) -> type[_Managed]:
    names: dict[str, Any] = {
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__doc__": own.__doc__,
    }
    # Inductor would decide by itself what it keeps. (Here, since it imports the compiler.)
    names["forward"] = torch.compiler.disable(_Managed.forward)
    return type(own.__name__, (_Managed, own), names)


def _new(own: Any) -> nn.Module:
    made = _managed(own)
    return made.__new__(made)


# ---------------------------------------------------------------- finding them


def managed_units(network: nn.Module) -> tuple[RepeatedUnits, ...]:
    """The chains of a network some of which recompute, in order."""
    managed = (module for module in network.modules() if isinstance(module, _Managed))
    return tuple(dict.fromkeys(chain for module in managed for chain in module._place_in_chain[0].all_chains))


def find_units(network: nn.Module, patterns: Sequence[str] | None = None) -> tuple[RepeatedUnits, ...]:
    """The residual blocks of a network, a chain for each module that contains some; none within others.

    A residual block is a child of an `nn.Sequential` or `nn.ModuleList` whose own `forward` adds. Dynamic
    blocks and the ResNets of resode have chains of their own. Those with forward hooks inside are no units.

    Args:
        network: any network.
        patterns: of the names of units (`"layer1.*"`), instead of searching.

    Raises:
        InputError: a pattern that matches no module.
    """
    if patterns is not None:
        return _chains(network, _named(network, patterns))
    own: list[str] = []
    for path, container in network.named_modules():
        if isinstance(container, ResidualNetwork | DynamicBlock):
            return ()
        if not isinstance(container, nn.Sequential | nn.ModuleList) or _within(path, own):
            continue
        for name, child in container.named_children():
            if _adds(getattr(type(child), "forward", None)) and next(child.parameters(), None) is not None:
                own.append(f"{path}.{name}" if path else name)
    return _chains(network, own) if len(own) > 1 else ()


def _named(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The names that match, without those of modules within a match."""
    listed = isinstance(patterns, Sequence) and not isinstance(patterns, str)
    if not listed or not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(f"units {patterns!r}: a list of names or patterns is needed, as ['layer1.*']")
    names = [name for name, _ in network.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            some = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names)) or "none"
            raise InputError(f"units: no module of the network matches '{pattern}' (its children: {some})")
    found: list[str] = []
    for name in names:
        if any(fnmatchcase(name, pattern) for pattern in patterns) and not _within(name, found):
            found.append(name)
    return found


def _within(path: str, names: Sequence[str]) -> bool:
    return any(path.startswith(f"{name}.") or path == name for name in names)


def _chains(network: nn.Module, names: Sequence[str]) -> tuple[RepeatedUnits, ...]:
    """Chains of units with the same parent; one that has hooks inside divides its chain."""
    chains: list[RepeatedUnits] = []
    for (parent, hooked), group in groupby(
        names, lambda name: (name.rpartition(".")[0], has_forward_hooks(network.get_submodule(name)))
    ):
        own = list(group)
        if not hooked:
            RepeatedUnits(parent, own, [network.get_submodule(name) for name in own], chains)
    return tuple(chains)


def has_forward_hooks(unit: nn.Module) -> bool:
    """Whether a module inside a unit has forward hooks, which recomputation would call twice."""
    inside = (module for module in unit.modules() if module is not unit)
    return any(module._forward_hooks or module._forward_pre_hooks for module in inside)


@functools.cache
def _adds(forward: Any) -> bool:
    """Whether a function adds two things itself: `y + f`, `y += f`, `torch.add`, `y.add_(f)`."""

    def adds(code: CodeType) -> bool:
        return any(
            (step.opname == "BINARY_OP" and step.argrepr in ("+", "+="))
            or (step.opname.startswith("LOAD_") and step.argval in ("add", "add_"))
            or (isinstance(step.argval, CodeType) and adds(step.argval))
            for step in dis.get_instructions(code)
        )

    code = getattr(inspect.unwrap(forward), "__code__", None)
    return isinstance(code, CodeType) and adds(code)


# ---------------------------------------------------------------- are they a chain?


class Trace:
    """Follows one forward pass under a profiler, and says what keeps units from being a chain."""

    def __init__(self) -> None:
        self.problems: dict[RepeatedUnits, str] = {}
        self.calls: dict[RepeatedUnits, int] = {}
        self._last: tuple[Tensor, int, int] | None = None

    @contextlib.contextmanager
    def following(self, chains: Sequence[RepeatedUnits]) -> Iterator[None]:
        """Context of the forward pass."""
        self.calls = dict.fromkeys(chains, 0)
        token = _trace.set(self)
        try:
            yield
        finally:
            _trace.reset(token)
        for chain, count in self.calls.items():
            if count < len(chain.units):
                self.problems.setdefault(chain, f"{chain.names[count]} is not used")

    def call(
        self, chain: RepeatedUnits, k: int, forward: Callable[..., Any], args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        """Make a call of unit k."""
        problem, buffers = self._before(chain, k, args, kwargs), _versions(chain.units[k])
        versions = [(t, t._version) for t in args if isinstance(t, Tensor)]
        result = forward(*args, **kwargs)
        intact = all(t._version == version for t, version in versions)
        problem = problem or _problem(chain.names[k], chain.units[k], buffers, intact)
        if not isinstance(result, Tensor):
            problem = problem or f"{chain.names[k]} returns a {type(result).__name__}, not one tensor"
        if problem:
            self.problems.setdefault(chain, problem)
        self.calls[chain] = k + 1
        self._last = (result, result._version, _kept()) if isinstance(result, Tensor) else None
        return result

    def _before(
        self, chain: RepeatedUnits, k: int, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> str | None:
        name, count = chain.names[k], self.calls[chain]
        if k < count:
            return f"{name} is used twice in one forward pass"
        if k > count:
            return f"{chain.names[count]} is not used before {name}"
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            given = len(args) + len(kwargs)
            return f"{name} is called with {given} argument{'s' * (given != 1)}, not with one tensor"
        if k > 0 and self._last is not None:
            result, version, kept = self._last
            if result is not args[0] or result._version != version or kept != _kept():
                return f"something is computed between {chain.names[k - 1]} and {name}"
        return None


_trace: ContextVar[Trace | None] = ContextVar("trace of units", default=None)


def _kept() -> int:
    """How many tensors autograd keeps so far, as the profiler sees it."""
    profiler = memory.active_profiler()
    return 0 if profiler is None else len(profiler.seen)


def _versions(unit: nn.Module) -> dict[str, tuple[int, int]]:
    """The versions of a unit's buffers except running statistics, by name."""
    return {
        f"{path}.{name}" if path else name: (id(buffer), buffer._version)
        for path, module in unit.named_modules()
        if not has_running_statistics(module)
        for name, buffer in module.named_buffers(recurse=False)
    }


def _problem(name: str, unit: nn.Module, buffers: Mapping[str, Any], intact: bool) -> str | None:
    """What a unit did in a call that recomputation cannot repeat."""
    after = _versions(unit)
    written = [path for path in after if after[path] != buffers.get(path)]
    if written:
        return f"{name} writes its buffer {written[0]} in its forward pass"
    return None if intact else f"{name} changes its input in place"
