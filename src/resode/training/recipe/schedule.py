"""Settings of the learning rate's schedule; x is the fraction of the training that is done."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from resode.training.recipe.section import Fraction, Inside, Section


class Warmup(Section):
    """A reduced learning rate at the beginning: the schedule's, times a factor."""

    epochs: PositiveFloat
    """Length in epochs, above 0; may be fractional."""
    factor: Fraction = 0.1
    """The factor at the beginning, between 0 and 1."""
    shape: Literal["constant", "linear"] = "linear"
    """How the factor proceeds: `constant`, or `linear` up to 1."""


class Constant(Section):
    """The learning rate is lr."""

    name: Literal["constant"] = "constant"
    """The schedule: `constant`, `multistep`, `cosine`, `onecycle` or `linear_exponential`."""
    warmup: Warmup | None = None
    """Warm-up at the beginning (default: none)."""


class MultiStep(Section):
    """The learning rate is multiplied by `factor` at each milestone."""

    name: Literal["multistep"] = "multistep"
    """The schedule: `constant`, `multistep`, `cosine`, `onecycle` or `linear_exponential`."""
    milestones: tuple[Inside, ...] = (0.5, 0.75)
    """Increasing fractions of the training, above 0 and below 1."""
    factor: Inside = 0.1
    """The factor at each milestone, above 0 and below 1."""
    warmup: Warmup | None = None
    """Warm-up at the beginning (default: none)."""

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        if any(a >= b for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError("milestones must increase")
        return self


class Cosine(Section):
    """Half a cosine from lr to `final` lr (Loshchilov & Hutter 2017, arXiv 1608.03983)."""

    name: Literal["cosine"] = "cosine"
    """The schedule: `constant`, `multistep`, `cosine`, `onecycle` or `linear_exponential`."""
    final: Fraction = 0.0
    """Learning rate at the end, relative to lr, between 0 and 1."""
    warmup: Warmup | None = None
    """Warm-up at the beginning (default: none)."""


class OneCycle(Section):
    """Linear from `start` lr up to lr at x = `peak`, then linear down to `final` lr."""

    name: Literal["onecycle"] = "onecycle"
    """The schedule: `constant`, `multistep`, `cosine`, `onecycle` or `linear_exponential`."""
    peak: Inside = 0.3
    """Fraction of the training at which the learning rate is lr, above 0 and below 1."""
    start: Fraction = 0.1
    """Learning rate at the beginning, relative to lr, between 0 and 1."""
    final: Fraction = 0.0
    """Learning rate at the end, relative to lr, between 0 and 1."""
    warmup: None = None
    """Always null: the schedule begins with a rise of its own."""


class LinearExponential(Section):
    """lr (x / peak) exp(1 - x / peak): linear growth, then exponential decay."""

    name: Literal["linear_exponential"] = "linear_exponential"
    """The schedule: `constant`, `multistep`, `cosine`, `onecycle` or `linear_exponential`."""
    peak: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Fraction of the training at which the learning rate is lr, above 0 and at most 1."""
    warmup: None = None
    """Always null: the schedule begins with a rise of its own."""


Schedule = Annotated[
    Constant | MultiStep | Cosine | OneCycle | LinearExponential, Field(discriminator="name")
]
