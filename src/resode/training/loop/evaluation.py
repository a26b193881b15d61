"""Evaluation: loss and error of a module over labelled images, each counted once.

Accuracy is (correct samples) / (samples), never a mean of batch means; full precision unless asked.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resode.data import Batch
from resode.mode import mode
from resode.quantities import number, percent
from resode.training.process.distributed import SINGLE, World
from resode.training.setup.loss import Loss

_PRECISIONS = {torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation."""

    loss: float
    samples: int
    confusion: Tensor = field(repr=False)  # (classes, classes) int64 on the CPU; rows are the true classes
    precision: str

    def __repr__(self) -> str:
        return (
            f"Scores(top-1 error {percent(self.top1_error)}, loss {number(self.loss)}, "
            f"{self.samples:,} images, {self.precision})"
        )

    @property
    def correct(self) -> int:
        """Samples whose largest logit is that of the true class."""
        return int(self.confusion.diagonal().sum())

    @property
    def top1_accuracy(self) -> float:
        """Percent of the samples classified correctly."""
        return 100 * self.correct / self.samples

    @property
    def top1_error(self) -> float:
        """Percent of the samples classified incorrectly."""
        return 100 * (self.samples - self.correct) / self.samples

    def record(self, classes: tuple[str, ...] = ()) -> dict[str, Any]:
        """The scores as JSON; with `classes` also per class and the confusion matrix."""
        record: dict[str, Any] = {
            "top1_error": round(self.top1_error, 6),
            "top1_accuracy": round(self.top1_accuracy, 6),
            "loss": self.loss,
            "samples": self.samples,
            "precision": self.precision,
        }
        if classes:
            totals = self.confusion.sum(1).tolist()
            right = self.confusion.diagonal().tolist()
            record["per_class"] = {
                name: round(100 * r / n, 4) if n else None
                for name, r, n in zip(classes, right, totals, strict=True)
            }
            record["confusion"] = self.confusion.tolist()
        return record


@torch.inference_mode()
def evaluate(
    module: nn.Module,
    batches: Iterable[Batch],
    *,
    precision: str = "fp32",
    loss: Loss | None = None,
    on_batch: Callable[[int], None] | None = None,
    world: World = SINGLE,
) -> Scores:
    """Score `module` on batches of normalised images; its mode is restored afterwards.

    Args:
        module: (N, C, H, W) -> logits (N, classes).
        batches: inputs and targets, on the module's device.
        precision: "fp32", or "bf16" for autocast.
        loss: (logits, targets) -> mean over the images (default: cross-entropy).
        on_batch: called with the number of samples after each batch; may raise to end the evaluation.
        world: the ranks that share the batches; each returns the scores over all of them.
    """
    total: Tensor | None = None
    confusion: Tensor | None = None
    samples = 0
    with mode(module, training=False):
        for batch in batches:
            device = batch.inputs.device.type
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                logits = module(batch.inputs)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            if confusion is None or total is None:
                total = torch.zeros((), dtype=torch.float64, device=logits.device)
                confusion = torch.zeros(logits.shape[1] ** 2, dtype=torch.int64, device=logits.device)
            if not batch.samples:
                continue
            if loss is None:
                total += F.cross_entropy(logits, batch.targets, reduction="sum").double()
            else:
                total += loss(logits, batch.targets).double() * batch.samples
            cells = batch.targets * logits.shape[1] + logits.argmax(1)
            confusion.index_add_(0, cells, torch.ones_like(cells))  # bincount would synchronise a GPU
            samples += batch.samples
            if on_batch is not None:
                on_batch(batch.samples)
    assert confusion is not None
    assert total is not None
    total, confusion = world.all_reduce_sum(total), world.all_reduce_sum(confusion)
    samples = int(world.all_reduce_sum(torch.tensor(samples)))
    classes = round(confusion.numel() ** 0.5)
    own = next((p.dtype for p in module.parameters()), torch.float32)
    used = precision if own == torch.float32 else _PRECISIONS.get(own, str(own))
    return Scores(total.item() / samples, samples, confusion.view(classes, classes).cpu(), used)
