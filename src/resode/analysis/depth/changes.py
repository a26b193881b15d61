"""Changes: the test error of a network whose equation is solved in finer steps, or by another scheme."""

from torch import Tensor

from resode.analysis.depth.convergence import FACTORS, Convergence, Products
from resode.analysis.depth.paired import Increase, increase
from resode.analysis.depth.passes import Passes
from resode.analysis.depth.record import Refinement, Swap
from resode.analysis.depth.schemes import other_schemes
from resode.analysis.depth.solution import Choice, Solution, finer, scheme_of, solving
from resode.blocks import DynamicBlock
from resode.data import Loader
from resode.grids import TimeGrid
from resode.integrators import FixedStep
from resode.models import DynamicNet
from resode.statistics import estimate_statistics

Errors = tuple[float, float | None, Increase, Increase | None]


class Changes:
    """Solves a network otherwise and compares its errors, paired by image.

    Args:
        net: in evaluation mode.
        labels: of the test images.
        passes: runs the networks.
        training: batches of equal size to estimate running statistics on; None: they are not estimated.
        has_statistics: whether the network has running statistics.
    """

    def __init__(
        self, net: DynamicNet, labels: Tensor, passes: Passes, training: Loader | None, has_statistics: bool
    ) -> None:
        self.net, self.passes, self.training = net, passes, training
        self._labels, self._has_statistics = labels, has_statistics
        self._logits = passes.logits(net, sum(len(block.evaluations) for block in net.blocks()))
        self._wrong = self._logits.argmax(1) != labels

    def refined(self) -> tuple[Convergence, tuple[Refinement, ...]]:
        """The convergence of the logits, and the errors with each step divided by 1, 2, 4 and 8."""
        states, found = {1: self._logits}, []
        for factor in FACTORS:
            choice = _refining(factor)
            if factor > 1:
                states[factor] = self._solved(choice, anew=False)
            found.append(Refinement(*self._errors(states[factor], self._anew(choice)), factor=factor))
        products = Products()
        products.add(None, states)
        return products.convergence(), tuple(found)

    def swapped(self) -> tuple[Swap, ...]:
        """The errors by other schemes, where every stage has them."""
        by_stage = [other_schemes(scheme_of(block)) for block in self.net.blocks()]
        names = dict.fromkeys(scheme.name for schemes in by_stage for scheme in schemes)
        found = []
        for name in names if all(by_stage) else ():
            choice = _swapping(name)
            kept = self._solved(choice, anew=False)
            found.append(Swap(*self._errors(kept, self._anew(choice)), scheme=name))
        return tuple(found)

    def _anew(self, choice: Choice) -> Tensor | None:
        return None if self.training is None else self._solved(choice, anew=True)

    def _solved(self, choice: Choice, *, anew: bool) -> Tensor:
        """The logits of the network solved otherwise."""
        module = solving(self.net, choice, anew=anew)
        if anew and self.training is not None:
            estimate_statistics(module, (batch.inputs for batch in self.training))
        solutions = [m for m in module.modules() if isinstance(m, Solution)]
        return self.passes.logits(module, sum(solution.evaluations for solution in solutions))

    def _errors(self, kept: Tensor, new: Tensor | None) -> Errors:
        error, more = self._compared(kept)
        if new is None:
            same = not self._has_statistics
            return error, error if same else None, more, more if same else None
        return error, self._compared(new)[0], more, self._compared(new)[1]

    def _compared(self, logits: Tensor) -> tuple[float, Increase]:
        wrong = (logits.argmax(1) != self._labels) | ~logits.isfinite().all(1)
        return 100 * float(wrong.double().mean()), increase(self._wrong, wrong)


def _refining(factor: int) -> Choice:
    def choose(block: DynamicBlock) -> tuple[FixedStep, TimeGrid]:
        return scheme_of(block), block.stage.states if factor == 1 else finer(block, factor)

    return choose


def _swapping(name: str) -> Choice:
    """The scheme of this name; a stage that has it already keeps its own."""

    def choose(block: DynamicBlock) -> tuple[FixedStep, TimeGrid]:
        own = scheme_of(block)
        return next((s for s in other_schemes(own) if s.name == name), own), block.stage.states

    return choose
