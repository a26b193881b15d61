"""Chains: steps, one after the other, that a backward pass can do again.

    carry_0 -> carry_1 -> ... -> carry_n

A carry is all that a step needs of those before. The steps of an integrator over a time grid are a chain
(`Flow`), and so are the units of a classical residual network (`resode.models.residual`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from resode.controls import Theta
from resode.grids import TimeGrid
from resode.integrators.base import Carry, FixedStep, Numbers, RightHandSide

Field = Callable[[int, Theta, Tensor, bool], Tensor]


class Chain(ABC):
    """Steps from a state to a state, during one forward pass; `owner` is the module that makes them."""

    owner: object = None

    @property
    @abstractmethod
    def steps(self) -> int:
        """How many."""

    def start(self, y: Tensor) -> Carry:
        """The carry before the first step."""
        return (y,)

    @abstractmethod
    def step(self, k: int, carry: Carry, record: bool = True) -> Carry:
        """The carry after step k (from 0); `record` says whether running statistics take it in."""

    def state(self, carry: Carry) -> Tensor:
        """The state of a carry."""
        return carry[0]

    @abstractmethod
    def alike(self, k: int) -> Any:
        """Equal for steps that cost the same from carries of one shape."""

    def apart(self) -> "Chain":
        """The same chain, whose parameters are leaves."""
        return self

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """All parameters, each once."""

    def buffers(self) -> tuple[Tensor, ...]:
        """All buffers but running statistics."""
        return ()

    @abstractmethod
    def modes(self) -> tuple[bool, ...]:
        """Which modules are in training mode now."""

    def modules(self) -> Iterable[nn.Module]:
        """That take part in its steps, maybe more."""
        return self.owner.modules() if isinstance(self.owner, nn.Module) else ()

    def part(self, steps: range) -> "Chain":
        """Some steps: a chain that holds what they need, maybe more (its numbers of steps are not used)."""
        return self

    def carries(self, y: Tensor) -> Iterator[Carry]:
        """The carries before the first step and after each."""
        carry = self.start(y)
        yield carry
        for k in range(self.steps):
            carry = self.step(k, carry)
            yield carry

    def final(self, y: Tensor) -> Tensor:
        """The state after the last step."""
        carry = self.start(y)
        for k in range(self.steps):
            carry = self.step(k, carry)
        return self.state(carry)

    def present(self) -> Any:
        """What has to be the same in a backward pass that does the forward pass again."""
        return _versions(self.tensors()), self.modes(), _versions(self.buffers())

    def check_unchanged(self, earlier: Any, twice: bool = False) -> None:
        """Refuse a backward pass for parameters, or a mode, that are no longer those of the forward pass.

        And, but where `twice`, one that shall be differentiated again.
        """
        if torch.is_grad_enabled() and not twice:
            raise RuntimeError(
                "this gradient has no second derivative (create_graph=True): take gradient stored or "
                "checkpointed"
            )
        versions, modes, buffers = self.present()
        if versions != earlier[0]:
            raise RuntimeError(
                "a parameter was changed or exchanged between the forward and the backward pass, which does "
                "the forward pass again: change it after backward"
            )
        if modes != earlier[1]:
            raise RuntimeError(
                "train() or eval() was called between the forward and the backward pass, which does the "
                "forward pass again: call it after backward"
            )
        if buffers != earlier[2]:
            raise RuntimeError(
                "a buffer was written between the forward and the backward pass, which does the forward pass "
                "again: a network whose layers write their own (spectral_norm, say) needs gradient stored"
            )


def _versions(tensors: Iterable[Tensor]) -> tuple[tuple[int, int, int], ...]:
    return tuple((id(t), t._version, t.untyped_storage()._cdata) for t in tensors)


@dataclass(frozen=True)
class Flow(Chain):
    """The differential equation of a block, discretised, during one forward pass.

    Args:
        integrator: the scheme.
        grid: the state nodes.
        field: `field(e, theta, y, record)`, the right-hand side at evaluation e; `record` says whether
            running statistics take it in.
        thetas: the parameters of each evaluation, those that only a backward pass needs last.
        numbers: the learned numbers of the scheme.
        training: which modules of the field are in training mode now.
        owner: the block.
    """

    integrator: FixedStep
    grid: TimeGrid
    field: Field
    thetas: tuple[Theta, ...]
    numbers: Numbers
    training: Callable[[], tuple[bool, ...]] = tuple
    owner: object = None

    @property
    def steps(self) -> int:
        return self.grid.steps

    def start(self, y: Tensor) -> Carry:
        return self.integrator.start(y)

    def step(self, k: int, carry: Carry, record: bool = True) -> Carry:
        return self.integrator.step(k, self.grid, self.rhs(record), carry, self.numbers)

    def state(self, carry: Carry) -> Tensor:
        return self.integrator.state(carry)

    def rhs(self, record: bool = True) -> RightHandSide:
        """f(e, y)."""
        return lambda number, y: self.field(number, self.thetas[number], y, record)

    def tensors(self) -> tuple[Tensor, ...]:
        everything = [*(t for theta in self.thetas for t in theta.values()), *self.numbers.values()]
        return tuple({id(t): t for t in everything}.values())

    def modes(self) -> tuple[bool, ...]:
        return self.training()

    def alike(self, k: int) -> Any:
        return min(k, 1)

    def apart(self) -> Chain:
        return self.detached()[0]

    def detached(self) -> tuple["Flow", dict[int, Tensor]]:
        """The same flow on leaves of their own, and the leaf of each parameter by its id."""
        leaves = {id(t): t.detach().requires_grad_(t.requires_grad) for t in self.tensors()}
        made: dict[int, Theta] = {}
        for theta in self.thetas:
            if id(theta) not in made:
                made[id(theta)] = {name: leaves[id(t)] for name, t in theta.items()}
        thetas = tuple(made[id(theta)] for theta in self.thetas)
        numbers = {name: leaves[id(t)] for name, t in self.numbers.items()}
        return replace(self, thetas=thetas, numbers=numbers), leaves
