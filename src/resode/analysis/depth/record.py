"""What `resode analyze --depth` found, as values that are JSON as they stand; tables and pages show them.

Every error is in percent, every increase in points; None is what could not be measured.
"""

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from resode.analysis.depth.paired import Increase
from resode.analysis.depth.smoothness import Smoothness
from resode.errors import IntegrityError


@dataclass(frozen=True)
class Change:
    """The test error of the network solved otherwise, with the same theta(t).

    Args:
        error_kept: with the running statistics of the network kept (interpolated affine maps).
        error_new: with statistics estimated anew; the same where the network has none, None where there are
            no training images.
        increase_kept: over the network's own error, paired by image.
        increase_new: the same of `error_new`.
    """

    error_kept: float
    error_new: float | None
    increase_kept: Increase
    increase_new: Increase | None


@dataclass(frozen=True)
class Refinement(Change):
    """All stages with every step divided into `factor`; factor 1 is the network itself."""

    factor: int


@dataclass(frozen=True)
class Swap(Change):
    """All stages by another scheme of their own grids; `scheme` is its name."""

    scheme: str


@dataclass(frozen=True)
class Point:
    """The norm of theta at a time: the root mean square of its entries."""

    time: float
    theta: float


@dataclass(frozen=True)
class StageDepth:
    """One stage, in float64 on the first images.

    Args:
        stage: counted from 1.
        field: its name.
        equation: f.
        scheme: its name.
        steps: of the state grid.
        interpolation: of the controls.
        declared_order: of the scheme; None if it has none.
        smooth: whether s and the normalisation are known to be smooth, and no multistep scheme crosses a jump
            of theta(t).
        order_low: the lowest order that solving the equation allows; None without a declared order.
        order_high: the highest one; None: any.
        observed_order: the median over images; None where it cannot be observed.
        observed_low: 5 % of the images have a lower order.
        observed_high: 5 % of the images have a higher order.
        exact: whether the steps do not matter beyond rounding.
        distance: of the network's last state to the refined flow, relative to the way that the state goes.
        distances: the same with the steps divided by 1, 2, 4 and 8.
        smoothness: of its units.
        reversal: relative error of the first state after integrating back; None where it is not finite.
        inverse: whether the scheme was inverted; else its steps were made with -h.
        growth: the median over images of the largest singular value of the Jacobian.
        growth_largest: the largest over these images.
        growth_bound: what is known beforehand; None: nothing.
        theta: its norm at the control nodes.
    """

    stage: int
    field: str
    equation: str
    scheme: str
    steps: int
    interpolation: str
    declared_order: int | None
    smooth: bool
    order_low: float | None
    order_high: float | None
    observed_order: float | None
    observed_low: float | None
    observed_high: float | None
    exact: bool
    distance: float | None
    distances: dict[int, float | None]
    smoothness: Smoothness
    reversal: float | None
    inverse: bool
    growth: float | None
    growth_largest: float | None
    growth_bound: float | None
    theta: tuple[Point, ...]


@dataclass(frozen=True)
class Thresholds:
    """The numbers in the rules of the verdict.

    Args:
        units: from which smoothness in depth is judged.
        smoothness: S from which it is "not smooth in depth".
        increase: of the error in points, below which a change does not matter.
        order: what an observed order may miss.
    """

    units: int = 5
    smoothness: float = 0.9
    increase: float = 0.5
    order: float = 0.2

    def lines(self) -> tuple[str, ...]:
        """The rules, in the order in which they are tried."""
        return (
            f"not smooth in depth: a stage with at least {self.units} units has S >= {self.smoothness:g}",
            f"bound to its scheme: refined or by another scheme, the lower 95 % end of the increase of the "
            f"error is at least {self.increase:g} points",
            f"solves its equation: every upper end is below {self.increase:g} points, and the observed order "
            f"of every stage is at least min(declared, 1) - {self.order:g}, or declared +- {self.order:g} "
            "where f is smooth",
            "undecided: all else",
        )


@dataclass(frozen=True)
class Verdict:
    """What the rules say.

    Args:
        verdict: "not smooth in depth", "bound to its scheme", "solves its equation" or "undecided".
        reason: the numbers behind it.
        would_decide: what would decide it; "" where it is decided.
    """

    verdict: str
    reason: str
    would_decide: str = ""


@dataclass(frozen=True)
class Depth:
    """A network as the discretisation of its equation: is it an ODE?

    Args:
        path: as it was given.
        model: its name.
        data: the data set.
        split: of it.
        images: how many test images were classified.
        of: how many there are.
        stage_images: the first of them, on which stages were measured.
        statistics: "none" (the network has no running ones), "kept and estimated anew", or "kept".
        statistics_images: training images on which they were estimated.
        verdict: "not smooth in depth", "bound to its scheme", "solves its equation" or "undecided".
        reason: the numbers behind it.
        would_decide: what would decide it; "" where it is decided.
        thresholds: of the rules.
        error: of the network.
        distance: of its logits to those of the refined flow, relative to their norm; median over images.
        distances: the same with all steps divided by 1, 2, 4 and 8.
        observed_order: of the logits.
        refinement: errors with finer steps.
        swaps: errors by other schemes.
        stages: one for each block.
        passes: forward passes of all images that were made, in units of one by the network itself, without
            those that estimate statistics.
        notes: what the user should know, a line each.
    """

    path: str
    model: str
    data: str
    split: str
    images: int
    of: int
    stage_images: int
    statistics: str
    statistics_images: int
    verdict: str
    reason: str
    would_decide: str
    thresholds: Thresholds
    error: float
    distance: float | None
    distances: dict[int, float | None]
    observed_order: float | None
    refinement: tuple[Refinement, ...]
    swaps: tuple[Swap, ...]
    stages: tuple[StageDepth, ...]
    passes: float
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """The measurement as JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, text: str | bytes, name: str) -> "Depth":
        """Read the JSON that `record` gives.

        Raises:
            IntegrityError: anything else; `name` is what the message calls it.
        """
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise IntegrityError(
                f"{name}: is no record of `resode analyze --depth` ({where}: {first['msg']}); write it anew"
            ) from None

    def __repr__(self) -> str:
        decide = f"; {self.would_decide}" if self.would_decide else ""
        return (
            f"{self.model} on {self.data} ({self.images:,} of {self.of:,} images, error {self.error:.2f} %): "
            f"{self.verdict} ({self.reason}{decide})"
        )


_ADAPTER: TypeAdapter[Depth] = TypeAdapter(Depth)
