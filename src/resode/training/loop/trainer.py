"""The training loop: plain PyTorch, one step after another, every step a function of the state and the seed.

Images stay on the device as uint8 and are augmented there in batches; convolutions run channels-last, in bf16
where the hardware gains. Nothing synchronises the device within an epoch. A run stops and resumes at any step
and ends, on a CPU with the same threads, in the very same bits.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resode import weights
from resode.blocks import dynamic_blocks
from resode.controls import controls_of, roughness
from resode.data import Batch, Loader
from resode.errors import DivergenceError, Stopped
from resode.models import name_and_options
from resode.models.budget import set_gradients
from resode.training.loop import divergence
from resode.training.loop.cuda_graphs import Captured, recorder
from resode.training.loop.evaluation import Scores, evaluate
from resode.training.loop.progress import Observer, Position, Stopwatch
from resode.training.optim import optimizers
from resode.training.optim.averaging import RECALIBRATION, ParameterAverage, estimate_statistics
from resode.training.optim.schedules import learning_rate
from resode.training.process.allocator import keep_freed_memory
from resode.training.process.device import place
from resode.training.process.distributed import synchronise
from resode.training.process.signals import StopRequest
from resode.training.recipe.experiment import Refinement, Twisting
from resode.training.records import checkpoints
from resode.training.records.run import Run, format_row
from resode.training.setup.changes import Carry, changed
from resode.training.setup.image_sizes import resized, size_at
from resode.training.setup.memory import compiled, fall_back, fitted, reconstruction_error
from resode.training.setup.preparation import Setup, image_shape


@dataclass
class Trainer:
    """The state of a run in progress, and its steps."""

    setup: Setup
    run: Run
    observer: Observer
    position: Position = field(default_factory=Position)
    rows: list[dict[str, str]] = field(default_factory=list)  # of metrics.csv

    def __post_init__(self) -> None:
        keep_freed_memory()
        experiment, self.world = self.setup.experiment, self.setup.world
        self.first = self.setup  # with the network that training begins with
        self.adopt(self.setup)
        self.average = ParameterAverage(self.module, experiment.average.decay) if experiment.average else None
        self.steps = self.setup.training.steps
        self.iterations = experiment.epochs * self.steps
        # Sums over the epoch (loss, correct, samples), and the first iteration that was not finite.
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.setup.device)
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=self.setup.device)
        self.began = self.saved = time.monotonic()
        self.free_reading = self.setup.device.type == "cpu"  # where a value can be read without waiting

    def adopt(self, setup: Setup) -> None:
        """Train this network from now on, with an optimizer that has no state yet."""
        experiment, module = setup.experiment, setup.module
        self.setup = setup
        if experiment.sync_batchnorm and self.world.size > 1:
            synchronise(module)
        self.module = module if module.training else module.train()  # parts that are frozen stay so
        self.optimizer = optimizers.build(module, experiment.optimizer)
        self.adopt_methods()
        self.fixed_evaluations = sum(len(block.evaluations) for block in dynamic_blocks(module))

    def adopt_methods(self) -> None:
        """Compile and record what is to be, by the gradient methods of the network."""
        experiment, device = self.setup.experiment, self.setup.device
        if self.position.fallen_back:
            fall_back(experiment, self.module, image_shape(self.setup.dataset))
        forward = compiled(self.module) if experiment.compile else self.module
        self.forward: Callable[[Tensor], Tensor] = self.world.data_parallel(forward, self.module)
        records = recorder(
            self.module, device, experiment.cuda_graph,
            processes=self.world.size, sparing=experiment.memory_budget is not None,
        )  # fmt: skip
        self.captured: Captured | None = None
        if records is not None:
            optimizers.keep_learning_rates(self.optimizer, device)
            self.captured = Captured(records, self.observer.message)

    def start_from(self, optimizer_state: Mapping[str, Tensor]) -> None:
        """Begin with this state of the optimizer."""
        optimizers.load_state_tensors(self.optimizer, self.module, optimizer_state)

    # ------------------------------------------------------------ the loop

    def train(self, stop: StopRequest) -> None:
        """Train to the end, from wherever the position is."""
        experiment, position = self.setup.experiment, self.position
        while position.epoch < experiment.epochs:
            clock = Stopwatch(position.epoch_seconds)
            while position.step < self.steps:
                self.change_where_due()
                try:
                    self.step()
                except DivergenceError as error:  # of an adaptive solver
                    raise DivergenceError(
                        f"diverged at iteration {position.iteration}: {error}; nothing of it was saved"
                    ) from None
                position.epoch_seconds = clock.seconds
                bad, signal, due = self.asked(stop)
                if bad:
                    self.diverged(position.iteration)
                if signal:
                    self.stop(signal)
                if due:
                    with clock.paused():
                        self.save()
            self.check_finite()  # waits for a GPU to have done the steps
            position.epoch_seconds = clock.seconds
            drift = self.check_drift()
            validation = self.validate(stop)
            row = self.finish_epoch(validation, drift)
            self.observer.epoch_ended(row)
            last = position.epoch == experiment.epochs
            if last or position.epoch % experiment.checkpoint.every == 0:
                self.save()
        self.optimizer.zero_grad()  # which gives their memory back

    def asked(self, stop: StopRequest) -> tuple[bool, int, bool]:
        """After a step: has it diverged, which signal asks to stop, is it time to save? In any process."""
        bad = self.free_reading and bool(self.first_bad >= 0)
        due = time.monotonic() - self.saved > 60 * self.setup.experiment.checkpoint.minutes
        bad_, signal, due_ = self.world.all_reduce_max((bad, stop.number or 0, due and self.world.first))
        return bool(bad_), int(signal), bool(due_)

    def step(self) -> None:
        """One iteration: data, forward, backward, update."""
        position = self.position
        batch = self.setup.training.batch(position.epoch, position.step)
        size = size_at(self.setup.experiment.sizes, position.iteration, self.iterations)
        batch = dataclasses.replace(batch, inputs=resized(batch.inputs, size))
        optimizers.set_learning_rate(self.optimizer, self.learning_rate(position.iteration))
        drain_evaluations(self.module)  # those of an evaluation in between
        if self.captured is not None:
            loss, logits = self.captured(self.compute, batch)
        else:
            loss, logits = self.compute(batch)
        position.function_evaluations += self.fixed_evaluations + drain_evaluations(self.module)
        if self.average is not None:
            self.average.update(self.module, position.iteration)
        self.count(loss, logits, batch)
        position.step += 1
        position.iteration += 1

    def compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Forward, backward, update: loss and logits.

        A GPU may record it: no number of the host's changes from step to step, none of the device's is read.
        """
        logits, loss = self.predict(batch)
        self.optimizer.zero_grad()
        self.with_smoothness(batch.scale * loss).backward()
        self.update()
        return loss.detach(), logits.detach()

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The forward pass: logits and loss."""
        experiment = self.setup.experiment
        with (
            torch.autocast(self.setup.device.type, torch.bfloat16, enabled=experiment.precision == "bf16"),
            torch.compiler.set_stance("force_eager") if experiment.compile and self.is_odd else nullcontext(),
        ):
            logits = self.forward(batch.inputs)
        return logits, batch_loss(logits.float(), batch, experiment.label_smoothing)

    @property
    def is_odd(self) -> bool:
        """Whether this is a last step of fewer images, for which a graph would take longer than it saves."""
        incomplete = self.setup.training.samples % self.setup.training.batch_size != 0
        return incomplete and 0 < self.position.step == self.steps - 1

    def update(self) -> None:
        """New parameters from their gradients, as the optimizer says."""
        experiment = self.setup.experiment
        if experiment.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), experiment.clip_norm)
        self.optimizer.step()
        if experiment.box is not None:
            for controls in controls_of(self.module):
                controls.clamp(experiment.box)

    def with_smoothness(self, loss: Tensor) -> Tensor:
        """The loss that is minimised: with the roughness of theta(t), where that is asked for."""
        section = self.setup.experiment.smoothness
        if section is None:
            return loss
        term = roughness(self.module, section.total_variation, section.dirichlet)
        return loss if term is None else loss + term

    def change_where_due(self) -> None:
        """Refine the time grids, or twist, at the iterations that the experiment names."""
        position = self.position
        for change in self.setup.experiment.changes[position.level :]:
            if position.iteration < min(round(change.at * self.iterations), self.iterations - 1):
                return
            state = dict(optimizers.state_tensors(self.optimizer, self.module))
            setup, carry = changed_setup(self.setup, change)
            self.adopt(setup)
            if isinstance(change, Refinement):
                estimate_statistics(self.module, self.setup.statistics_inputs(RECALIBRATION))
            optimizers.load_state_tensors(self.optimizer, self.module, optimizers.carry_state(state, carry))
            if self.average is not None:
                self.average.adopt(self.module, carry(self.average.parameters))
            position.level += 1
            what = "finer time grids" if isinstance(change, Refinement) else f"twisted ({change.tie})"
            self.observer.message(
                f"iteration {position.iteration}: {what}, {self.setup.parameters:,} parameters"
            )

    def learning_rate(self, iteration: int) -> float:
        """The learning rate of an iteration."""
        experiment = self.setup.experiment
        peak = experiment.optimizer.lr
        return learning_rate(experiment.schedule, peak, iteration, self.iterations, self.steps)

    @torch.no_grad()
    def count(self, loss: Tensor, logits: Tensor, batch: Batch) -> None:
        """Add a step to the sums of its epoch, and note the first loss that is not finite."""
        if batch.samples:
            self.sums[0] += loss.double() * batch.samples
            self.sums[1] += (logits.argmax(1) == batch.targets).sum()
            self.sums[2] += batch.samples
        bad = ~torch.isfinite(loss) & (self.first_bad < 0)
        self.first_bad.masked_fill_(bad, self.position.iteration)
        known = loss.item() if self.free_reading else None
        self.observer.stepped(self.position.epoch, self.position.step, known)

    # ------------------------------------------------------------ the end of an epoch

    def evaluated_module(self) -> nn.Module:
        """The network to evaluate and keep: the average with its own statistics, or the network itself."""
        section = self.setup.experiment.average
        if self.average is None or section is None:
            return self.module
        averaged = self.average.apply_to(self.module)
        estimate_statistics(averaged, self.setup.statistics_inputs(section.samples))
        return averaged

    def check_drift(self) -> float | None:
        """How far the states that reversible gradients recover have drifted; too far ends, or falls back."""
        inputs = self.setup.training.batch(self.position.epoch, 0).inputs
        with torch.autocast(
            self.setup.device.type, torch.bfloat16, enabled=self.setup.experiment.precision == "bf16"
        ):
            error = reconstruction_error(self.module, inputs)
        section = self.setup.experiment.drift
        if error is not None:
            (error,) = self.world.all_reduce_max([error])
        if error is None or error <= section.limit:
            return error
        what = (
            f"the states that reversible gradients recover differ from the first ones by {error:.1e} "
            f"(drift.limit {section.limit:g})"
        )
        if section.beyond == "stop":
            self.save()
            raise DivergenceError(
                f"epoch {self.position.epoch + 1}: {what}; all is saved. Start anew with gradient "
                "checkpointed, anchors ({name: reversible, anchor: 8}) or drift.beyond=fall_back, and "
                "another --out"
            )
        self.observer.message(f"epoch {self.position.epoch + 1}: {what}; checkpointed gradients from here on")
        self.position.fallen_back = True
        self.adopt_methods()
        return error

    def validate(self, stop: StopRequest) -> Scores | None:
        """Scores on the held-out images, where there are any and this epoch asks for them."""
        experiment, epoch = self.setup.experiment, self.position.epoch + 1
        due = epoch % experiment.evaluation.every == 0 or epoch == experiment.epochs
        if self.setup.validation is None or not due:
            return None
        return self.evaluate(self.evaluated_module(), self.setup.validation, stop)

    def evaluate(self, module: nn.Module, loader: Loader, stop: StopRequest) -> Scores:
        """Evaluate; a stop request between two batches saves and ends the run (resume evaluates anew).

        Several processes each do their part, and heed it afterwards.
        """
        self.world.broadcast_buffers(module)
        done = 0

        def on_batch(samples: int) -> None:
            nonlocal done
            done += samples * self.world.size
            self.observer.evaluating(min(done, loader.samples), loader.samples)
            if stop.number is not None and self.world.size == 1:
                self.stop(stop.number)

        precision = self.setup.experiment.evaluation.precision
        scores = evaluate(module, loader, precision=precision, on_batch=on_batch, world=self.world)
        (signal,) = self.world.all_reduce_max([stop.number or 0])
        if signal:
            self.stop(int(signal))
        return scores

    def finish_epoch(self, validation: Scores | None, drift: float | None = None) -> dict[str, Any]:
        """Write the row of the epoch that is complete and go to the next."""
        position = self.position
        loss, correct, samples = self.world.all_reduce_sum(self.sums).tolist()
        row = {
            "epoch": position.epoch + 1,
            "iterations": position.iteration,
            "learning_rate": self.learning_rate(position.iteration - 1),
            "train_loss": loss / samples,
            "train_accuracy": 100 * correct / samples,
            "validation_loss": validation.loss if validation else None,
            "validation_accuracy": validation.top1_accuracy if validation else None,
            "seconds": round(position.epoch_seconds, 3),
            "images_per_second": round(samples / max(position.epoch_seconds, 1e-9), 1),
            "peak_memory_bytes": self.setup.peak_memory(),
            "function_evaluations": self.function_evaluations(),
            "reconstruction_error": drift,
        }
        self.rows.append(format_row(row))
        if self.world.first:
            self.run.write_rows(self.rows)
        self.sums.zero_()
        position.epoch, position.step, position.epoch_seconds = position.epoch + 1, 0, 0.0
        position.function_evaluations = 0
        return row

    def function_evaluations(self) -> float | None:
        """Evaluations of fields in a training step, on average over the epoch; None without dynamic blocks.

        With fixed steps those of the forward pass; of adaptive solvers all that were made, backwards too.
        """
        return self.position.function_evaluations / self.steps if dynamic_blocks(self.module) else None

    # ------------------------------------------------------------ saving and stopping

    def save(self) -> None:
        """Write a checkpoint; a state that is not finite is never written."""
        self.check_finite()
        now = time.monotonic()
        self.position.wall_seconds += now - self.began
        self.began = self.saved = now
        training = dict(optimizers.state_tensors(self.optimizer, self.module))
        training = {f"optimizer/{name}": tensor for name, tensor in training.items()}
        if self.average is not None:
            training |= {f"average/{name}": tensor for name, tensor in self.average.parameters.items()}
        training["sums"] = self.world.all_reduce_sum(self.sums)
        for rank, states in enumerate(self.world.all_gather(_generators(self.setup.device))):
            training |= {f"generator/{name}{f'.{rank}' if rank else ''}": t for name, t in states.items()}
        if self.world.first:
            checkpoints.write(
                self.run.checkpoints,
                self.position.iteration,
                lambda path: self.setup.save_weights(self.module, path, self.present()),
                {name: tensor.detach().cpu() for name, tensor in training.items()},
                {**vars(self.position), "rows": self.rows},
                self.setup.experiment.checkpoint.keep,
            )
        self.world.barrier()

    def present(self) -> dict[str, Any]:
        """What a checkpoint's weights say of themselves."""
        of = f"{self.position.iteration} of {self.iterations}"
        return {"iterations": of, "averaged": False} if self.average is not None else {"iterations": of}

    @torch.no_grad()
    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Go back to the state of a checkpoint."""
        setup = self.first
        for change in setup.experiment.changes[: checkpoint.state.get("level", 0)]:
            setup, _ = changed_setup(setup, change)
        self.adopt(setup)
        weights.load_into(self.module, checkpoint.model)
        groups: dict[str, dict[str, Tensor]] = {}
        for path, tensor in checkpoint.training.items():
            group, _, name = path.partition("/")
            groups.setdefault(group, {})[name] = tensor
        self.optimizer.state.clear()
        optimizers.load_state_tensors(self.optimizer, self.module, groups.get("optimizer", {}))
        if self.average is not None:
            self.average.adopt(self.module, groups["average"])
        self.sums.copy_(checkpoint.training["sums"]).mul_(self.world.first)
        self.first_bad.fill_(-1)
        suffix = f".{self.world.rank}" if self.world.rank else ""
        if f"cpu{suffix}" in groups["generator"]:  # a process that is new keeps its own
            kinds = {kind: groups["generator"].get(kind + suffix) for kind in ("cpu", "cuda")}
            _restore_generators({k: t for k, t in kinds.items() if t is not None}, self.setup.device)
        state = dict(checkpoint.state)
        self.rows = state.pop("rows")
        self.position = Position(**state)
        self.adopt_methods()

    def stop(self, number: int) -> None:
        """Save and end the run because a signal asked for it."""
        self.save()
        position = self.position
        raise Stopped(
            number,
            f"stopped at iteration {position.iteration} (epoch {position.epoch + 1}, step {position.step} "
            f"of {self.steps}) and saved; go on with: resode train --resume --out {self.run.path}",
        )

    def check_finite(self) -> None:
        """End the run where the loss or a parameter is not finite."""
        (first,) = self.world.all_reduce_max([int(self.first_bad)])
        if first >= 0:
            self.diverged(int(first))
        if divergence.not_finite(self.module) is not None:
            self.diverged(self.position.iteration)

    def diverged(self, iteration: int) -> None:
        """Replay from the last checkpoint with every layer watched, and say where it happened."""
        checkpoint, _ = checkpoints.newest(self.run.checkpoints)
        assert checkpoint is not None
        self.observer.message(
            f"the loss is not finite; replaying from iteration {checkpoint.iteration} to name the layer"
        )
        self.observer, self.average = Observer(), None
        what = self._replay(checkpoint, iteration)
        position = self.position
        raise DivergenceError(
            f"diverged at iteration {position.iteration} (epoch {position.epoch + 1}, step "
            f"{position.step + 1} of {self.steps}): {what} is not finite; nothing of it was saved. Lower "
            f"optimizer.lr (now {self.setup.experiment.optimizer.lr:g}) or set clip_norm, and start anew "
            "with another --out"
        )

    def _replay(self, checkpoint: checkpoints.Checkpoint, iteration: int) -> str:
        self.restore(checkpoint)
        while self.position.iteration <= min(iteration, self.iterations - 1):
            self.change_where_due()
            self.forward, self.captured = self.world.data_parallel(self.module, self.module), None
            before = Position(**vars(self.position))
            with divergence.watching(self.module) as finding, torch.compiler.set_stance("force_eager"):
                self.step()
            what = (
                finding.what
                or divergence.not_finite(self.module, gradients=True)
                or divergence.not_finite(self.module)
                or ("the loss" if self.first_bad >= 0 else None)
            )
            found = [each for each in self.world.all_gather(what) if each is not None]
            if found:
                self.position = before
                return found[0]
            if self.position.step == self.steps:
                self.position.epoch, self.position.step = self.position.epoch + 1, 0
        return "the loss (the replay stayed finite)"


def changed_setup(setup: Setup, change: Refinement | Twisting) -> tuple[Setup, Carry]:
    """The set-up with another network, and how tensors come over."""
    network, carry = changed(setup.module, change)
    made = name_and_options(network)
    card = dataclasses.replace(setup.card, specification=weights.Specification(*made) if made else None)
    if setup.experiment.memory_budget is not None:
        set_gradients(network, fitted(setup.experiment, network, image_shape(setup.dataset))[0].methods)
    return dataclasses.replace(setup, module=place(network, setup.device), card=card), carry


def drain_evaluations(module: nn.Module) -> int:
    """The evaluations that adaptive solvers have counted since the last call."""
    counted = 0
    for block in dynamic_blocks(module):
        counted += block.function_evaluations
        block.function_evaluations = 0
    return counted


def batch_loss(logits: Tensor, batch: Batch, smoothing: float) -> Tensor:
    """Mean cross-entropy; with mixup w CE(y) + (1 - w) CE(y') (Zhang et al. 2018, arXiv 1710.09412)."""
    if batch.partners is None or batch.weight is None:
        return F.cross_entropy(logits, batch.targets, label_smoothing=smoothing)
    first = F.cross_entropy(logits, batch.targets, label_smoothing=smoothing, reduction="none")
    second = F.cross_entropy(logits, batch.partners, label_smoothing=smoothing, reduction="none")
    loss: Tensor = (batch.weight * first + (1 - batch.weight) * second).mean()
    return loss


def _generators(device: torch.device) -> dict[str, Tensor]:
    """The states of the global generators (dropout alone uses them)."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def _restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
