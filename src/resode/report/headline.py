"""The headline of a page: the errors of a run, the published error, and the protocol."""

import math
from dataclasses import dataclass

from resode.quantities import count, percent, roughly
from resode.training.records.reader import EvaluationRecord, RunRecord


@dataclass(frozen=True)
class Figure:
    """A number of the headline with its name and remarks; the first on a page is the largest."""

    name: str
    value: str
    remarks: tuple[str, ...] = ()


def figures(run: RunRecord) -> list[Figure]:
    """The numbers of the headline: progress (unfinished run), test, published and validation error."""
    result = run.result
    progress = [] if run.finished else [_progress(run)]
    published = []
    if result.published is not None:
        remarks = filter(None, (result.published.source, _difference(run)))
        value = percent(result.published.top1_error)
        published.append(Figure("published test error", value, tuple(remarks)))
    if result.test is None:
        return progress + _held_out(run) + published
    test = Figure("test error", percent(result.test.top1_error), _wrong(result.test))
    return [*progress, test, *published, *_held_out(run)]


def _held_out(run: RunRecord) -> list[Figure]:
    """The validation error; without validation and test errors, the training error."""
    result = run.result
    if result.validation is not None:
        value = percent(result.validation.top1_error)
        return [Figure("validation error", value, _wrong(result.validation))]
    if run.validated is not None:
        remark = f"after epoch {count(run.validated.epoch)}"
        return [Figure("validation error", percent(run.validated.validation_error), (remark,))]
    trained = [split.error for split in splits(run) if split.name == "train" and split.error is not None]
    if result.test is None and trained:
        remark = "no validation images" if run.finished else f"after epoch {count(run.epoch)}"
        return [Figure("training error", percent(trained[0]), (remark,))]
    return []


def _progress(run: RunRecord) -> Figure:
    planned = run.result.epochs
    value = f"{count(run.epoch)} of {count(planned)}" if planned else count(run.epoch)
    remarks = [] if run.epochs else ["no epoch is complete yet"]
    if run.result.stopped is not None:
        return Figure("epoch", value, (f"stopped: {run.result.stopped.reason}",))
    paces = [e.seconds for e in run.epochs[-5:] if e.seconds is not None and math.isfinite(e.seconds)]
    diverged = run.end is not None and run.end.status == "diverged"
    if planned and planned > run.epoch and paces and not diverged:
        left = sum(paces) / len(paces) * (planned - run.epoch)
        remarks.append(f"about {roughly(left)} to go at the pace of the last epochs")
    if run.checkpoints:
        remarks.append(f"last checkpoint at iteration {count(run.checkpoints[-1])}")
    return Figure("epoch", value, tuple(remarks))


def _wrong(result: EvaluationRecord) -> tuple[str, ...]:
    """Number of wrong images, and the standard error sqrt(p (1 - p) / n) of an error over n images."""
    if not result.samples:
        return ()
    p = result.top1_error / 100
    deviation = 100 * math.sqrt(p * (1 - p) / result.samples)
    return (
        f"{count(round(p * result.samples))} of {count(result.samples)} images wrong",
        f"standard error {deviation:.2f} points",
    )


def _difference(run: RunRecord) -> str:
    result = run.result
    if result.test is None or result.published is None:
        return ""
    points = round(result.test.top1_error - result.published.top1_error, 2)
    if points == 0:
        return "this run: the same"
    return f"this run: {abs(points):.2f} points {'lower' if points < 0 else 'higher'}"


def protocol(run: RunRecord) -> dict[str, str]:
    """Data, settings and precision under which the errors were measured."""
    result, test = run.result, run.result.test
    images = {
        name: count(n) if n else "none"
        for name, n in (
            ("training images", result.data.train),
            ("validation images", result.data.validation),
            ("test images", result.data.test),
        )
        if n is not None
    }
    facts = {
        "epochs": _known(result.epochs),
        "iterations": _known(result.iterations),
        "batch size": run.setting("batch_size") or "",
        "tested": "once, at the end" if test else "",
        "initial weights": run.initial_weights or "",
        "seed": "" if result.seed is None else str(result.seed),
        "precision": ", ".join(filter(None, (result.precision, "compiled" if result.compile else ""))),
        "test precision": (test.precision or "") if test else "",
        "resumed": f"{result.resumes}×" if result.resumes else "",
    }
    return images | {name: value for name, value in facts.items() if value}


def _known(value: int | None) -> str:
    return "" if value is None else count(value)


@dataclass(frozen=True)
class Split:
    """A row of the table of results; "train" is the mean over the last training epoch."""

    name: str
    images: int | None
    loss: float | None
    error: float | None


def splits(run: RunRecord) -> list[Split]:
    """Loss and error of the last epoch on each split that was measured: train, validation, test."""
    result, data, last = run.result, run.result.data, run.epochs[-1] if run.epochs else None
    known = []
    if result.train is not None:
        known.append(Split("train", data.train, result.train.loss, result.train.top1_error))
    elif last is not None:
        known.append(Split("train", data.train, last.train_loss, last.train_error))
    if result.validation is None and last is not None and last.validation_error is not None:
        known.append(Split("validation", data.validation, last.validation_loss, last.validation_error))
    for name, found in (("validation", result.validation), ("test", result.test)):
        if found is not None:
            known.append(Split(name, found.samples, found.loss, found.top1_error))
    return known
