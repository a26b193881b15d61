"""Chains: steps, one after the other, that a backward pass can run again.

    carry_0 -> carry_1 -> ... -> carry_n

A carry is all that a step needs from the steps before. The steps of an integrator on a time grid are a chain
(`Flow`), and so are the units of a classical residual network (`resode.models.residual`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from resode.controls import Theta
from resode.gradients.watch import Watch
from resode.grids import TimeGrid
from resode.integrators.base import Carry, Coefficients, FixedStep, RightHandSide, of_step

FieldCall = Callable[[int, Theta | None, Tensor, bool], Tensor]


class Chain(ABC):
    """The steps of one forward pass; `owner` is the module that makes them."""

    owner: object = None

    @property
    @abstractmethod
    def steps(self) -> int:
        """The number of steps."""

    def start(self, y: Tensor) -> Carry:
        """The carry before the first step."""
        return (y,)

    @abstractmethod
    def step(self, k: int, carry: Carry, record: bool = True) -> Carry:
        """The carry after step k (from 0); without `record`, running statistics are not updated."""

    def state(self, carry: Carry) -> Tensor:
        """The state of a carry."""
        return carry[0]

    @abstractmethod
    def cost_key(self, k: int) -> Any:
        """A key that is equal for steps of equal cost, given carries of equal shape."""

    def detached(self) -> "Chain":
        """The same chain with leaves as parameters."""
        return self

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """All parameters, each once."""

    def buffers(self) -> tuple[Tensor, ...]:
        """All buffers except running statistics."""
        return ()

    @abstractmethod
    def modes(self) -> tuple[bool, ...]:
        """Whether each module is in training mode."""

    def segment(self, steps: range) -> "Chain":
        """A chain that holds what these steps need, perhaps more; steps keep their numbers."""
        return self

    def carries(self, y: Tensor) -> Iterator[Carry]:
        """The carries before the first step and after each step."""
        carry = self.start(y)
        yield carry
        for k in range(self.steps):
            carry = self.step(k, carry)
            yield carry

    def snapshot(self) -> Any:
        """The versions of parameters and buffers and the modes; recomputation needs them unchanged."""
        return _versions(self.tensors()), self.modes(), _versions(self.buffers())

    def check_unchanged(self, earlier: Any, second_derivative: bool = False) -> None:
        """Refuse a backward pass with other parameters, buffers or modes than the forward pass had.

        Args:
            earlier: the snapshot of the forward pass.
            second_derivative: whether the backward pass can itself be differentiated.

        Raises:
            RuntimeError: something changed, or a second derivative is asked for and there is none.
        """
        if torch.is_grad_enabled() and not second_derivative:
            raise RuntimeError(
                "this gradient has no second derivative (create_graph=True): take gradient stored or "
                "checkpointed"
            )
        versions, modes, buffers = self.snapshot()
        if versions != earlier[0]:
            raise RuntimeError(
                "a parameter was changed or exchanged between the forward and the backward pass, which "
                "recomputes the forward pass: change it after backward"
            )
        if modes != earlier[1]:
            raise RuntimeError(
                "train() or eval() was called between the forward and the backward pass, which recomputes "
                "the forward pass: call it after backward"
            )
        if buffers != earlier[2]:
            raise RuntimeError(
                "a buffer was written between the forward and the backward pass, which recomputes the "
                "forward pass: a network whose layers write their own (spectral_norm, say) needs gradient "
                "stored"
            )


def _versions(tensors: Iterable[Tensor]) -> tuple[tuple[int, int, int], ...]:
    return tuple((id(t), t._version, t.untyped_storage()._cdata) for t in tensors)


@dataclass(frozen=True)
class Flow(Chain):
    """The discretised differential equation of a block, during one forward pass.

    Evaluations are numbered over the whole grid (`FixedStep.evaluations_on`); step k makes f(i, y) at number
    `offsets[k] + i`.

    Args:
        integrator: the scheme.
        grid: the state nodes.
        field: `field(e, theta, y, record)`, the right-hand side at evaluation e, with the node's own
            parameters where theta is None; without `record`, running statistics are not updated.
        thetas: theta at each evaluation; those that only a backward pass needs come last.
        direct: for each evaluation, whether the node is called with its own parameters.
        offsets: for each step, the number of its evaluation 0.
        coefficients: the learned coefficients of all steps, by name.
        training: the modes of the field's modules.
        owner: the block.
        difference: y_0 - y_{-1}, with which a moving scheme begins.
        watch: warns where a reversible gradient fails to recover the states.
    """

    integrator: FixedStep
    grid: TimeGrid
    field: FieldCall
    thetas: tuple[Theta, ...]
    direct: tuple[bool, ...]
    offsets: tuple[int, ...]
    coefficients: Coefficients
    training: Callable[[], tuple[bool, ...]] = tuple
    owner: object = None
    difference: Tensor | None = None
    watch: Watch | None = None

    @property
    def steps(self) -> int:
        return self.grid.steps

    def start(self, y: Tensor) -> Carry:
        return self.integrator.start(y, self.difference)

    def step(self, k: int, carry: Carry, record: bool = True) -> Carry:
        f = self._right_hand_side(k, record)
        return self.integrator.step(self.grid.step(k), f, carry, of_step(self.coefficients, k, self.steps))

    def inverse(self, k: int, carry: Carry) -> Carry:
        """The carry before step k, from the carry after it; running statistics are not updated."""
        f = self._right_hand_side(k, record=False)
        return self.integrator.inverse(self.grid.step(k), f, carry, of_step(self.coefficients, k, self.steps))

    def state(self, carry: Carry) -> Tensor:
        return self.integrator.state(carry)

    def evaluate(self, e: int, y: Tensor, record: bool) -> Tensor:
        """The right-hand side at evaluation e of the grid."""
        # A repeated evaluation takes theta of the forward pass, whatever the module holds by then.
        theta = None if record and self.direct[e] else self.thetas[e]
        return self.field(e, theta, y, record)

    def _right_hand_side(self, k: int, record: bool) -> RightHandSide:
        first = self.offsets[k]
        return lambda i, y: self.evaluate(first + i, y, record)

    def tensors(self) -> tuple[Tensor, ...]:
        everything = [*(t for theta in self.thetas for t in theta.values()), *self.coefficients.values()]
        return tuple({id(t): t for t in everything}.values())

    def modes(self) -> tuple[bool, ...]:
        return self.training()

    def cost_key(self, k: int) -> Any:
        return min(k, 1)

    def detached(self) -> Chain:
        return self.on_leaves()[0]

    def on_leaves(self) -> tuple["Flow", dict[int, Tensor]]:
        """The same flow on leaves, and the leaf of each parameter by the parameter's id."""
        leaves = {id(t): t.detach().requires_grad_(t.requires_grad) for t in self.tensors()}
        made: dict[int, Theta] = {}
        for theta in self.thetas:
            if id(theta) not in made:
                made[id(theta)] = {name: leaves[id(t)] for name, t in theta.items()}
        thetas = tuple(made[id(theta)] for theta in self.thetas)
        coefficients = {name: leaves[id(t)] for name, t in self.coefficients.items()}
        direct = (False,) * len(self.direct)
        return replace(self, thetas=thetas, coefficients=coefficients, direct=direct), leaves
