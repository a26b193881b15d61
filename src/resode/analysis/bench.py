"""Benchmark of a recipe on this machine: speed of training and inference, time by phase, hardware peaks.

All measurements alternate in one process: a window of training steps of the engine (with data, augmentation
and metrics), a window of the plain loop on the same network, and so on, so that noise of the machine affects
all alike. The plain loop is the straightforward one: fp32, NCHW, eager, one fixed batch, `.item()` each step.
A second one reads its batches through a DataLoader with per-image transforms.
"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader, Dataset

from resode import cost
from resode.blocks import adaptive_solvers
from resode.data import Batch, Images, Loader
from resode.gradients import unwatched
from resode.inference import Frozen
from resode.mode import mode
from resode.models.budget import chain_owners, set_gradients
from resode.training.loop.cuda_graphs import WARM_UP
from resode.training.loop.evaluation import evaluate
from resode.training.loop.step import Position, Trainer
from resode.training.process.allocator import keeping_freed_memory
from resode.training.setup.preparation import Setup

PHASES = ("data", "forward", "backward", "update")


@dataclass(frozen=True)
class Bench:
    """Results of `bench`. Rates are in images per second.

    Args:
        training: rate of the engine's training, with data, augmentation and metrics.
        inference: rate of the engine's evaluation.
        plain_training: rate of the plain loop on one fixed batch.
        loading_training: rate of the plain loop with a DataLoader.
        plain_inference: rate of the plain forward pass on one fixed batch.
        frozen_inference: rate of evaluating the frozen network in bfloat16; None unless the recipe compiles,
            as freezing does.
        phases: share of each of `PHASES` in the time of a training step (on a GPU without CUDA graph).
        peak_memory_bytes: peak memory of the process, or of the GPU's allocator.
        operations: multiplications and additions per second in training, counting three forward passes a
            step; None if they cannot be counted, or depend on the images (an adaptive solver).
        matrix_peak: operations per second of a large matrix product in the precision of the run.
        bandwidth: bytes read and written per second in a large copy.
    """

    training: float
    inference: float
    plain_training: float
    loading_training: float
    plain_inference: float
    frozen_inference: float | None
    phases: dict[str, float]
    peak_memory_bytes: int
    operations: float | None
    matrix_peak: float
    bandwidth: float


@keeping_freed_memory()
@unwatched()  # for the time alone
def bench(setup: Setup, seconds: float = 20.0, rounds: int = 4) -> Bench:
    """Measure a recipe prepared by `prepare`; trains its network for some steps.

    Images have their full size, even if the recipe begins with smaller ones (`sizes`).

    Args:
        setup: network, data, precision and device.
        seconds: approximate duration of all windows together.
        rounds: windows of each kind, of which the median is reported.
    """
    setup = replace(setup, experiment=setup.experiment.replace(sizes=()))
    trainer = Trainer(setup)
    for _ in range(1 if trainer.graphed is None else WARM_UP):
        _rate(lambda: _step(trainer), 0.0, setup.device)
    peak_memory_bytes, plain = setup.peak_memory(), PlainLoop(setup)
    evaluation = setup.test() or setup.validation or setup.training
    batches = _endless(evaluation)
    operations = _operations(setup)
    kinds: dict[str, Callable[[], int]] = {
        "training": lambda: _step(trainer),
        "plain_training": plain.step,
        "loading_training": plain.loaded_step,
        "inference": lambda: _evaluated(setup, next(batches)),
        "plain_inference": plain.predict,
    }
    if setup.experiment.compile:
        frozen = Frozen(copy.deepcopy(setup.module))
        precision = setup.experiment.precision
        kinds["frozen_inference"] = lambda: evaluate(frozen, [next(batches)], precision=precision).samples
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name, run in kinds.items():
            rate = _rate(run, seconds / rounds / len(kinds) if number else 0.0, setup.device)
            if number:  # the first round compiles and warms up
                rates[name].append(rate)
    medians: dict[str, Any] = {"frozen_inference": None}
    medians |= {name: median(each) for name, each in rates.items()}
    half = setup.experiment.precision == "bf16"
    return Bench(
        **medians,
        phases=_phases(trainer, seconds / 10),
        peak_memory_bytes=peak_memory_bytes,
        operations=None if operations is None else operations * medians["training"],
        matrix_peak=_matrix_peak(setup.device, torch.bfloat16 if half else torch.float32),
        bandwidth=_bandwidth(setup.device),
    )


def _operations(setup: Setup) -> int | None:
    """Operations of training for one image.

    None where they depend on the images, and for a user's network that cannot run on meta tensors.
    """
    if adaptive_solvers(setup.module):
        return None
    try:
        return 3 * 2 * cost.multiply_adds(setup.module, setup.data.shape)
    except Exception:  # user code that reads values can raise anything
        return None


def _endless(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from loader


def _step(trainer: Trainer) -> int:
    """Make one training step of the engine on a full batch; returns its number of images."""
    if trainer.position.step >= max(trainer.steps - 1, 1):
        trainer.position = Position(epoch=trainer.position.epoch + 1)
    trainer.step()
    return min(trainer.setup.experiment.batch_size, trainer.setup.training.samples)


def _evaluated(setup: Setup, batch: Batch) -> int:
    return evaluate(setup.module, [batch], precision=setup.experiment.evaluation.precision).samples


def _rate(run: Callable[[], int], seconds: float, device: torch.device) -> float:
    """Images per second over at least two calls, after one call that warms the caches."""
    run()
    _synchronize(device)
    images, begin = 0, time.perf_counter()
    calls = 0
    while calls < 2 or time.perf_counter() - begin < seconds:
        images, calls = images + run(), calls + 1
    _synchronize(device)
    return images / (time.perf_counter() - begin)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _phases(trainer: Trainer, seconds: float) -> dict[str, float]:
    """Share of each phase in the time of a step, measured by synchronising between them."""
    sums, device, begin = dict.fromkeys(PHASES, 0.0), trainer.setup.device, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        marks = [time.perf_counter()]

        def mark(marks: list[float] = marks) -> None:
            _synchronize(device)
            marks.append(time.perf_counter())

        batch = trainer.setup.training.batch(trainer.position.epoch, 0)
        mark()
        logits, loss = trainer.predict(batch)
        mark()
        trainer.optimizer.zero_grad()
        trainer.objective(loss).backward()
        mark()
        trainer.update()
        trainer.count(loss.detach(), logits.detach(), batch)
        mark()
        for phase, start, end in zip(PHASES, marks, marks[1:], strict=False):
            sums[phase] += end - start
    return {phase: each / sum(sums.values()) for phase, each in sums.items()}


# ---------------------------------------------------------------- the plain loop


class PlainLoop:
    """The straightforward loop on a copy of the network: fp32, NCHW, eager, all activations stored."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.module = copy.deepcopy(setup.module).train()
        self.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in torch's types
        set_gradients(self.module, ["stored"] * len(chain_owners(self.module)))
        self.optimizer = torch.optim.SGD(self.module.parameters(), 1e-4, momentum=0.9)
        batch = setup.training.batch(0, 0)
        self.inputs, self.targets = batch.inputs.float().contiguous(), batch.targets
        self.batches = self._endless()

    def step(self) -> int:
        """Make a step on the fixed batch; returns its number of images."""
        return self._step(self.inputs, self.targets)

    def loaded_step(self) -> int:
        """Make a step on a batch of the DataLoader; returns its number of images."""
        inputs, targets = next(self.batches)
        return self._step(inputs.to(self.setup.device), targets.to(self.setup.device))

    @torch.no_grad()
    def predict(self) -> int:
        """Make a forward pass in evaluation mode; returns its number of images."""
        with mode(self.module, training=False):
            self.module(self.inputs).argmax(1).cpu()
        return len(self.targets)

    def _step(self, inputs: Tensor, targets: Tensor) -> int:
        loss = F.cross_entropy(self.module(inputs), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()
        return len(targets)

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        setup = self.setup
        dataset = TransformedImages(setup.data.dataset.train, setup.data.train_index, setup.training)
        size = min(setup.experiment.batch_size, len(dataset))
        loader = DataLoader(dataset, size, shuffle=True, drop_last=True)
        while True:
            yield from loader


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Training images, padded, cropped, flipped and normalised one by one."""

    def __init__(self, images: Images, index: np.ndarray, loader: Loader) -> None:
        self.images, self.index, self.augmentation = images, index, loader.augmentation
        self.mean, self.std = torch.tensor(0.5), torch.tensor(0.25)  # the values do not affect the time

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, sample: int) -> tuple[Tensor, int]:
        at = int(self.index[sample])
        image = torch.from_numpy(np.array(self.images.pixels[at])).permute(2, 0, 1)
        height, width = image.shape[1:]
        if pad := self.augmentation.crop:
            image = F.pad(image, (pad,) * 4)
            row, column = (int(torch.randint(2 * pad + 1, ())) for _ in range(2))
            image = image[:, row : row + height, column : column + width]
        if self.augmentation.flip and torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image.float() / 255 - self.mean) / self.std, int(self.images.labels[at])


# ---------------------------------------------------------------- hardware peaks


def _matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square matrix product, the best of several."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = torch.ones(n, n, dtype=dtype, device=device), torch.ones(n, n, dtype=dtype, device=device)
    c = a @ b
    return 2 * n**3 / _fastest(lambda: torch.mm(a, b, out=c))


def _bandwidth(device: torch.device) -> float:
    """Bytes read and written per second in a copy of 256 MB, the best of several."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source).zero_()
    return 2 * source.numel() * 4 / _fastest(lambda: target.copy_(source))


def _fastest(run: Callable[[], object]) -> float:
    """Shortest time of a call in seconds; the timer synchronises CUDA."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=0.5).times)
