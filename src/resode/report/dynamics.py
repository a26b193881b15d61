"""Dynamics: the section of a page that shows a network of dynamic blocks as a differential equation."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from torch import Tensor

from resode.analysis.dynamics import Curve, StageDynamics, dynamics
from resode.data.hub import offline
from resode.errors import ResodeError
from resode.inference.evaluation import prepare
from resode.inference.trained import Trained, trained_network
from resode.models import DynamicNet
from resode.quantities import number
from resode.report.chart import Chart
from resode.report.lines import Line, lines

IMAGES = 32  # of the batch


@dataclass(frozen=True)
class Section:
    """The stages of a network over time.

    Args:
        stages: equations, grids and norms.
        note: what is missing, and why; "" where nothing is.
    """

    stages: tuple[StageDynamics, ...]
    note: str = ""

    @property
    def charts(self) -> tuple[Chart, ...]:
        """The norms of the state, of f and of theta, and the stability numbers, over time."""
        quantities: tuple[tuple[str, str, Callable[[StageDynamics], Curve]], ...] = (
            ("State y(t)", "root mean square", lambda s: s.state),
            ("Right-hand side f", "root mean square", lambda s: s.slope),
            ("Controls theta(t)", "root mean square", lambda s: s.theta),
            ("Stability number", "h over the largest stable step, stable up to 1", lambda s: s.stability),
        )
        found = (
            lines(
                title,
                [Line(f"stage {s.stage}", "", f"arm{(s.stage - 1) % 10}", of_stage(s)) for s in self.stages],
                write=lambda value: number(value, 3),
                note=f"{note}, over t",
            )
            for title, note, of_stage in quantities
        )
        return tuple(chart for chart in found if chart is not None)


def of_weights(path: Path) -> Section | None:
    """The section about the network of a run or a weights file, on one batch of its test images.

    None for other networks, and where the weights cannot be read: a page is written of any run. Without its
    images the norms of states are missing, which `note` says.
    """
    try:
        trained = trained_network(path, "cpu")
    except ResodeError:
        return None
    network = trained.module
    if not isinstance(network, DynamicNet):
        return None
    size = (32, 32) if trained.preprocessing is None else trained.preprocessing.size
    try:
        return Section(dynamics(network, _batch(trained), size))
    except ResodeError as error:
        return Section(
            dynamics(network, None, size), f"Norms of states need test images: {error.messages[0]}"
        )


def _batch(trained: Trained) -> Tensor:
    """The first test images, as the network takes them; nothing is downloaded."""
    with offline():
        return next(islice(prepare(trained).batches(IMAGES, IMAGES), 1)).inputs
