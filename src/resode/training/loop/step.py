"""The training step: data, forward, backward, update, counting; plain PyTorch, without a run directory.

A step is a function of the state and the seed. Images stay on the device as uint8 and are augmented there in
batches; convolutions run channels-last, in bf16 where the hardware gains. Nothing synchronises the device.
"""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resode.data import Batch
from resode.statistics import RECALIBRATION, estimate_statistics
from resode.training.loop.callbacks import Callback
from resode.training.loop.cuda_graphs import GraphedStep, cuda_graphs
from resode.training.optim import optimizers
from resode.training.optim.averaging import ParameterAverage
from resode.training.optim.schedules import learning_rate
from resode.training.process.sync_batchnorm import convert_sync_batchnorm
from resode.training.setup.execution import compiled
from resode.training.setup.image_sizes import resized, size_at
from resode.training.setup.preparation import Setup


@dataclass
class Position:
    """Where a run stands: `step` of `epoch` is the next one."""

    epoch: int = 0
    step: int = 0
    iteration: int = 0
    epoch_seconds: float = 0.0  # training steps of this epoch
    wall_seconds: float = 0.0  # everything so far
    resumes: int = 0
    level: int = 0  # changes of the network so far
    function_evaluations: int = 0  # of the network's fields, in this epoch
    fallen_back: bool = False  # from reversible gradients, whose states had drifted


@dataclass
class Trainer:
    """The state of a training, and its step.

    Args:
        setup: network, data and settings.
        callback: is called after each step, and with messages.
        position: of the next step.
    """

    setup: Setup
    callback: Callback = field(default_factory=Callback)
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        experiment, device = self.setup.experiment, self.setup.device
        self.initial = self.setup  # with the network that training begins with
        self.adopt(self.setup)
        self.average = ParameterAverage(self.module, experiment.average.decay) if experiment.average else None
        self.steps = self.setup.training.steps  # of an epoch
        self.iterations = experiment.epochs * self.steps
        # Sums over the epoch (loss, correct, samples), and the first iteration whose loss is not finite.
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self.reads_freely = device.type == "cpu"  # values can be read without waiting for the device

    def adopt(self, setup: Setup) -> None:
        """Train the network of this set-up from now on, with an optimizer that has no state yet."""
        self.setup, module = setup, setup.module
        if setup.experiment.sync_batchnorm and setup.world.size > 1:
            convert_sync_batchnorm(module)
        self.module = module if module.training else module.train()  # frozen modules stay in evaluation mode
        self.optimizer = optimizers.build(module, setup.experiment.optimizer)
        self.build_forward()

    def build_forward(self) -> None:
        """Compile the forward pass and provide CUDA graphs, as gradient methods and settings allow."""
        setup = self.setup
        if self.position.fallen_back:
            setup.extension.fall_back()
        forward = compiled(self.module) if setup.experiment.compile else self.module
        self.forward: Callable[[Tensor], Tensor] = self.data_parallel(forward)
        self.graphed: GraphedStep | None = None
        graphs = cuda_graphs(setup)
        if graphs is not None:
            optimizers.keep_learning_rates(self.optimizer, setup.device)
            self.graphed = GraphedStep(graphs, self.callback.message)

    def run_eagerly(self) -> None:
        """Run the next steps without compilation and CUDA graphs."""
        self.forward, self.graphed = self.data_parallel(self.module), None

    def data_parallel(self, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Average gradients over ranks, if there are several."""
        setup = self.setup
        unused = setup.extension.skips_parameters()
        return setup.world.data_parallel(forward, find_unused_parameters=unused)

    def load_optimizer(self, state: Mapping[str, Tensor]) -> None:
        """Load the optimizer's state from `<state>/<parameter>` -> tensor."""
        optimizers.load_state_tensors(self.optimizer, self.module, state)

    # ------------------------------------------------------------ a step

    def step(self) -> None:
        """One iteration: data, forward, backward, update, counting."""
        position, extension = self.position, self.setup.extension
        batch = self.setup.training.batch(position.epoch, position.step)
        size = size_at(self.setup.experiment.sizes, position.iteration, self.iterations)
        batch = dataclasses.replace(batch, inputs=resized(batch.inputs, size))
        optimizers.set_learning_rate(self.optimizer, self.learning_rate(position.iteration))
        extension.reset_counters()
        loss, logits = self.graphed(self.compute, batch) if self.graphed is not None else self.compute(batch)
        position.function_evaluations += extension.evaluations() or 0
        if self.average is not None:
            self.average.update(self.module, position.iteration)
        self.count(loss, logits, batch)
        position.step += 1
        position.iteration += 1

    def compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Forward, backward, update: loss and logits.

        Safe to record in a CUDA graph: no host scalar changes from step to step, and nothing synchronises.
        """
        logits, loss = self.predict(batch)
        self.optimizer.zero_grad()
        self.objective(batch.scale * loss).backward()
        self.update()
        return loss.detach(), logits.detach()

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The forward pass: logits and loss."""
        experiment = self.setup.experiment
        eager = experiment.compile and self.is_smaller
        with (
            torch.autocast(self.setup.device.type, torch.bfloat16, enabled=experiment.precision == "bf16"),
            torch.compiler.set_stance("force_eager") if eager else nullcontext(),
        ):
            logits = self.forward(batch.inputs)
        own = self.setup.loss
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # the loss is never in bf16
        loss = (
            batch_loss(logits, batch, experiment.label_smoothing)
            if own is None
            else own(logits, batch.targets)
        )
        return logits, loss

    @property
    def is_smaller(self) -> bool:
        """Whether this is an epoch's last step, on fewer images, for which compiling takes too long."""
        incomplete = self.setup.training.samples % self.setup.training.batch_size != 0
        return incomplete and 0 < self.position.step == self.steps - 1

    def objective(self, loss: Tensor) -> Tensor:
        """What is minimised: the loss and the penalty of the network, if it has one."""
        penalty = self.setup.extension.penalty()
        return loss if penalty is None else loss + penalty

    def update(self) -> None:
        """Update the parameters from their gradients."""
        clip_norm = self.setup.experiment.clip_norm
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), clip_norm)
        self.optimizer.step()
        self.setup.extension.project()

    @torch.no_grad()
    def count(self, loss: Tensor, logits: Tensor, batch: Batch) -> None:
        """Add a step to the sums of its epoch, and note the first loss that is not finite."""
        if batch.samples:
            self.sums[0] += loss.double() * batch.samples
            self.sums[1] += (logits.argmax(1) == batch.targets).sum()
            self.sums[2] += batch.samples
        bad = ~torch.isfinite(loss) & (self.first_bad < 0)
        self.first_bad.masked_fill_(bad, self.position.iteration)
        value = loss.item() if self.reads_freely else None
        self.callback.stepped(self.position.epoch, self.position.step, value)

    def learning_rate(self, iteration: int) -> float:
        """The learning rate of an iteration."""
        experiment = self.setup.experiment
        peak = experiment.optimizer.lr
        return learning_rate(experiment.schedule, peak, iteration, self.iterations, self.steps)

    # ------------------------------------------------------------ changes of the network

    def change_where_due(self) -> None:
        """Change the network (finer time grids, twisted convolutions) at the iterations of the schedule."""
        position = self.position
        for change in self.setup.experiment.changes[position.level :]:
            if position.iteration < min(round(change.at * self.iterations), self.iterations - 1):
                return
            state = dict(optimizers.state_tensors(self.optimizer, self.module))
            setup, made = self.setup.changed(change)
            self.adopt(setup)
            if made.new_statistics:
                estimate_statistics(self.module, setup.statistics_inputs(RECALIBRATION))
            self.load_optimizer(optimizers.carry_state(state, made.transfer))
            if self.average is not None:
                self.average.adopt(self.module, made.transfer(self.average.parameters))
            position.level += 1
            self.callback.message(
                f"iteration {position.iteration}: {made.description}, {setup.parameters:,} parameters"
            )

    def return_to(self, level: int) -> None:
        """Train the network as it is after the first `level` changes; its weights are to be loaded."""
        setup = self.initial
        for change in setup.experiment.changes[:level]:
            setup, _ = setup.changed(change)
        self.adopt(setup)


def batch_loss(logits: Tensor, batch: Batch, smoothing: float) -> Tensor:
    """Mean cross-entropy; with mixup w CE(y) + (1 - w) CE(y') (Zhang et al. 2018, arXiv 1710.09412)."""
    if batch.partners is None or batch.weight is None:
        return F.cross_entropy(logits, batch.targets, label_smoothing=smoothing)
    first = F.cross_entropy(logits, batch.targets, label_smoothing=smoothing, reduction="none")
    second = F.cross_entropy(logits, batch.partners, label_smoothing=smoothing, reduction="none")
    loss: Tensor = (batch.weight * first + (1 - batch.weight) * second).mean()
    return loss
