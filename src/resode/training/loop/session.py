"""A session: a training with a run directory, which can be stopped and resumed at any step.

On a CPU with the same number of threads, a run that was stopped and resumed ends in the same bits.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from resode import weights
from resode.data import Loader
from resode.errors import DivergenceError, InputError, Stopped
from resode.statistics import estimate_statistics
from resode.training.loop import divergence
from resode.training.loop.callbacks import Callback, checked_metrics
from resode.training.loop.evaluation import Scores, evaluate
from resode.training.loop.step import Position, Trainer
from resode.training.optim import optimizers
from resode.training.process.signals import Interrupted, StopRequest
from resode.training.recipe.experiment import Experiment
from resode.training.records import checkpoints
from resode.training.records.checkpoints import AVERAGE, GENERATOR, OPTIMIZER
from resode.training.records.run import Run, call_to_resume, format_row, given_in_python


@dataclass
class Session:
    """A run in progress.

    Args:
        trainer: network, data and position.
        run: the run directory.
        callback: is called on the way.
        rows: of metrics.csv so far.
    """

    trainer: Trainer
    run: Run
    callback: Callback
    rows: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.experiment, self.world = self.trainer.setup.experiment, self.trainer.setup.world
        self.began = self.saved = time.monotonic()
        self.stepped = False
        self.stopped = ""  # why a callback ended the training early

    # ------------------------------------------------------------ the loop

    def train(self, stop: StopRequest) -> None:
        """Train to the end, from wherever the position is."""
        trainer, position = self.trainer, self.trainer.position
        while position.epoch < self.experiment.epochs:
            clock = Stopwatch(position.epoch_seconds)
            while position.step < trainer.steps:
                trainer.change_where_due()
                try:
                    with self.interruptible_first_step(stop):
                        trainer.step()
                except DivergenceError as error:  # of an adaptive solver
                    raise DivergenceError(
                        f"diverged at iteration {position.iteration}: {error}; nothing of it was saved"
                    ) from None
                position.epoch_seconds = clock.seconds
                bad, signal, due = self.after_step(stop)
                if bad:
                    self.diverged(position.iteration)
                if signal:
                    self.stop(signal)
                if due:
                    with clock.paused():
                        self.save()
            self.check_finite()  # waits for a GPU to finish the steps
            position.epoch_seconds = clock.seconds
            drift = self.check_drift()
            validation = self.validate(stop)
            row = self.finish_epoch(validation, drift)
            reason = self.world.broadcast(self.callback.epoch_ended(row))
            last = position.epoch == self.experiment.epochs
            if last or reason or position.epoch % self.experiment.checkpoint.every == 0:
                self.save()
            if reason and not last:
                self.stopped = _reason(reason)
                break
        trainer.optimizer.zero_grad()  # frees the gradients

    @contextlib.contextmanager
    def interruptible_first_step(self, stop: StopRequest) -> Iterator[None]:
        """The first step of a process may compile for minutes: a signal ends it at once, as nothing is lost.

        Several ranks finish it, since each waits for the others.
        """
        if self.stepped or self.world.size > 1:
            yield
            return
        position = self.trainer.position
        try:
            with stop.raising():
                yield
        except Interrupted:
            raise Stopped(
                stop.number or 0,
                f"stopped in the first step, at iteration {position.iteration}, which is saved; go on with: "
                f"{how_to_resume(self.experiment, self.run)}",
            ) from None
        self.stepped = True

    def after_step(self, stop: StopRequest) -> tuple[bool, int, bool]:
        """In any rank: has the step diverged, which signal asks to stop (0: none), is a checkpoint due?"""
        bad = self.trainer.reads_freely and bool(self.trainer.first_bad >= 0)
        due = time.monotonic() - self.saved > 60 * self.experiment.checkpoint.minutes
        bad_, signal, due_ = self.world.all_reduce_max((bad, stop.number or 0, due and self.world.first))
        return bool(bad_), int(signal), bool(due_)

    # ------------------------------------------------------------ the end of an epoch

    def check_drift(self) -> float | None:
        """The error of the states that reversible gradients recover; beyond the limit stop, or fall back."""
        trainer, position, section = self.trainer, self.trainer.position, self.experiment.drift
        inputs = trainer.setup.training.batch(position.epoch, 0).inputs
        half = self.experiment.precision == "bf16"
        with torch.autocast(trainer.setup.device.type, torch.bfloat16, enabled=half):
            error = trainer.setup.extension.drift(inputs)
        if error is not None:
            (error,) = self.world.all_reduce_max([error])
        if error is None or error <= section.limit:
            return error
        what = (
            f"epoch {position.epoch + 1}: the states that reversible gradients recover differ from the first "
            f"ones by {error:.1e} (drift.limit {section.limit:g})"
        )
        if section.beyond == "stop":
            self.save()
            raise DivergenceError(
                f"{what}; all is saved. Start anew with gradient checkpointed, anchors "
                "({name: reversible, anchor: 8}) or drift.beyond=fall_back, and another --out"
            )
        self.callback.message(f"{what}; checkpointed gradients from here on")
        position.fallen_back = True
        trainer.build_forward()
        return error

    def validate(self, stop: StopRequest) -> Scores | None:
        """Scores on the images held out; None: there are none, or this epoch is not evaluated."""
        section, epoch = self.experiment.evaluation, self.trainer.position.epoch + 1
        due = epoch % section.every == 0 or epoch == self.experiment.epochs
        loader = self.trainer.setup.validation
        return self.evaluate(self.evaluated_module(), loader, stop) if loader is not None and due else None

    def evaluated_module(self) -> nn.Module:
        """The network to evaluate and keep: the average with statistics of its own, or the network itself."""
        section, average = self.experiment.average, self.trainer.average
        if average is None or section is None:
            return self.trainer.module
        averaged = average.apply_to(self.trainer.module)
        estimate_statistics(averaged, self.trainer.setup.statistics_inputs(section.samples))
        return averaged

    def evaluate(self, module: nn.Module, loader: Loader, stop: StopRequest) -> Scores:
        """Evaluate; a stop request between two batches saves and ends the run (resume evaluates again).

        Several ranks finish their shares first.
        """
        self.world.broadcast_buffers(module)
        done = 0

        def on_batch(samples: int) -> None:
            nonlocal done
            done += samples * self.world.size
            self.callback.evaluating(min(done, loader.samples), loader.samples)
            if stop.number is not None and self.world.size == 1:
                self.stop(stop.number)

        precision = self.experiment.evaluation.precision
        loss = self.trainer.setup.loss
        scores = evaluate(module, loader, precision=precision, loss=loss, on_batch=on_batch, world=self.world)
        (signal,) = self.world.all_reduce_max([stop.number or 0])
        if signal:
            self.stop(int(signal))
        return scores

    def finish_epoch(self, validation: Scores | None, drift: float | None = None) -> dict[str, Any]:
        """Write the row of the finished epoch and move to the next."""
        trainer, position = self.trainer, self.trainer.position
        loss, correct, samples = self.world.all_reduce_sum(trainer.sums).tolist()
        counted = trainer.setup.extension.evaluations() is not None
        row = {
            "epoch": position.epoch + 1,
            "iterations": position.iteration,
            "learning_rate": trainer.learning_rate(position.iteration - 1),
            "train_loss": loss / samples,
            "train_accuracy": 100 * correct / samples,
            "validation_loss": validation.loss if validation else None,
            "validation_accuracy": validation.top1_accuracy if validation else None,
            "seconds": round(position.epoch_seconds, 3),
            "images_per_second": round(samples / max(position.epoch_seconds, 1e-9), 1),
            "peak_memory_bytes": trainer.setup.peak_memory(),
            "function_evaluations": position.function_evaluations / trainer.steps if counted else None,
            "reconstruction_error": drift,
        }
        if self.world.first:
            row |= checked_metrics(self.callback.metrics(trainer.module, position.epoch + 1))
        self.rows.append(format_row(row))
        if self.world.first:
            self.run.check_held()
            self.run.write_rows(self.rows)
        trainer.sums.zero_()
        position.epoch, position.step, position.epoch_seconds = position.epoch + 1, 0, 0.0
        position.function_evaluations = 0
        return row

    # ------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Write a checkpoint; a state that is not finite is never written."""
        self.check_finite()
        trainer, position, now = self.trainer, self.trainer.position, time.monotonic()
        position.wall_seconds += now - self.began
        self.began = self.saved = now
        tensors = self._tensors()
        if self.world.first:
            self.run.check_held()
            of = {"iterations": f"{position.iteration} of {trainer.iterations}"}
            origin = of if trainer.average is None else {**of, "averaged": False}
            checkpoints.write(
                self.run.checkpoints,
                position.iteration,
                lambda path: trainer.setup.save_weights(trainer.module, path, origin),
                {name: tensor.detach().cpu() for name, tensor in tensors.items()},
                {**vars(position), "rows": self.rows, "experiment": self.experiment.model_dump(mode="json")},
                self.experiment.checkpoint.keep,
            )
        self.world.barrier()

    def _tensors(self) -> dict[str, Tensor]:
        """The state beside the weights, as `<group>/<name>` -> tensor."""
        trainer = self.trainer
        state = optimizers.state_tensors(trainer.optimizer, trainer.module)
        tensors = {f"{OPTIMIZER}/{name}": tensor for name, tensor in state}
        if trainer.average is not None:
            tensors |= {f"{AVERAGE}/{name}": tensor for name, tensor in trainer.average.parameters.items()}
        tensors["sums"] = self.world.all_reduce_sum(trainer.sums)
        for rank, states in enumerate(self.world.all_gather(_generators(trainer.setup.device))):
            suffix = f".{rank}" if rank else ""
            tensors |= {f"{GENERATOR}/{name}{suffix}": state for name, state in states.items()}
        return tensors

    @torch.no_grad()
    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Return to the state of a checkpoint.

        Raises:
            InputError: an earlier version wrote it.
        """
        trainer, generators = self.trainer, checkpoint.group(GENERATOR)
        trainer.return_to(checkpoint.state.get("level", 0))
        weights.load_into(trainer.module, checkpoint.model)
        trainer.optimizer.state.clear()
        trainer.load_optimizer(checkpoint.group(OPTIMIZER))
        if trainer.average is not None:
            trainer.average.adopt(trainer.module, checkpoint.group(AVERAGE))
        trainer.sums.copy_(checkpoint.training["sums"]).mul_(self.world.first)
        trainer.first_bad.fill_(-1)
        suffix = f".{self.world.rank}" if self.world.rank else ""
        if f"cpu{suffix}" in generators:  # a rank that is new keeps its own
            states = {kind: generators.get(kind + suffix) for kind in ("cpu", "cuda")}
            _restore_generators({k: t for k, t in states.items() if t is not None}, trainer.setup.device)
        state = dict(checkpoint.state)
        self.rows = state.pop("rows")
        state.pop("experiment", None)  # `launch` has compared it
        if unknown := sorted(state.keys() - vars(Position()).keys()):
            raise InputError(
                f"{checkpoint.path}: state.json has {', '.join(unknown)}, unknown to this resode; resume it "
                "with the version that wrote it, or choose another --out"
            )
        trainer.position = Position(**state)
        trainer.build_forward()

    def stop(self, number: int) -> None:
        """Save and end the run because of a signal."""
        self.save()
        position = self.trainer.position
        raise Stopped(
            number,
            f"stopped at iteration {position.iteration} (epoch {position.epoch + 1}, step {position.step} "
            f"of {self.trainer.steps}) and saved; go on with: {how_to_resume(self.experiment, self.run)}",
        )

    # ------------------------------------------------------------ divergence

    def check_finite(self) -> None:
        """End the run where the loss or a parameter is not finite."""
        (first,) = self.world.all_reduce_max([int(self.trainer.first_bad)])
        if first >= 0:
            self.diverged(int(first))
        if divergence.not_finite(self.trainer.module) is not None:
            self.diverged(self.trainer.position.iteration)

    def diverged(self, iteration: int) -> None:
        """Replay from the last checkpoint with every layer watched; raise an error that names the layer."""
        checkpoint, _ = checkpoints.newest(self.run.checkpoints)
        assert checkpoint is not None
        self.callback.message(
            f"the loss is not finite; replaying from iteration {checkpoint.iteration} to find the layer"
        )
        self.trainer.callback, self.trainer.average = Callback(), None
        self.restore(checkpoint)
        what = divergence.locate(self.trainer, iteration)
        position = self.trainer.position
        raise DivergenceError(
            f"diverged at iteration {position.iteration} (epoch {position.epoch + 1}, step "
            f"{position.step + 1} of {self.trainer.steps}): {what} is not finite; nothing of it was saved. "
            f"Lower optimizer.lr (now {self.experiment.optimizer.lr:g}) or set clip_norm, and start anew "
            "with another --out"
        )


def how_to_resume(experiment: Experiment, run: Run) -> str:
    """What continues a run: a command, or a call where the run needs more than its directory."""
    given = given_in_python(experiment.model_dump())
    return call_to_resume(run.path, given) if given else f"resode train --resume --out {run.path}"


def _reason(reason: object) -> str:
    """What a callback returned as its reason to end, as one line."""
    return " ".join(str(reason).split()) if isinstance(reason, str) else "a callback ended the training"


class Stopwatch:
    """Seconds since it was made, without pauses, plus those of an earlier part."""

    def __init__(self, earlier: float) -> None:
        self.began = time.monotonic() - earlier

    @property
    def seconds(self) -> float:
        """The present reading."""
        return time.monotonic() - self.began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time within the block."""
        begin = time.monotonic()
        yield
        self.began += time.monotonic() - begin


def _generators(device: torch.device) -> dict[str, Tensor]:
    """The states of the global random generators (dropout alone uses them)."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def _restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
