"""Stages: what a dynamic block integrates, and how, as a frozen value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, is_dataclass
from dataclasses import fields as fields_of
from typing import TYPE_CHECKING, Any

from torch import nn

from resode.controls import check_interpolation, default_controls
from resode.errors import InputError
from resode.fields import Field, fields
from resode.gradients import Gradient, Stored, gradients
from resode.grids import TimeGrid
from resode.integrators import FixedStep, Integrator, integrators
from resode.integrators.base import Evaluation
from resode.registry import Registry, instance


@dataclass(frozen=True)
class Stage:
    """y' = f(theta(t), y) on a state grid, with a scheme, controls and a gradient method.

    Args:
        width: the channels of the state.
        field: f: a `Field`, its name, `{"name": ..., option: ...}`, or any callable `width -> nn.Module`.
        integrator: an `Integrator`, its name, or a mapping.
        states: the state nodes: a `TimeGrid`, a list of nodes, a number of unit steps, or a mapping.
        controls: the control nodes (default: the state nodes that some evaluation touches).
        interpolation: interpolation of the controls: linear, constant, shared, quadratic or cubic.
        gradient: stored, checkpointed, reversible or adjoint.
        keep_unused: accept control nodes that no evaluation touches; their gradient is zero.

    Raises:
        InputError: unknown names, grids that do not increase, options that do not fit together.

    Example:
        >>> Stage(16, "parabolic", "rk4", states=4).control_grid
        TimeGrid([0, 1, 2, 3, 4])
    """

    width: int
    field: Field
    integrator: Integrator
    states: TimeGrid
    controls: TimeGrid | None = None
    interpolation: str = "linear"
    gradient: Gradient = Stored()  # noqa: RUF009
    keep_unused: bool = False

    if TYPE_CHECKING:  # the types of what may be given; a field has that of what is kept

        def __init__(
            self,
            width: int,
            field: Field | str | Mapping[str, Any] | Callable[[int], nn.Module],
            integrator: Integrator | str | Mapping[str, Any],
            states: TimeGrid | Sequence[float] | int | Mapping[str, Any],
            controls: TimeGrid | Sequence[float] | int | Mapping[str, Any] | None = None,
            interpolation: str = "linear",
            gradient: Gradient | str | Mapping[str, Any] = "stored",
            keep_unused: bool = False,
        ) -> None: ...

    def __post_init__(self) -> None:
        mistakes: list[str] = []
        if not isinstance(self.width, int) or isinstance(self.width, bool) or self.width < 1:
            mistakes.append(f"a stage of width {self.width!r}: a positive integer is needed")
        if not isinstance(self.keep_unused, bool):
            mistakes.append(f"keep_unused {self.keep_unused!r}: true or false is needed")
        conversions: dict[str, Callable[[Any], Any]] = {
            "field": lambda value: _of(fields, value, Field),
            "integrator": lambda value: _of(integrators, value, Integrator),
            "states": TimeGrid.of,
            "controls": lambda value: None if value is None else TimeGrid.of(value),
            "interpolation": check_interpolation,
            "gradient": lambda value: _of(gradients, value, Gradient),
        }
        for name, convert in conversions.items():
            try:
                object.__setattr__(self, name, convert(getattr(self, name)))
            except InputError as error:
                mistakes += error.messages
        if mistakes:
            raise InputError(*mistakes)
        self._check_together()

    def _check_together(self) -> None:
        integrator, parts = self.integrator, len(self.integrator.parts)
        if self.width % parts:
            raise InputError(
                f"{integrator.name} splits the state in {parts}: the width {self.width} has to be a multiple "
                f"of {parts}"
            )
        integrator.check(self.states)
        self.gradient.check(integrator, self.states)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The evaluations of a forward pass; empty for an adaptive solver, whose times depend on the data."""
        return self.integrator.evaluations_on(self.states) if isinstance(self.integrator, FixedStep) else ()

    @property
    def control_grid(self) -> TimeGrid:
        """The control nodes."""
        if self.controls is not None:
            return self.controls
        known = self.evaluations or tuple(Evaluation(t) for t in self.states.nodes)
        return default_controls(self.states, known, self.interpolation)

    def __repr__(self) -> str:
        return _call(self)

    def to_data(self) -> dict[str, Any]:
        """Plain data from which `Stage` makes the same value."""
        data: dict[str, Any] = {
            "width": self.width,
            "field": fields.describe(self.field),
            "integrator": integrators.describe(self.integrator),
            "states": self.states.to_data(),
        }
        if self.controls is not None:
            data["controls"] = self.controls.to_data()
        if self.interpolation != "linear":
            data["interpolation"] = self.interpolation
        if self.gradient != Stored():
            data["gradient"] = gradients.describe(self.gradient)
        if self.keep_unused:
            data["keep_unused"] = True
        return data


def _of(registry: Registry[Any], value: Any, kind: type) -> Any:
    """A field, an integrator or a gradient method, from a value or plain data."""
    expected = f"a name, a mapping with a name, or an object of a class of {kind.__name__}"
    expected += " (or a callable width -> nn.Module)" * (kind is Field)
    return instance(registry.of(value), kind, registry.kind, expected)


def _call(value: Any) -> str:
    """The call that makes a value, without the options that have their defaults."""
    own = not is_dataclass(value) or isinstance(value, type)
    if own or not (isinstance(value, Stage) or vars(type(value))["__dataclass_params__"].repr):
        return repr(value)
    chosen = ((item, getattr(value, item.name)) for item in fields_of(value))
    shown = [f"{item.name}={_call(v)}" for item, v in chosen if item.default is MISSING or v != item.default]
    return f"{type(value).__name__}({', '.join(shown)})"
