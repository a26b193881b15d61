"""Verdict: is the network the differential equation that it discretises? Stated rules, tried in this order.

1. Not smooth in depth: a stage with at least `units` units has an S at or above `smoothness`.
2. Bound to its scheme: under refinement or swap the lower 95 % end of the paired increase of the error is at
   least `increase` points.
3. Solves its equation: every upper end is below `increase` points, and the observed order of every stage is
   at least min(declared, 1) - `order` where s or the norm is only piecewise smooth, within `order` of the
   declared one where they are smooth.
4. Undecided: all else, with what would decide it.

Judged are the errors with kept statistics: the right-hand side is then one function of t and y, whatever the
grid. Reversal and growth are never judged.
"""

from collections.abc import Iterator, Sequence

from resode.analysis.depth.record import Change, Refinement, StageDepth, Swap, Thresholds, Verdict

NOT_SMOOTH, BOUND, SOLVES, UNDECIDED = (
    "not smooth in depth",
    "bound to its scheme",
    "solves its equation",
    "undecided",
)


def allowed_orders(
    declared: int | None, smooth: bool, thresholds: Thresholds
) -> tuple[float | None, float | None]:
    """The lowest and the highest observed order of a stage that solves its equation; None: no limit."""
    if declared is None:
        return None, None
    if smooth:
        return declared - thresholds.order, declared + thresholds.order
    return min(declared, 1) - thresholds.order, None


def judge(
    stages: Sequence[StageDepth],
    refinement: Sequence[Refinement],
    swaps: Sequence[Swap],
    images: int,
    thresholds: Thresholds,
) -> Verdict:
    """The verdict of the rules, with the numbers behind it."""
    jagged = [
        stage
        for stage in stages
        if stage.smoothness.units >= thresholds.units
        and stage.smoothness.weights is not None
        and stage.smoothness.weights >= thresholds.smoothness
    ]
    if jagged:
        worst = max(jagged, key=lambda stage: stage.smoothness.weights or 0.0)
        units = worst.smoothness.units
        return Verdict(
            NOT_SMOOTH, f"S = {worst.smoothness.weights:.2f} over {units} units of stage {worst.stage}"
        )
    changes: list[tuple[str, Change]] = [
        (f"{r.factor} times the steps", r) for r in refinement if r.factor > 1
    ] + [(swap.scheme, swap) for swap in swaps]
    worst_name, worst_change = max(changes, key=lambda pair: pair[1].increase_kept.low)
    if worst_change.increase_kept.low >= thresholds.increase:
        return Verdict(BOUND, f"{_increase(worst_name, worst_change)}{_anew(worst_change)}")
    wide = [pair for pair in changes if pair[1].increase_kept.high >= thresholds.increase]
    wrong = list(_wrong_orders(stages))
    if not wide and not wrong:
        name, change = max(changes, key=lambda pair: pair[1].increase_kept.high)
        orders = ", ".join(_order(stage) for stage in stages)
        return Verdict(SOLVES, f"largest increase: {_increase(name, change)}; observed orders {orders}")
    reasons = [_increase(*max(wide, key=lambda pair: pair[1].increase_kept.high))] if wide else []
    fixes = [_more_images(wide, images, thresholds)] if wide else []
    reasons += wrong
    if any(stage.order_low is None for stage in stages):
        fixes.append("a scheme that has an order")
    elif wrong:
        fixes.append(
            "a finer state grid (`resode regrid PATH --states double`), on which orders can be observed"
        )
    return Verdict(UNDECIDED, "; ".join(reasons), "would decide it: " + ", and ".join(fixes))


def _increase(name: str, change: Change) -> str:
    d = change.increase_kept
    return f"by {name} {d.points:+.2f} points of error [{d.low:+.2f}, {d.high:+.2f}]"


def _anew(change: Change) -> str:
    d = change.increase_new
    if d is None or d == change.increase_kept:
        return ""
    return f"; statistics estimated anew: {d.points:+.2f} [{d.low:+.2f}, {d.high:+.2f}]"


def _order(stage: StageDepth) -> str:
    return "exact" if stage.observed_order is None else f"{stage.observed_order:.2f}"


def _wrong_orders(stages: Sequence[StageDepth]) -> Iterator[str]:
    """Stages whose observed order is not the one that solving the equation needs."""
    for stage in stages:
        low, high = stage.order_low, stage.order_high
        if low is None:
            yield f"{stage.scheme} of stage {stage.stage} has no order"
        elif stage.observed_order is None and not stage.exact:
            yield f"the order of stage {stage.stage} cannot be observed: its states are not finite"
        elif stage.observed_order is not None and not low <= stage.observed_order <= (high or float("inf")):
            needed = f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
            yield f"stage {stage.stage} has the observed order {stage.observed_order:.2f}, not {needed}"


def _more_images(wide: Sequence[tuple[str, Change]], images: int, thresholds: Thresholds) -> str:
    """How many images would bring an interval to one side of the threshold, at the same rate of changes."""
    name, change = max(wide, key=lambda pair: pair[1].increase_kept.high)
    d = change.increase_kept
    gap = abs(d.points - thresholds.increase)
    half = (d.high - d.low) / 2
    if gap * 20 < half:
        return f"many more test images: the increase by {name} is at the threshold"
    return f"about {_round(images * (half / gap) ** 2):,} test images instead of {images:,}"


def _round(number: float) -> int:
    digits = 10 ** max(len(str(int(number))) - 2, 0)
    return int(-(-number // digits) * digits)
