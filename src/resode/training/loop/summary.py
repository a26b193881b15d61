"""Summary: the content of summary.json, the result of a finished run."""

import time
from typing import Any

from resode.training.loop.evaluation import Scores
from resode.training.loop.session import Session
from resode.training.recipe.experiment import Experiment
from resode.training.records.departures import holding
from resode.training.records.run import STOPPED
from resode.training.setup.preparation import Setup


def summary(session: Session, test: Scores | None) -> dict[str, Any]:
    """What a run has achieved, and what it took."""
    setup, position, rows = session.trainer.setup, session.trainer.position, session.rows
    experiment, last = setup.experiment, rows[-1]
    seconds = sum(float(row["seconds"]) for row in rows)
    return {
        "status": STOPPED if session.stopped else "finished",
        **({"stopped": {"epoch": position.epoch, "reason": session.stopped}} if session.stopped else {}),
        "name": experiment.name,
        "model": experiment.model.name if experiment.model else type(setup.module).__name__,
        "parameters": setup.parameters,
        "seed": experiment.seed,
        "epochs": experiment.epochs,
        "iterations": position.iteration,
        "train": {"loss": float(last["train_loss"]), "accuracy": float(last["train_accuracy"])},
        "validation": _validation(last, setup.validation.samples) if setup.validation is not None else None,
        "test": test.record(setup.data.dataset.classes) if test is not None else None,
        "seconds": round(position.wall_seconds + time.monotonic() - session.began, 1),
        "training_seconds": round(seconds, 1),
        "images_per_second": round(position.epoch * setup.training.samples / max(seconds, 1e-9), 1),
        "peak_memory_bytes": max(int(row["peak_memory_bytes"]) for row in rows),
        "data": _data(setup, test),
        **_expectations(experiment),
        "precision": experiment.precision,
        "compile": experiment.compile,
        "resumes": position.resumes,
    }


def _validation(last: dict[str, str], samples: int) -> dict[str, Any]:
    accuracy = float(last["validation_accuracy"])
    return {
        "loss": float(last["validation_loss"]),
        "top1_accuracy": round(accuracy, 6),
        "top1_error": round(100 - accuracy, 6),
        "samples": samples,
    }


def _data(setup: Setup, test: Scores | None) -> dict[str, Any]:
    return {
        "name": setup.experiment.data.source,
        "fingerprint": setup.data.dataset.fingerprint,
        "train": setup.training.samples,
        "validation": setup.validation.samples if setup.validation else 0,
        "test": test.samples if test is not None else 0,
        "skipped": list(setup.data.dataset.skipped),
    }


def _expectations(experiment: Experiment) -> dict[str, Any]:
    about = holding(experiment).about
    return {
        "published": about.published.model_dump() if about.published else None,
        "expected": about.expected or None,
    }
