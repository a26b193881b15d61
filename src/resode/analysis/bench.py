"""Bench: how fast a recipe trains and infers here, where the time goes, and how near that is to the machine.

Everything is timed in turns within one process: a window of training steps by the engine (data, augmentation
and bookkeeping included), a window of the plain loop on the same network, and so on, so that a noisy machine
is noisy for all. The plain loop is what one writes first: fp32, NCHW, eager, one fixed batch, `.item()` each
step; another one reads its batches through a DataLoader with transforms of each image.
"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from resode import cost
from resode.data import Batch, Images, Loader
from resode.inference import Frozen
from resode.mode import mode
from resode.models.budget import chain_owners, set_gradients
from resode.training.loop.cuda_graphs import WARM
from resode.training.loop.evaluation import evaluate
from resode.training.loop.progress import Observer, Position
from resode.training.loop.trainer import Trainer
from resode.training.records.run import Run
from resode.training.setup.preparation import Setup, image_shape

PARTS = ("data", "forward", "backward", "update")


@dataclass(frozen=True)
class Bench:
    """What was measured; rates are images a second.

    Args:
        training: of the engine, with data, augmentation and bookkeeping.
        inference: of the evaluation.
        plain_training: of the plain loop on one fixed batch.
        loading_training: of the plain loop with a DataLoader.
        plain_inference: of the plain forward pass on one fixed batch.
        frozen_inference: of the evaluation of the frozen network in bfloat16; None of a recipe that compiles
            nothing, for this may.
        parts: the share of a step's time in each of `PARTS` (on a GPU of a step that is no graph).
        peak_memory_bytes: of the process, or of the GPU's allocator.
        operations: multiplications and additions a second in training: three forward passes a step; None of a
            network that cannot be counted.
        matrix_peak: the same of a large matrix product here, in the precision of the run.
        bandwidth: bytes a second of a large copy, those read and those written.
    """

    training: float
    inference: float
    plain_training: float
    loading_training: float
    plain_inference: float
    frozen_inference: float | None
    parts: dict[str, float]
    peak_memory_bytes: int
    operations: float | None
    matrix_peak: float
    bandwidth: float


def bench(setup: Setup, seconds: float = 20.0, rounds: int = 4) -> Bench:
    """Measure a recipe that `prepare` has set up; its network is trained a little.

    All images are whole, also of a recipe that begins with smaller ones.

    Args:
        setup: says network, data, precision and device.
        seconds: how long all windows take, about.
        rounds: windows of each kind; their median counts.
    """
    setup = replace(setup, experiment=setup.experiment.replace(sizes=()))
    trainer = Trainer(setup, Run(Path("/nonexistent")), Observer())
    for _ in range(1 if trainer.captured is None else WARM):
        _rate(lambda: _step(trainer), 0.0, setup.device)
    peak_memory_bytes, plain = setup.peak_memory(), Plain(setup)
    evaluation = setup.test() or setup.validation or setup.training
    batches = _endless(evaluation)
    work = _operations(setup)
    kinds: dict[str, Callable[[], int]] = {
        "training": lambda: _step(trainer),
        "plain_training": plain.step,
        "loading_training": plain.loaded_step,
        "inference": lambda: _evaluated(setup, next(batches)),
        "plain_inference": plain.predict,
    }
    if setup.experiment.compile:
        frozen = Frozen(copy.deepcopy(setup.module))
        kinds["frozen_inference"] = lambda: evaluate(frozen, [next(batches)], precision="bf16").samples
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name, do in kinds.items():
            rate = _rate(do, seconds / rounds / len(kinds) if number else 0.0, setup.device)
            if number:  # the first round compiles and warms up
                rates[name].append(rate)
    found: dict[str, Any] = {"frozen_inference": None}
    found |= {name: median(each) for name, each in rates.items()}
    half = setup.experiment.precision == "bf16"
    return Bench(
        **found,
        parts=_parts(trainer, seconds / 10),
        peak_memory_bytes=peak_memory_bytes,
        operations=None if work is None else work * found["training"],
        matrix_peak=_matrix_peak(setup.device, torch.bfloat16 if half else torch.float32),
        bandwidth=_bandwidth(setup.device),
    )


def _operations(setup: Setup) -> int | None:
    """Of training, for an image; None of a network of the user's that asks for numbers."""
    try:
        return 3 * 2 * cost.multiply_adds(setup.module, image_shape(setup.dataset))
    except Exception:  # whatever it does with what it asks for
        return None


def _endless(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from loader


def _step(trainer: Trainer) -> int:
    """A step of the engine on a whole batch; how many images."""
    if trainer.position.step >= max(trainer.steps - 1, 1):
        trainer.position = Position(epoch=trainer.position.epoch + 1)
    trainer.step()
    return min(trainer.setup.experiment.batch_size, trainer.setup.training.samples)


def _evaluated(setup: Setup, batch: Batch) -> int:
    return evaluate(setup.module, [batch], precision=setup.experiment.evaluation.precision).samples


def _rate(do: Callable[[], int], seconds: float, device: torch.device) -> float:
    """Images a second, over two calls or more; one before them finds caches as others left them."""
    do()
    _wait(device)
    images, begin = 0, time.perf_counter()
    calls = 0
    while calls < 2 or time.perf_counter() - begin < seconds:
        images, calls = images + do(), calls + 1
    _wait(device)
    return images / (time.perf_counter() - begin)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parts(trainer: Trainer, seconds: float) -> dict[str, float]:
    """The share of each part of a step, by a clock between them."""
    sums, device, begin = dict.fromkeys(PARTS, 0.0), trainer.setup.device, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        marks = [time.perf_counter()]

        def mark(marks: list[float] = marks) -> None:
            _wait(device)
            marks.append(time.perf_counter())

        batch = trainer.setup.training.batch(trainer.position.epoch, 0)
        mark()
        logits, loss = trainer.predict(batch)
        mark()
        trainer.optimizer.zero_grad()
        trainer.with_smoothness(loss).backward()
        mark()
        trainer.update()
        trainer.count(loss.detach(), logits.detach(), batch)
        mark()
        for part, start, end in zip(PARTS, marks, marks[1:], strict=False):
            sums[part] += end - start
    return {part: each / sum(sums.values()) for part, each in sums.items()}


# ---------------------------------------------------------------- the plain loop


class Plain:
    """The loop that one writes first, on a copy of the network: fp32, NCHW, eager, everything stored."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.module = copy.deepcopy(setup.module).train()
        self.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # unknown to torch's types
        set_gradients(self.module, ["stored"] * len(chain_owners(self.module)))
        self.optimizer = torch.optim.SGD(self.module.parameters(), 1e-4, momentum=0.9)
        batch = setup.training.batch(0, 0)
        self.inputs, self.targets = batch.inputs.float().contiguous(), batch.targets
        self.batches = self._endless()

    def step(self) -> int:
        """A step on the fixed batch; how many images."""
        return self._step(self.inputs, self.targets)

    def loaded_step(self) -> int:
        """A step on a batch of the DataLoader."""
        inputs, targets = next(self.batches)
        return self._step(inputs.to(self.setup.device), targets.to(self.setup.device))

    @torch.no_grad()
    def predict(self) -> int:
        """A forward pass in evaluation mode."""
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
        dataset = Transformed(setup.dataset.train, setup.train_index, setup.training)
        size = min(setup.experiment.batch_size, len(dataset))
        loader = DataLoader(dataset, size, shuffle=True, drop_last=True)
        while True:
            yield from loader


class Transformed(Dataset[tuple[Tensor, int]]):
    """Training images, each padded, cropped, flipped and normalised by itself."""

    def __init__(self, images: Images, index: np.ndarray, loader: Loader) -> None:
        self.images, self.index, self.plan = images, index, loader.augmentation
        self.mean, self.std = torch.tensor(0.5), torch.tensor(0.25)  # as any others take the same time

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        at = int(self.index[place])
        image = torch.from_numpy(np.array(self.images.pixels[at])).permute(2, 0, 1)
        height, width = image.shape[1:]
        if pad := self.plan.crop:
            image = F.pad(image, (pad,) * 4)
            row, column = (int(torch.randint(2 * pad + 1, ())) for _ in range(2))
            image = image[:, row : row + height, column : column + width]
        if self.plan.flip and torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image.float() / 255 - self.mean) / self.std, int(self.images.labels[at])


# ---------------------------------------------------------------- the machine


def _matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product, the best of several."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = torch.ones(n, n, dtype=dtype, device=device), torch.ones(n, n, dtype=dtype, device=device)
    c = a @ b
    return 2 * n**3 / _least(lambda: torch.mm(a, b, out=c), device)


def _bandwidth(device: torch.device) -> float:
    """Bytes a second of a copy of 256 MB, read and written."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source).zero_()
    return 2 * source.numel() * 4 / _least(lambda: target.copy_(source), device)


def _least(do: Callable[[], object], device: torch.device, repeats: int = 8) -> float:
    times = []
    for _ in range(repeats):
        _wait(device)
        begin = time.perf_counter()
        do()
        _wait(device)
        times.append(time.perf_counter() - begin)
    return min(times)
