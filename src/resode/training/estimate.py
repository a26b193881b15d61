"""Estimate: what a run will take, from two batches, before anything is written."""

import copy
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from resode import cost
from resode.data import Loader
from resode.training.loop.evaluation import evaluate
from resode.training.loop.progress import Observer, Position
from resode.training.loop.trainer import Trainer
from resode.training.recipe.experiment import Experiment
from resode.training.records.run import Run
from resode.training.setup.image_sizes import parts
from resode.training.setup.memory import predicted_cost
from resode.training.setup.preparation import Setup, image_shape, prepare


@dataclass(frozen=True)
class Estimate:
    """What a run would take, from two batches; `step_seconds` is the mean over the sizes of its images."""

    setup: Setup
    step_seconds: float
    seconds: float
    memory_bytes: int
    predicted: cost.Cost


def estimate(experiment: Experiment, module: nn.Module | None = None) -> Estimate:
    """Do two batches (one to warm up, one timed several times over for its median); write nothing.

    The time of the whole run is (steps x time of a step) + (evaluations x time of an evaluation).
    """
    setup = prepare(experiment, copy.deepcopy(module))
    experiment = setup.experiment
    trainer = Trainer(setup, Run(Path("/nonexistent")), Observer())
    divided = parts(experiment.sizes, trainer.iterations)
    step = sum(many * _step_seconds(trainer, first) for first, many in divided) / trainer.iterations
    evaluated = 0
    rounds = -(-experiment.epochs // experiment.evaluation.every)
    if setup.validation is not None:
        evaluated += setup.validation.samples * rounds
        evaluated += rounds * experiment.average.samples if experiment.average else 0
    test = setup.test()
    evaluated += test.samples if test is not None else 0
    seconds = experiment.epochs * trainer.steps * step
    if evaluated and (loader := test or setup.validation) is not None:
        seconds += evaluated * _evaluation_seconds(setup, loader)
    predicted = predicted_cost(experiment, setup.module, image_shape(setup.dataset))
    return Estimate(setup, step, seconds, setup.peak_memory(), predicted)


def _step_seconds(trainer: Trainer, iteration: int) -> float:
    """Seconds of a step at this iteration: the median of several, after one to warm up."""
    times: list[float] = []
    while sum(times[1:]) < 3.0 and len(times) < 12:
        trainer.position = Position(iteration=iteration)  # a whole batch
        begin = time.perf_counter()
        trainer.step()
        if trainer.setup.device.type == "cuda":
            torch.cuda.synchronize(trainer.setup.device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def _evaluation_seconds(setup: Setup, loader: Loader) -> float:
    """Seconds per evaluated image, from the second of two batches."""
    batch = next(iter(loader))
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        evaluate(setup.module, [batch], precision=setup.experiment.evaluation.precision)
        times.append(time.perf_counter() - begin)
    return times[1] / len(batch.targets)
