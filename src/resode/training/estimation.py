"""Estimate: time and memory of a run, from a few batches, before anything is written."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.benchmark import Timer

from resode import cost
from resode.blocks import adaptive_solvers
from resode.data import Loader
from resode.gradients import unwatched
from resode.training.loop.evaluation import evaluate
from resode.training.loop.step import Position, Trainer
from resode.training.process.allocator import keeping_freed_memory
from resode.training.recipe.experiment import Experiment
from resode.training.setup.image_sizes import phases
from resode.training.setup.preparation import Setup, prepare


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Args:
        setup: the resolved experiment, data and network.
        step_seconds: time of a training step, the mean over the image sizes of the run.
        seconds: time of the run.
        memory_bytes: measured peak memory.
        predicted: cost of a step by counting, with one evaluation of each adaptive block.
    """

    setup: Setup
    step_seconds: float
    seconds: float
    memory_bytes: int
    predicted: cost.Cost

    @property
    def solvers(self) -> str:
        """The adaptive solvers of the network and their tolerances; empty: it has none."""
        return adaptive_solvers(self.setup.module)


@keeping_freed_memory()
@unwatched()  # for the time alone
def estimate(experiment: Experiment, module: nn.Module | None = None) -> Estimate:
    """Time a training step and an evaluation; write nothing.

        time of the run = steps x time of a step + evaluated images x time of an image

    Args:
        experiment: the run.
        module: the user's network, of which a copy is trained; default: the experiment's model.

    Raises:
        InputError: what `prepare` refuses.
    """
    setup = prepare(experiment, copy.deepcopy(module))
    trainer = Trainer(setup)
    timed = phases(setup.experiment.sizes, trainer.iterations)
    step = sum(count * _step_seconds(trainer, first) for first, count in timed) / trainer.iterations
    seconds = trainer.iterations * step + _evaluation_seconds(setup)
    return Estimate(setup, step, seconds, setup.peak_memory(), setup.memory.cost(setup.module))


def _step_seconds(trainer: Trainer, iteration: int) -> float:
    """The median time of a step at an iteration, whose images have the size of its phase."""

    def step() -> None:
        trainer.position = Position(iteration=iteration)  # a whole batch
        trainer.step()

    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=3.0).median


def _evaluation_seconds(setup: Setup) -> float:
    """Time of all evaluations of a run, by one batch."""
    settings, samples = setup.experiment, 0
    rounds = -(-settings.epochs // settings.evaluation.every)
    if setup.validation is not None:
        of_average = settings.average.samples if settings.average else 0
        samples += rounds * (setup.validation.samples + of_average)
    test = setup.test()
    samples += test.samples if test is not None else 0
    loader = test or setup.validation
    return samples * _image_seconds(setup, loader) if loader is not None else 0.0


def _image_seconds(setup: Setup, loader: Loader) -> float:
    """Time per image of an evaluation."""
    batch, precision = next(iter(loader)), setup.experiment.evaluation.precision
    run = {"evaluate": lambda: evaluate(setup.module, [batch], precision=precision)}
    timer = Timer("evaluate()", globals=run, num_threads=torch.get_num_threads())
    return timer.timeit(1).median / len(batch.targets)
