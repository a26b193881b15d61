"""Depth: charts, tables and the page of a measurement by `resode analyze --depth`."""

from pathlib import Path

from resode import atomic
from resode.analysis.depth import Depth
from resode.analysis.depth.paired import Increase
from resode.analysis.depth.record import Change, StageDepth
from resode.quantities import MISSING, count, number, percent
from resode.report import templating
from resode.report.chart import Chart
from resode.report.lines import Line, lines

FILE = "depth.json"  # in the folder `analysis` of a run
Table = tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]  # heads, rows


def write(depth: Depth, out: Path) -> Path:
    """Write the page of a measurement.

    Raises:
        ResourceError: the page cannot be written.
    """
    page = templating.render("depth_page.html", section=Section(depth))
    atomic.write_text(out, page.encode("utf-8", "replace").decode())
    return out


def read(run: Path) -> Depth | None:
    """The measurement that lies in a run; None where there is none.

    Raises:
        IntegrityError: a damaged file.
    """
    file = run / "analysis" / FILE
    return Depth.from_record(file.read_bytes(), str(file)) if file.is_file() else None


class Section:
    """A measurement as charts and tables of text."""

    def __init__(self, depth: Depth) -> None:
        self.depth = depth

    @property
    def facts(self) -> dict[str, str]:
        """What was measured on what."""
        depth = self.depth
        images = f"{count(depth.images)} of {count(depth.of)}, {depth.data} ({depth.split})"
        statistics = {"none": "the network has no running ones"}.get(depth.statistics, depth.statistics)
        if depth.statistics_images:
            statistics += f" on {count(depth.statistics_images)} training images"
        return {
            "test error": percent(depth.error),
            "test images": images,
            "stages in float64": f"the first {count(depth.stage_images)} images",
            "statistics of norms": statistics,
            "cost": f"{depth.passes:.0f} plain forward passes",
        }

    @property
    def charts(self) -> tuple[Chart, ...]:
        """Distance and error over steps, theta over depth, growth."""
        found = (self._distances(), self._errors(), self._theta(), self._growth())
        return tuple(chart for chart in found if chart is not None)

    def _distances(self) -> Chart | None:
        series = [
            Line(
                f"stage {s.stage}",
                "" if s.observed_order is None else f"order {s.observed_order:.2f}",
                _css(s.stage - 1),
                tuple(sorted(s.distances.items())),
            )
            for s in self.depth.stages
        ]
        order = self.depth.observed_order
        remark = "" if order is None else f"order {order:.2f}"
        series.append(Line("logits", remark, "rate", tuple(sorted(self.depth.distances.items()))))
        title = "Distance to the flow"
        return lines(
            title, series, ticks=(1, 2, 4, 8), write_x=_times, log_x=True, log_y=True,
            note="over the steps; the slope is the observed order",
        )  # fmt: skip

    def _errors(self) -> Chart | None:
        refinement = self.depth.refinement
        kept = tuple((float(r.factor), r.error_kept) for r in refinement)
        new = tuple((float(r.factor), r.error_new) for r in refinement)
        series = [Line("statistics kept", percent(kept[-1][1]), "validation", kept)]
        if self.depth.statistics == "kept and estimated anew":
            series.append(Line("estimated anew", percent(new[-1][1]), "train", new))
        series += [
            Line(f"by {swap.scheme}", percent(swap.error_kept), _css(place + 2), ((1.0, swap.error_kept),))
            for place, swap in enumerate(self.depth.swaps)
        ]
        return lines(
            "Test error", series, ticks=(1, 2, 4, 8), write_x=_times, log_x=True,
            write=lambda value: f"{value:.3g} %", zero=False, note="over the steps of every stage",
        )  # fmt: skip

    def _theta(self) -> Chart | None:
        series = [
            Line(f"stage {s.stage}", f"{len(s.theta)} nodes", _css(s.stage - 1), _curve(s))
            for s in self.depth.stages
        ]
        return lines("theta over depth", series, note="root mean square at the control nodes, over t")

    def _growth(self) -> Chart | None:
        stages = self.depth.stages
        series = [
            Line("median", "", "validation", tuple((float(s.stage), s.growth) for s in stages)),
            Line("largest", "", "train", tuple((float(s.stage), s.growth_largest) for s in stages)),
            Line("bound", "", "test", tuple((float(s.stage), s.growth_bound) for s in stages)),
        ]
        return lines(
            "Growth", series, ticks=tuple(float(s.stage) for s in stages), write_x=lambda x: f"stage {x:g}",
            log_y=True, note="largest singular value of a stage's Jacobian",
        )  # fmt: skip

    @property
    def changes(self) -> Table:
        """Errors refined and by other schemes, with their paired increase."""
        heads = ("solved by", "error", "increase", "estimated anew", "increase")
        rows = [
            ("the network itself" if r.factor == 1 else f"{r.factor} times the steps", *_cells(r))
            for r in self.depth.refinement
        ]
        rows += [(f"{swap.scheme}, its steps", *_cells(swap)) for swap in self.depth.swaps]
        return heads, tuple(rows)

    @property
    def stages(self) -> Table:
        """Order, distance, smoothness, reversal and growth of every stage."""
        heads = (
            "stage", "scheme", "steps", "order", "needed", "distance", "units", "S", "p", "S of operators",
            "reversal", "growth", "at most",
        )  # fmt: skip
        return heads, tuple(_row(stage) for stage in self.depth.stages)


def _cells(change: Change) -> tuple[str, ...]:
    return (
        percent(change.error_kept),
        _increase(change.increase_kept),
        percent(change.error_new),
        _increase(change.increase_new),
    )


def _increase(found: Increase | None) -> str:
    return MISSING if found is None else f"{found.points:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _row(stage: StageDepth) -> tuple[str, ...]:
    s = stage.smoothness
    order = "exact" if stage.exact else MISSING
    if stage.observed_order is not None:
        order = f"{stage.observed_order:.2f}"
        if stage.observed_low is not None and stage.observed_high is not None:
            order += f" [{stage.observed_low:.2f}, {stage.observed_high:.2f}]"
    numbers = (s.weights, s.p, s.operators, stage.reversal, stage.growth, stage.growth_bound)
    return (
        f"{stage.stage}",
        stage.scheme,
        f"{stage.steps}",
        order,
        needed_order(stage),
        number(stage.distance, 2),
        f"{s.units}",
        *(number(value, 2) for value in numbers),
    )


def needed_order(stage: StageDepth) -> str:
    """The observed order that solving the equation needs: a range where f is smooth, else a lower bound."""
    if stage.order_low is None:
        return MISSING
    low = f"{stage.order_low:.1f}"
    return f">= {low}" if stage.order_high is None else f"{low} to {stage.order_high:.1f}"


def _curve(stage: StageDepth) -> tuple[tuple[float, float | None], ...]:
    return tuple((point.time, point.theta) for point in stage.theta)


def _css(place: int) -> str:
    return f"arm{place % 10}"


def _times(factor: float) -> str:
    return f"\N{MULTIPLICATION SIGN} {factor:g}"
