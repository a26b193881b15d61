"""Error of a network on rotated, scaled, attacked or corrupted images.

    rotation, scale    v(x) = u(R(-a) x / s)                          `resode.data.affine`
    FGSM               v = P(u + eps sign dL/du)                      Goodfellow et al. 2015, arXiv:1412.6572
    PGD                v <- P(v + h sign dL/dv),  v_0 = P(u + U(-eps, eps))
                                                                      Madry et al. 2018, arXiv:1706.06083
    corruptions        the published arrays     Hendrycks and Dietterich 2019, arXiv:1903.12261

u are pixels in [0, 1] before normalisation, L is the cross-entropy, and P projects onto the images in [0, 1]
with |v - u| <= eps at every pixel and channel. Gradients are those of the network in evaluation mode. An
inexact gradient hides weaknesses (Athalye et al. 2018, arXiv:1802.00420), so blocks with the continuous
adjoint are differentiated through their discrete steps here.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resode import randomness
from resode.blocks import dynamic_blocks
from resode.data import Batch, Images
from resode.data.affine import affine
from resode.data.corruptions import SEVERITIES, STANDARD, Corruptions
from resode.data.images import Labels, Pixels
from resode.errors import InputError
from resode.gradients import Adjoint, Stored
from resode.mode import mode
from resode.training.loop.evaluation import evaluate
from resode.weights import Preprocessing

STEPS: Final = 10  # steps of PGD
SEED: Final = 0  # seed of the subset of images and of the random starts
STEP: Final = 2.5 / STEPS  # step size / eps: reaches every corner from every start (Madry et al.)
PERTURBATIONS: Final = (
    ("clean", 0),
    *(("rotation", degrees) for degrees in (-30, -20, -10, 10, 20, 30)),
    *(("scale", factor) for factor in (0.7, 0.8, 0.9, 1.1, 1.2, 1.3)),
    *(("fgsm", levels) for levels in (1, 2, 4, 8)),
    *(("pgd", levels) for levels in (1, 2, 4, 8)),
)
_PASSES: Final = {
    "clean": 1,
    "rotation": 1,
    "scale": 1,
    "fgsm": 4,
    "pgd": 3 * STEPS + 1,
}  # cost in forward passes


class Preprocessed(nn.Module):
    """A network with its preprocessing: images (N, C, H, W) in [0, 1] -> logits (N, classes)."""

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.module, self.preprocessing = module, preprocessing

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(self.preprocessing(images))
        return logits


# ---------------------------------------------------------------- perturbations


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Rotate images about their centre, counterclockwise as displayed, with reflection at the boundary.

    Args:
        images: (N, C, H, W) in [0, 1].
        degrees: the angle.

    Raises:
        InputError: images of another shape or range, or an angle that is not finite.
    """
    return _affine(images, math.radians(degrees), 1.0)


def scaled(images: Tensor, factor: float) -> Tensor:
    """Scale images about their centre; below 1 they shrink, with reflection at the boundary.

    Args:
        images: (N, C, H, W) in [0, 1].
        factor: scale above 0.

    Raises:
        InputError: images of another shape or range, or a factor that is not positive and finite.
    """
    return _affine(images, 0.0, factor)


def _affine(images: Tensor, angle: float, scale: float) -> Tensor:
    _check(images)
    if not (math.isfinite(angle) and 0 < scale < math.inf):
        raise InputError(f"rotation by {angle} and scale {scale}: give finite numbers, scale above 0")
    angles, scales = (torch.full((len(images),), value, dtype=torch.float64) for value in (angle, scale))
    return affine(images, angles, scales)


def fgsm(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Fast gradient sign method: the corner of the eps-ball where the linearised loss is largest.

        v = P(u + eps sign dL(u)/du)

    Args:
        network: images in [0, 1] -> logits (see `Preprocessed`); attacked in evaluation mode, its mode is
            restored.
        images: u, (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        eps: largest change of a pixel, in [0, 1].

    Returns:
        v, of the shape of `images`.

    Raises:
        InputError: images of another shape or range, a negative eps, or a network without input gradient.
    """
    _check(images, eps=eps)
    return (images + eps * _direction(network, images, labels)).clamp(0, 1)


def pgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    steps: int,
    step: float,
    generator: torch.Generator,
) -> Tensor:
    """Projected gradient ascent of the loss from a random point of the eps-ball; returns the last iterate.

        v_0 = P(u + U(-eps, eps)),    v_{k+1} = P(v_k + step sign dL(v_k)/dv)

    Args:
        network: see `fgsm`.
        images: u, (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        eps: largest change of a pixel, in [0, 1].
        steps: number of steps.
        step: change of a pixel in one step.
        generator: generator of the random start; a CPU generator gives the same start on every device.

    Returns:
        v, of the shape of `images`.

    Raises:
        InputError: images of another shape or range, a negative number, or a network without input gradient.
    """
    _check(images, eps=eps, steps=steps, step=step)
    low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype, device=generator.device)
    v = (images + eps * (2 * noise.to(images.device) - 1)).clamp(low, high)
    for _ in range(steps):
        v = (v + step * _direction(network, v, labels)).clamp(low, high)
    return v


def _direction(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Sign of dL/du with L summed over the images, which are independent of each other."""
    u = images.detach().requires_grad_()
    with mode(network, training=False), _discrete_gradients(network), torch.enable_grad():
        loss = F.cross_entropy(network(u), labels, reduction="sum")
        gradient = torch.autograd.grad(loss, u, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise InputError("an attack needs the gradient in the image, which this network lacks; unfreeze it")
    return gradient.sign()


@contextlib.contextmanager
def _discrete_gradients(network: nn.Module) -> Iterator[None]:
    """Context in which blocks with the continuous adjoint are differentiated through their discrete steps."""
    original = {
        block: block.stage for block in dynamic_blocks(network) if isinstance(block.stage.gradient, Adjoint)
    }
    try:
        for block, stage in original.items():
            block.stage = replace(stage, gradient=Stored())
        yield
    finally:
        for block, stage in original.items():
            block.stage = stage


def _check(images: Tensor, **numbers: float) -> None:
    if images.ndim != 4 or not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError(
            f"images {tuple(images.shape)} of {images.dtype}: give floating-point (N, C, H, W) in [0, 1]"
        )
    if wrong := [f"{name} is {value!r}" for name, value in numbers.items() if not 0 <= value < math.inf]:
        raise InputError(f"{', '.join(wrong)}; give a finite number, at least 0")


# ---------------------------------------------------------------- errors


@dataclass(frozen=True)
class Row:
    """Error under one perturbation.

    Args:
        change: clean, rotation, scale, fgsm or pgd.
        amount: degrees, scale factor, or eps in grey levels (0 to 255).
        top1_error: top-1 error in percent.
    """

    change: str
    amount: float
    top1_error: float


def random_subset(images: Images, number: int | None = None, seed: int = SEED) -> Images:
    """The first `number` images (default: all) of a random order that depends on seed and content alone."""
    by_content = np.argsort(images.digests, kind="stable")
    order = randomness.order(seed, 0, torch.arange(len(images)), "subset")[:number]
    index = by_content[order.numpy()]
    return Images(images.pixels[index], images.labels[index], images.digests[index])


def robustness(
    network: nn.Module,
    images: Images,
    *,
    batch_size: int = 100,
    seed: int = SEED,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[Row, ...]:
    """Error under each of `PERTURBATIONS`; PGD takes `STEPS` steps of `STEP` eps.

    Args:
        network: images (N, C, H, W) in [0, 1] -> logits (N, classes).
        images: the images to perturb.
        batch_size: images a batch; attacks need the memory of a backward pass.
        seed: seed of the random starts of PGD.
        on_progress: called with the fraction of the work that is done, up to 1.

    Raises:
        InputError: a network without input gradient.
    """
    starts = {
        amount: torch.Generator().manual_seed(seed) for change, amount in PERTURBATIONS if change == "pgd"
    }
    work = sum(_PASSES[change] for change, _ in PERTURBATIONS) * len(images)
    wrong: Counter[tuple[str, float]] = Counter()
    done = 0
    for u, labels in _batches(network, images.levels, images.labels, batch_size):
        for change, amount in PERTURBATIONS:
            v = _perturb(network, u, labels, change, amount, starts)
            with mode(network, training=False), torch.no_grad():
                wrong[change, amount] += int((network(v).argmax(1) != labels).sum())
            done += _PASSES[change] * len(u)
            on_progress(done / work)
    return tuple(Row(*each, 100 * wrong[each] / len(images)) for each in PERTURBATIONS)


def _perturb(
    network: nn.Module,
    u: Tensor,
    labels: Tensor,
    change: str,
    amount: float,
    starts: Mapping[float, torch.Generator],
) -> Tensor:
    eps = amount / 255
    match change:
        case "rotation":
            return rotated(u, amount)
        case "scale":
            return scaled(u, amount)
        case "fgsm":
            return fgsm(network, u, labels, eps)
        case "pgd":
            return pgd(network, u, labels, eps, STEPS, STEP * eps, starts[amount])
    return u


def corruption_errors(
    network: nn.Module,
    corruptions: Corruptions,
    *,
    number: int | None = None,
    batch_size: int = 500,
    precision: str = "fp32",
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, tuple[float, ...]]:
    """Top-1 error in percent of each corruption at each severity: corruption -> 5 errors.

    Args:
        network: images (N, 3, 32, 32) in [0, 1] -> logits (N, 10).
        corruptions: arrays of `resode.data.corruptions.read`, with labels in the order of the logits.
        number: number of images, the same ones for all severities (default: all).
        batch_size: images a batch.
        precision: "fp32", or "bf16" for autocast.
        on_progress: called with the fraction of the work that is done, up to 1.
    """
    positions = torch.arange(len(corruptions.labels))
    index = np.sort(randomness.order(SEED, 0, positions, "subset")[:number].numpy())
    errors: dict[str, tuple[float, ...]] = {}
    for name, by_severity in corruptions.pixels.items():
        for pixels in by_severity:
            batches = _batches(network, pixels[index], corruptions.labels[index], batch_size)
            scores = evaluate(network, (Batch(u, labels) for u, labels in batches), precision=precision)
            errors[name] = (*errors.get(name, ()), scores.top1_error)
            on_progress(sum(map(len, errors.values())) / (SEVERITIES * len(corruptions.pixels)))
    return errors


def mean_error(errors: Mapping[str, tuple[float, ...]]) -> float | None:
    """Mean over the 15 standard corruptions and their severities, unnormalised; None if one is missing."""
    if not set(STANDARD) <= errors.keys():
        return None
    return sum(sum(errors[name]) for name in STANDARD) / (SEVERITIES * len(STANDARD))


def _batches(
    network: nn.Module, pixels: Pixels, labels: Labels, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (N, C, H, W) in [0, 1] and labels on the device of the network."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    for start in range(0, len(labels), size):
        chunk = slice(start, start + size)
        u = torch.from_numpy(np.ascontiguousarray(pixels[chunk])).to(device).permute(0, 3, 1, 2) / 255
        yield u, torch.from_numpy(labels[chunk]).to(device)
