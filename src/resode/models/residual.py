"""Classical residual networks: a stem, stages of units (a chain, `resode.gradients`), a head."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from resode import memory
from resode.errors import InputError
from resode.gradients import Chain, Checkpointed, Gradient, Stored, gradients
from resode.integrators.base import Carry
from resode.statistics import has_running_statistics


class ResidualNetwork(nn.Module):
    """A classical ResNet; `gradient` says where the backward pass gets the states of its units from."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient: Gradient = Stored()

    def set_gradient(self, gradient: Any) -> None:
        """Set the gradient method: stored or checkpointed, as an object, a name or a mapping.

        Raises:
            InputError: another method, or a plan for another number of units.
        """
        self.gradient = stored_or_checkpointed(gradient, len(self.units()))

    def _stages(self) -> tuple[nn.Module, ...]:
        return tuple(child for name, child in self.named_children() if name.startswith("layer"))

    def units(self) -> tuple[nn.Module, ...]:
        """The units of all stages, in order; a stage with hooks or that is no `nn.Sequential` is one unit."""
        return tuple(
            unit for stage in self._stages() for unit in (stage if _is_plain_sequence(stage) else (stage,))
        )

    def through_units(self, y: Tensor) -> Tensor:
        """Run all units: the state before the first -> the state after the last."""
        if isinstance(self.gradient, Stored) and (
            torch.compiler.is_compiling() or memory.active_profiler() is None
        ):
            for stage in self._stages():
                y = stage(y)
            return y
        return self.gradient.integrate(UnitChain(self.units(), self), y)


def stored_or_checkpointed(gradient: Any, units: int) -> Gradient:
    """A gradient method for so many units, from an object, a name or a mapping.

    Raises:
        InputError: another method, or a plan for another number of units.
    """
    method = gradients.of(gradient)
    if not isinstance(method, Gradient):
        raise InputError(f"gradient {method!r}: a name, a mapping or a method is needed, as Checkpointed()")
    if not isinstance(method, Stored | Checkpointed):
        raise InputError(
            f"gradient {method.name}: the units of a ResNet have no inverse and no adjoint equation; take "
            "stored or checkpointed"
        )
    if isinstance(method, Checkpointed):
        method.schedule(units)
    return method


def _is_plain_sequence(module: nn.Module) -> TypeGuard[nn.Sequential]:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return type(module) is nn.Sequential and not any(hooks)


@contextlib.contextmanager
def _on_copies(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Context in which norms update copies of their buffers, so that recomputation keeps the statistics."""
    before = [norm._buffers for norm in norms]
    try:
        for norm, buffers in zip(norms, before, strict=True):
            norm._buffers = {name: None if t is None else t.clone() for name, t in buffers.items()}
        yield
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            norm._buffers = buffers


@dataclass(frozen=True)
class UnitChain(Chain):
    """The units of a network as a chain, whose carry is the state."""

    units: tuple[nn.Module, ...]
    owner: object = None

    @property
    def steps(self) -> int:
        return len(self.units)

    def step(self, k: int, carry: Carry, record: bool = True) -> Carry:
        unit = self.units[k]
        if record:
            return (unit(carry[0]),)
        with UnitChain((unit,)).statistics_kept():
            return (unit(carry[0]),)

    def statistics_kept(self) -> contextlib.AbstractContextManager[None]:
        """Context in which calls of the units update copies of their running statistics."""
        return _on_copies([module for module in self._modules if has_running_statistics(module)])

    @cached_property
    def _modules(self) -> tuple[nn.Module, ...]:
        return tuple(module for unit in self.units for module in unit.modules())

    def tensors(self) -> tuple[Tensor, ...]:
        own = (p for module in self._modules for p in module._parameters.values() if p is not None)
        return tuple({id(p): p for p in own}.values())

    def buffers(self) -> tuple[Tensor, ...]:
        constants = (module for module in self._modules if not has_running_statistics(module))
        return tuple(buffer for module in constants for buffer in module.buffers(recurse=False))

    def cost_key(self, k: int) -> Any:
        unit = self.units[k]
        return str(unit), *((p.shape, p.requires_grad) for p in unit.parameters())

    def segment(self, steps: range) -> Chain:
        return UnitChain(self.units[steps.start : steps.stop])

    def modes(self) -> tuple[bool, ...]:
        return tuple(module.training for module in self._modules)
